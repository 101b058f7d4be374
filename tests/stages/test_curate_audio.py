"""The whole stage on small real files: its outputs, its bytes, and its knobs."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from anymal.config import validate
from anymal.data.manifest import verify_manifest
from anymal.data.shards import Sample, read_shard, shard_paths
from anymal.errors import ConfigError
from anymal.media.audio import open_audio
from anymal.stage import load_stage, run_stage
from tests.cards import check_dataset_card
from tests.curation.test_sounds import RATE, burst, kit, put


def knobs(**changes: Any) -> dict[str, Any]:
    source = {"asset": "kits", "reader": "hydrogen_drumkits", "licence": "GPL-2.0-only", "exclude": [], "max_per_label": None,
              "question": "What instrument is it?", "held_out": {"val": ["Two"], "test": ["Three <b>"]}, "tables": []}
    table = {"file": "captions.csv", "folder": "audio", "name": "{file}", "captions": ["caption"], "split": None}
    captioned = source | {"asset": "clips", "reader": "csv", "question": None, "held_out": None, "tables": [table]}
    return {
        "seed": 1, "sources": {"kits": source, "clips": captioned}, "labels": {"kick drum": ["kick"], "snare drum": ["snare"]}, "rate": RATE,
        "min_seconds": 0.05, "max_seconds": 1.0, "silence": 0.01, "lead": 0.01, "same_correlation": 0.97,
        "captions": {"general": ["The sound of {a_label}.", "One {label}."], "labels": {"snare drum": ["It is {a_label}."]}},
        "val_fraction": 0.2, "test_fraction": 0.2, "samples_per_shard": 4, "report_examples": 2, "workers": 2,
    } | changes


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("assets")
    seed = 0
    for name in ("One", "Two", "Three <b>"):
        files = {"Kick": [], "Snare": [], "Whistle": []}
        for instrument, listed in files.items():
            for index in range(2):
                seed += 1
                listed.append(f"{instrument}{index}.flac")
                put(root / "kits" / name / listed[-1], burst(seed))
        kit(root / "kits" / name, files)
    for index in range(5):
        put(root / "clips" / "audio" / f"{index}.flac", burst(50 + index, 2.0))
    rows = "".join(f"{index}.flac,Sound number {index} & more\n" for index in range(5))
    (root / "clips" / "captions.csv").write_text(f"file,caption\n{rows}")
    (root / "clips" / "audio" / "broken.ogg").write_bytes(b"no sound")
    return root


def run(assets: Path, folder: Path, **changes: Any) -> dict[str, Path]:
    stage = load_stage("curate_audio")
    outputs = {"shards": folder / "shards", "report": folder / "curate.html", "statistics": folder / "curate.json"}
    stage.function(validate(stage.config, knobs(**changes), "curate_audio"), assets=assets, **outputs)
    return outputs


@pytest.fixture(scope="module")
def curated(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return run(assets, tmp_path_factory.mktemp("curated"))


def samples(shards: Path) -> list[Sample]:
    return [sample for path in shard_paths(shards) for sample in read_shard(path)]


def test_statistics_add_up(curated: dict[str, Path]) -> None:
    figures = json.loads(curated["statistics"].read_text())
    assert figures["seen"] == figures["kept"] + sum(figures["dropped"].values()) == 24
    assert figures["dropped"] == {"unlabelled": 6, "no_caption": 1}
    assert figures["kept"] == sum(figures["splits"].values()) == len(samples(curated["shards"]))
    assert figures["labels"]["test"] == {"kick drum": 2, "snare drum": 2}
    assert figures["labels_never_trained"] == []
    assert figures["cut"] == 5
    assert figures["leaks"] == 0


def test_samples(curated: dict[str, Path]) -> None:
    found = samples(curated["shards"])
    for sample in found:
        meta = sample.meta
        assert sample.extension == "flac"
        decoded = open_audio(io.BytesIO(sample.data), sample.key, rate=RATE)
        assert meta["duration"] == pytest.approx(len(decoded) / RATE)
        assert meta["rate"] == RATE
        assert meta["objects"] == []
        assert meta["captions"]
        if meta["kind"] == "labelled":
            assert all(meta["label"] in caption for caption in meta["captions"])
            assert meta["questions"] == [{"question": "What instrument is it?", "answer": meta["label"], "kind": "label"}]
            assert meta["license"] == "GPL-2.0-only"
        else:
            assert meta["captions"][0].startswith("Sound number")
            assert "label" not in meta
            assert meta["questions"] == []
    groups = {(sample.meta["group"], sample.meta["split"]) for sample in found}
    assert ("kits/Two", "val") in groups
    assert len({group for group, _ in groups}) == len(groups)


def test_webdataset_reads_the_shards(curated: dict[str, Path]) -> None:
    paths = [str(path) for path in shard_paths(curated["shards"], "train")]
    read = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False))
    assert read and all(sample["flac"].startswith(b"fLaC") for sample in read)


def test_card_and_manifest(curated: dict[str, Path]) -> None:
    verify_manifest(curated["shards"])
    card = (curated["shards"] / "README.md").read_text()
    check_dataset_card(curated["shards"])
    assert "| kits | GPL-2.0-only | 18 | 12 |" in card


def test_report_is_one_safe_page(curated: dict[str, Path]) -> None:
    text = curated["report"].read_text()

    tags: set[str] = set()

    class Checker(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.add(tag)
            assert all(not (value or "").startswith("http") for name, value in attrs if name in ("src", "href"))

    Checker().feed(text)
    assert not {"script", "link", "iframe"} & tags
    assert "Three &lt;b&gt;" in text and "Three <b>" not in text
    assert text.count("data:image/png;base64,") == 6
    assert "Whistle0.flac" in text and "broken.ogg" in text


def test_same_bytes_again(assets: Path, curated: dict[str, Path], tmp_path: Path) -> None:
    again = run(assets, tmp_path, workers=1)
    for name in ("report", "statistics"):
        assert again[name].read_bytes() == curated[name].read_bytes()
    for path in sorted(curated["shards"].iterdir()):
        assert (again["shards"] / path.name).read_bytes() == path.read_bytes()


def test_failure_leaves_nothing(assets: Path, tmp_path: Path) -> None:
    sources = knobs()["sources"]
    sources["kits"]["held_out"]["test"] = ["Four"]
    stage = load_stage("curate_audio")
    ports = {"assets": assets, "shards": tmp_path / "shards", "report": tmp_path / "curate.html", "statistics": tmp_path / "curate.json"}
    with pytest.raises(ConfigError, match="no group 'Four'"):
        run_stage(stage, validate(stage.config, knobs(sources=sources), "curate_audio"), ports)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".db")] == []


BAD_KNOBS = [
    ({"labels": {"kick drum": ["kick("]}}, r"labels\.kick drum\.0 = kick\(: is no regular expression"),
    ({"labels": {"Kick Drum": ["kick"]}}, r"Kick Drum"),
    ({"captions": {"general": ["A sound."], "labels": {}}}, r"captions\.general\.0 = A sound\.: must hold \{label\} or \{a_label\}"),
    ({"captions": {"general": [], "labels": {}}}, r"captions\.general"),
    ({"min_seconds": 2.0}, "min_seconds = 2 exceeds max_seconds = 1"),
    ({"max_seconds": 601.0}, "max_seconds = 601"),
    ({"val_fraction": 0.8}, "leaves nothing to train on"),
    ({"silence": 0.0}, "silence = 0"),
    ({"rate": 10}, "rate = 10"),
]


@pytest.mark.parametrize(("changes", "words"), BAD_KNOBS)
def test_bad_knobs(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        validate(load_stage("curate_audio").config, knobs(**changes), "curate_audio")


@pytest.mark.parametrize(("changes", "words"), [
    ({"reader": "csv"}, "reader = csv with 0 tables"), ({"held_out": {"val": ["a"], "test": ["a"]}}, "a is in val and in test"),
    ({"asset": "../kits"}, "asset"), ({"reader": "wav"}, "reader = wav"), ({"max_per_label": 0}, "max_per_label = 0"), ({"extra": 1}, "unknown knob"),
])
def test_bad_sources(changes: dict[str, Any], words: str) -> None:
    sources = knobs()["sources"]
    sources["kits"] |= changes
    with pytest.raises(ConfigError, match=re.escape(words)):
        validate(load_stage("curate_audio").config, knobs(sources=sources), "curate_audio")


def test_table_outside_its_asset() -> None:
    sources = knobs()["sources"]
    sources["clips"]["tables"][0]["file"] = "../captions.csv"
    with pytest.raises(ConfigError, match="must lie within the asset"):
        validate(load_stage("curate_audio").config, knobs(sources=sources), "curate_audio")


def test_assets_that_are_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(np.zeros(1).tobytes())
    with pytest.raises(ConfigError, match="is a file"):
        run(tmp_path / "file", tmp_path / "out")
