"""The whole stage: what it leaves, that it leaves the same bytes again, that `encode` reads the new media, and what its knobs refuse."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from anymal.config import validate
from anymal.data.instructions import read_instructions
from anymal.data.manifest import fingerprint, verify_manifest
from anymal.data.shards import read_shard, shard_paths
from anymal.errors import ConfigError, DataError
from anymal.stage import load_stage, run_stage
from tests.cards import check_dataset_card
from tests.curation.test_instructions import SETTINGS, annotation, ask, curate, drawing, form, sample, task
from tests.tiny import ARCHITECTURES, make_trained_encoder, sound

STAGE = load_stage("import_instructions")


def knobs(**changes: Any) -> dict[str, Any]:
    llava = {"asset": "mm-it", "reader": "llava", "file": "data/records.json", "media": "media", "origin": "human", "kind": "conversation",
             "licence": "CC-BY-4.0"}
    forms = llava | {"asset": "labelled", "reader": "label_studio", "file": "export.json", "media": None, "licence": "CC0-1.0"}
    return {
        "seed": 3, "sources": {"mm-it": llava, "forms": forms}, "limits": {"max_characters": 300, "max_turns": 5, "max_media": 4}, "media": SETTINGS,
        "test_count": 3, "val_fraction": 0.2, "safety": None, "samples_per_shard": 2, "report_examples": 5, "workers": 2,
    } | changes


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("inputs")
    media = root / "assets" / "mm-it" / "media"
    media.mkdir(parents=True)
    (root / "assets" / "mm-it" / "data").mkdir()
    (root / "assets" / "labelled").mkdir()
    for number in range(8):
        (media / f"{number}.png").write_bytes(drawing(200 + number))
        (media / f"{number}.wav").write_bytes(sound(200.0 + 100 * number))
    records = [ask(f"i{number}", f"{number}.png", answer="<b>Ä</b>") for number in range(8)]
    records += [ask(f"a{number}", f"{number}.wav", modality="audio") for number in range(8)]
    records += [ask("gone", "gone.png"), ask("bad", "0.png", question="\ud800"), ask("secret", "secret.png")]
    (root / "assets" / "mm-it" / "data" / "records.json").write_text(json.dumps(records))
    seen = {"image": "/data/local-files/?d=seen.png"}
    (root / "assets" / "labelled" / "export.json").write_text(json.dumps([task(1, annotation(1, *form()), data=seen), task(2)]))
    images = curate(root / "image", {"train": [sample("seen", "train", drawing(1))], "test": [sample("secret", "test", drawing(2))]})
    return {"assets": root / "assets", "shards": (images,), "guard": root / "assets"}


def run(inputs: dict[str, Any], out: Path, **changes: Any) -> dict[str, Path]:
    outputs = {"instructions": out / "instructions", "media": out / "media", "report": out / "human.html", "statistics": out / "human.json"}
    run_stage(STAGE, validate(STAGE.config, knobs(**changes), "import_instructions"), inputs | outputs)
    return outputs


@pytest.fixture(scope="module")
def imported(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return run(inputs, tmp_path_factory.mktemp("imported"))


def test_instructions_name_media_that_are_there(imported: dict[str, Path]):
    figures = json.loads(imported["statistics"].read_text())
    splits = {split: read_instructions(imported["instructions"], split) for split in ("train", "val", "test")}
    assert {split: len(members) for split, members in splits.items()} == figures["splits"]
    assert figures["splits"]["test"] == 3 and figures["kept"] == 17 and figures["seen"] == 21
    assert figures["dropped"] == {"not_text": 1, "not_annotated": 1, "missing_media": 1, "test_leak": 1}
    assert figures["modalities"] == {"audio": 8, "image": 9} and figures["media"]["image"] == {"curated": 1, "new": 8}
    stored = {}
    for modality in ("image", "audio"):
        folder = imported["media"] / modality
        verify_manifest(folder)
        for found in (entry for path in shard_paths(folder) for entry in read_shard(path)):
            stored[f"{found.key}.{found.extension}"] = found.meta["split"]
            assert found.meta["license"] == "CC-BY-4.0" and found.meta["captions"] == []
    assert len(stored) == 16
    for split, members in splits.items():
        for instruction in members:
            assert instruction.origin == "human" and instruction.source in ("mm-it", "forms")
            assert [stored.get(medium.member, split) for medium in instruction.media] == [split]
    assert "seen.png" in {medium.member for split in ("train", "val") for entry in splits[split] for medium in entry.media}
    assert sorted(path.name for path in imported["media"].iterdir()) == ["audio", "image", "imu", "manifest.json", "video"]


def test_refused_records_are_listed(imported: dict[str, Path]):
    lines = [json.loads(line) for line in (imported["instructions"] / "rejected.jsonl").read_text().splitlines()]
    assert [(line["source"], line["id"], line["reason"]) for line in lines] == [
        ("mm-it", "gone", "missing_media"), ("mm-it", "bad", "not_text"), ("mm-it", "secret", "test_leak"), ("forms", "2", "not_annotated")]


def test_the_report_stands_alone_and_escapes(imported: dict[str, Path]):
    text = imported["report"].read_text(encoding="utf-8")
    HTMLParser().feed(text)
    assert "<b>Ä</b>" not in text and "&lt;b&gt;Ä" in text
    assert text.count("data:image/") == 5 and "http" not in text
    assert "missing_media: 1" in text


def test_the_card_names_licences_and_counts(imported: dict[str, Path]):
    check_dataset_card(imported["instructions"])
    text = (imported["instructions"] / "README.md").read_text(encoding="utf-8")
    assert "| mm-it | human | CC-BY-4.0 | 19 | 16 |" in text and "| test | 3 |" in text and "| test_leak |" in text


def test_the_same_inputs_give_the_same_bytes(inputs: dict[str, Any], imported: dict[str, Path], tmp_path: Path):
    again = run(inputs, tmp_path, workers=1)
    assert {name: fingerprint(path) for name, path in again.items()} == {name: fingerprint(path) for name, path in imported.items()}


def test_without_sources_there_is_an_empty_folder(inputs: dict[str, Any], tmp_path: Path):
    made = run(inputs, tmp_path, sources={})
    assert [read_instructions(made["instructions"], split) for split in ("train", "val", "test")] == [[], [], []]
    assert (made["instructions"] / "rejected.jsonl").read_text() == ""
    for modality in ("image", "audio", "video", "imu"):
        assert verify_manifest(made["media"] / modality) == {}
    assert json.loads(made["statistics"].read_text())["seen"] == 0


@pytest.mark.slow
def test_new_media_can_be_encoded(imported: dict[str, Path], tmp_path: Path):
    make_trained_encoder(tmp_path / "encoders" / "log-mel", "audio")
    encode = load_stage("encode")
    section = {"seed": 0, "modality": "audio", "encoder": "log-mel", "kind": ARCHITECTURES["audio"][0], "settings": {}, "batch_size": 4, "workers": 1}
    run_stage(encode, validate(encode.config, section, "encode.audio"),
              {"shards": (imported["media"],), "encoders": tmp_path / "encoders", "features": tmp_path / "features"})
    from anymal.data.features import FeatureStore

    store = FeatureStore(tmp_path / "features", "train")
    keys = {store.meta(row)["key"] for row in range(len(store))}
    named = {medium.key for entry in read_instructions(imported["instructions"], "train") for medium in entry.media if medium.modality == "audio"}
    assert named == keys != set()


def change(**changes: Any) -> dict[str, Any]:
    return knobs()["sources"]["mm-it"] | changes


@pytest.mark.parametrize(("source", "message"), [
    (change(file="/etc/passwd"), "must lie within the asset"), (change(media="../other"), "must lie within the asset"),
    (change(reader="csv"), "llava"), (change(licence=""), "at least 1 character"), (change(origin="template"), "human"),
    (change(asset="../x"), "pattern"), (change(secret=1), "unknown knob"),
])  # fmt: skip
def test_wrong_knobs_are_named(source: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        validate(STAGE.config, knobs(sources={"mm-it": source}), "import_instructions")


@pytest.mark.parametrize(("source", "error", "message"), [
    (change(asset="nowhere"), ConfigError, r"sources\.mm-it\.asset = nowhere: .* add the asset to ingest\.assets"),
    (change(media="nowhere"), ConfigError, r"sources\.mm-it\.media: .*nowhere is no folder"),
    (change(file="nowhere.json"), DataError, r"nowhere\.json: no such file"), (change(file="media/0.png"), DataError, "is not valid JSON"),
])  # fmt: skip
def test_wrong_inputs_leave_nothing(inputs: dict[str, Any], tmp_path: Path, source: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        run(inputs, tmp_path, sources={"mm-it": source})
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_folder_of_assets(inputs: dict[str, Any], tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--assets .*: is a file"):
        run(inputs | {"assets": tmp_path / "file"}, tmp_path / "out")
