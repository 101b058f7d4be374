"""The whole stage on small real files: good ones, and each kind of bad one."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tarfile
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from anymal.config import validate
from anymal.curation.pipeline import check_conservation, collect
from anymal.curation.rules import REASONS
from anymal.data.manifest import verify_manifest
from anymal.data.shards import Sample, read_shard, shard_paths
from anymal.errors import ConfigError, DataError
from anymal.stage import load_stage, run_stage
from tests.cards import check_dataset_card
from tests.curation.drawings import bomb, drawing, png, write_captioned


def knobs(**changes: Any) -> dict[str, Any]:
    source = {"reader": "captioned_folder", "licence": "CC0-1.0", "exclude": ["symbols/**"], "min_complexity": 0, "min_actions": 0, "scenes": True}
    names = source | {"asset": "names", "reader": "named_folder", "exclude": [], "scenes": False}
    tars = source | {"asset": "tars", "reader": "webdataset", "exclude": [], "scenes": False, "min_complexity": 1, "min_actions": 1}
    return {
        "seed": 1, "sources": {"stamps": source | {"asset": "stamps"}, "names": names, "tars": tars},
        "images": {"max_bytes": 5_000_000, "max_pixels": 4_000_000, "min_side": 16, "size": 96, "background": [255, 255, 255], "jpeg_quality": 85},
        "captions": {"max_characters": 500, "min_words": 1, "max_words": 12, "min_english": 0.5, "author_min_images": 3},
        "face_threshold": 0.5, "ocr_side": 320, "ocr_min_characters": 5,
        "duplicates": {"same_bits": 4, "same_colour": 12, "related_bits": 6, "related_colour": 14},
        "val_fraction": 0.25, "test_fraction": 0.25,
        "scenes": {"count": {"train": 12, "val": 4, "test": 6}, "size": 96, "max_objects": 4, "min_complexity": 1, "min_actions": 1},
        "safety": None, "samples_per_shard": 20, "report_thumbnails": 3, "workers": 1,
    } | changes


def write_bad(assets: Path) -> None:
    stamps, names, tars = assets / "stamps", assets / "names", assets / "tars"
    bad = stamps / "bad"
    for folder in (bad, stamps / "symbols", names / "food", tars):
        folder.mkdir(parents=True)
    picture = png(drawing(900))
    files = {
        "truncated": picture[: len(picture) // 2], "empty": b"", "words": b"this is a text file", "bomb": bomb(8000), "long": png(drawing(901)),
        "foreign": png(drawing(902)), "order": png(drawing(903)), "bare": png(drawing(904)), "twin": png(drawing(0)),
        "near": png(drawing(1).resize((118, 99))), "even": png(Image.new("RGB", (64, 64), "white")), "tiny": png(drawing(905).resize((40, 4))),
    }
    captions = {"long": "cat " * 25_000, "foreign": "Ein kleiner Hund läuft über die Wiese.", "order": "Eat your broccoli!", "twin": "A gorilla.",
                "near": "A zebra."}
    sign = Image.new("RGB", (300, 120), "white")
    ImageDraw.Draw(sign).text((15, 30), "HOSPITAL", fill="black", font=ImageFont.load_default(50))
    files["sign"], captions["sign"] = png(sign), "A hospital sign."
    for name, data in files.items():
        (bad / f"{name}.png").write_bytes(data)
        if name != "bare":
            (bad / f"{name}.txt").write_text(captions.get(name, f"A {name}."), encoding="utf-8")
    (bad / "order.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    (bad / "outside.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="/etc/passwd"/></svg>')
    (bad / "outside.txt").write_text("A window.")
    (stamps / "symbols" / "a.png").write_bytes(png(drawing(910)))
    for index, name in enumerate(("teapot_ganson", "small_plate_ganson", "pancakes_ganson", "gatto_nero_ganson")):
        (names / "food" / f"{name}.png").write_bytes(png(drawing(920 + index)))
    with tarfile.open(tars / "00000.tar", "w") as tar:
        for key, text in (("1", "A boy kicks a red ball over the fence."), ("2", "A boy."), ("3", "A blue cup on a table.")):
            for name, data in ((f"{key}.png", png(drawing(930 + int(key)))), (f"{key}.txt", text.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("assets")
    write_captioned(folder / "stamps")
    write_bad(folder)
    return folder


def run(assets: Path, out: Path, section: dict[str, Any]) -> dict[str, Path]:
    stage = load_stage("curate_image")
    ports = {"assets": assets, "guard": assets, "shards": out / "shards", "stamps": out / "stamps", "report": out / "curate.html",
             "statistics": out / "curate.json"}
    run_stage(stage, validate(stage.config, section, "curate_image"), ports)
    return ports


@pytest.fixture(scope="module")
def made(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    import os

    os.environ["ANYMAL_TRACKING"] = "off"
    return run(assets, tmp_path_factory.mktemp("out"), knobs())


@pytest.fixture(scope="module")
def samples(made: dict[str, Path]) -> list[Sample]:
    return [sample for path in shard_paths(made["shards"]) for sample in read_shard(path)]


def test_each_bad_input_is_dropped_for_its_reason_and_nothing_vanishes(made: dict[str, Path], assets: Path) -> None:
    figures = json.loads(made["statistics"].read_text())
    dropped = figures["sources"]["stamps"]["dropped"]
    expected = {"excluded_by_profile": 1, "duplicate_key": 1, "empty_file": 1, "not_an_image": 1, "too_many_pixels": 1, "too_small": 1,
                "unsafe_svg": 1,
                "no_caption": 1, "caption_too_long": 1, "not_english": 1, "not_a_description": 1, "truncated_image": 1, "blank_image": 1,
                "text_in_image": 1, "exact_duplicate": 1, "near_duplicate": 1}
    assert dropped == {reason: expected[reason] for reason in REASONS if reason in expected}
    assert figures["sources"]["names"]["dropped"] == {"not_english": 1}
    assert figures["sources"]["tars"]["dropped"] == {"too_few_relations": 1, "too_few_actions": 1}
    seen = sum(path.suffix in (".png", ".svg") for path in assets.rglob("*")) + 3
    assert figures["seen"] == seen == sum(source["seen"] for source in figures["sources"].values())
    for counts in (figures, *figures["sources"].values()):
        assert counts["kept"] + sum(counts["dropped"].values()) == counts["seen"]
    assert figures["kept"] == 30 + 3 + 1 == sum(split["photos"] for split in figures["splits"].values())


def test_shards_hold_what_the_statistics_say(made: dict[str, Path], samples: list[Sample]) -> None:
    figures = json.loads(made["statistics"].read_text())
    verify_manifest(made["shards"])
    assert len(samples) == figures["kept"] + figures["scenes"]["kept"]
    assert len({sample.key for sample in samples}) == len(samples)
    for sample in samples:
        assert {"split", "source", "license", "captions", "objects", "questions", "width", "height", "sha256", "group", "kind",
                "phash"} <= set(sample.meta)
        with Image.open(io.BytesIO(sample.data)) as image:
            assert (image.format, image.size) == ("JPEG", (sample.meta["width"], sample.meta["height"]))
            assert max(image.size) <= 96
    names = {sample.meta["original"]: sample.meta["captions"][0] for sample in samples if sample.meta["source"] == "names"}
    assert names == {"food/pancakes_ganson.png": "Some pancakes.",
                     "food/small_plate_ganson.png": "A small plate.", "food/teapot_ganson.png": "A teapot."}


def test_stamps_are_the_cut_outs_of_kept_pictures(made: dict[str, Path], samples: list[Sample]) -> None:
    verify_manifest(made["stamps"])
    entries = json.loads((made["stamps"] / "stamps.json").read_text())
    by_key = {sample.key: sample.meta for sample in samples}
    assert [entry["key"] for entry in entries] == sorted(entry["key"] for entry in entries)
    assert {part for meta in by_key.values() for part in meta.get("parts", [])} <= {entry["key"] for entry in entries}
    assert {path.stem for path in made["stamps"].glob("*.png")} == {entry["key"] for entry in entries}
    assert len(entries) == 30
    for entry in entries:
        meta = by_key[entry["key"]]
        assert (entry["split"], entry["source"], entry["license"], entry["head"]) == (meta["split"], meta["source"], meta["license"], meta["noun"])
        with Image.open(made["stamps"] / f"{entry['key']}.png") as image:
            assert (image.mode, list(image.size)) == ("RGBA", entry["size"])


def test_splits_share_nothing(samples: list[Sample]) -> None:
    groups: dict[str, set[str]] = {}
    split_of = {sample.key: sample.meta["split"] for sample in samples}
    for sample in samples:
        groups.setdefault(sample.meta["group"], set()).add(sample.meta["split"])
        for part in sample.meta.get("parts", []):
            assert split_of[part] == sample.meta["split"]
    assert all(len(splits) == 1 for splits in groups.values())
    assert set(split_of.values()) == {"train", "val", "test"}
    assert all(len(sample.meta["captions"]) == 1 for sample in samples if sample.meta["kind"] == "photo" and sample.meta["split"] != "train")


def test_report_is_one_small_self_contained_page(made: dict[str, Path]) -> None:
    text = made["report"].read_text(encoding="utf-8")
    assert len(text) < 3_000_000
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", text)
    assert "http" not in re.sub(r"data:[^\"]+", "", text)

    class Balanced(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open_tags: list[str] = []

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            if tag not in ("img", "meta", "br"):
                self.open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open_tags.pop() == tag

    page = Balanced()
    page.feed(text)
    assert page.open_tags == []
    for reason in ("truncated_image", "too_many_pixels", "near_duplicate", "text_in_image"):
        assert f"<h3>{reason}: 1</h3>" in text


def test_dataset_card_names_splits_licences_and_drops(made: dict[str, Path]) -> None:
    card = (made["shards"] / "README.md").read_text(encoding="utf-8")
    check_dataset_card(made["shards"])
    assert "| stamps | CC0-1.0 |" in card
    assert "| truncated_image |" in card


@pytest.mark.slow
def test_the_same_inputs_give_the_same_bytes_with_any_number_of_workers(made: dict[str, Path], assets: Path, tmp_path: Path) -> None:
    before = dict(os.environ)
    again = run(assets, tmp_path, knobs(workers=2))
    assert dict(os.environ) == before  # else processes started later would have other numbers of threads, and other last digits
    for name in ("shards", "stamps", "report", "statistics"):
        files = sorted(p.relative_to(made[name]) for p in made[name].rglob("*")) if made[name].is_dir() else [Path()]
        assert files
        for file in files:
            assert (again[name] / file).read_bytes() == (made[name] / file).read_bytes(), file
    assert {path.name for path in tmp_path.iterdir()} == {"shards", "stamps", "curate.html", "curate.json"}, "no scratch is left"


def only(asset: str) -> dict[str, Any]:
    section = knobs()
    section["sources"] = {"stamps": section["sources"]["stamps"] | {"asset": asset}}
    return section


def test_a_missing_source_and_a_wrong_port_are_one_clear_error(assets: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"curate_image\.sources\.stamps: folder .*nowhere not found; run ingest"):
        run(assets, tmp_path, only("nowhere"))
    with pytest.raises(DataError, match=r"input not found: --assets"):
        run(tmp_path / "none", tmp_path, knobs())
    assert not list(tmp_path.iterdir()), "nothing half-written is left"


def test_if_everything_is_dropped_the_error_names_the_main_reason(tmp_path: Path) -> None:
    folder = tmp_path / "assets" / "stamps"
    folder.mkdir(parents=True)
    for index in range(4):
        (folder / f"{index}.png").write_bytes(png(drawing(index)) if index == 0 else b"")
    with pytest.raises(DataError, match=r"all 4 images were dropped, 3 of them for 'empty_file'"):
        run(tmp_path / "assets", tmp_path / "out", only("stamps"))
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(DataError, match="hold no image at all"):
        run(tmp_path / "assets", tmp_path / "out", only("stamps"))


@pytest.mark.parametrize(("change", "message"), [
    ({"val_fraction": 0.6, "test_fraction": 0.5}, "leaves nothing to train on"), ({"workers": 0}, "curate_image.workers"),
    ({"thumbnails": 3}, "unknown knob"), ({"face_threshold": 1.5}, "curate_image.face_threshold"),
])
def test_wrong_knobs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(load_stage("curate_image").config, knobs(**change), "curate_image")


def test_a_lost_image_is_noticed(assets: Path) -> None:
    from anymal.curation.images import ImageLimits
    from anymal.curation.pipeline import Source

    found = collect([Source("stamps", assets / "stamps", "captioned_folder", "CC0-1.0", (), 0, 0, False)], ImageLimits(10**7, 10**7, 16))
    with pytest.raises(AssertionError):
        check_conservation(found)


class Classifiers:
    """A guard that finds a word, and nothing in pictures."""

    categories = ("violence", "weapons")

    def __init__(self, word: str) -> None:
        self.word, self.asked = word, 0
        self.text = self.image = self

    def probabilities(self, given: list[Any]) -> Any:
        self.asked += len(given)
        return np.array([[0.0, float(isinstance(one, str) and self.word in one.lower())] for one in given])


def screened(word: str, assets: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Path], Classifiers]:
    monkeypatch.setenv("ANYMAL_TRACKING", "off")
    classifiers = Classifiers(word)
    monkeypatch.setitem(sys.modules, "anymal.safety.models", SimpleNamespace(load_guard=lambda folder: classifiers))
    return run(assets, out, knobs(safety={"text": 0.9, "image": 0.9, "pair": None})), classifiers


def test_classifiers_that_find_nothing_change_no_byte_of_the_data(assets, made, tmp_path, monkeypatch):
    found, classifiers = screened("nothing says this", assets, tmp_path, monkeypatch)
    assert classifiers.asked > 20
    for port in ("shards", "stamps"):
        assert (found[port] / "manifest.json").read_bytes() == (made[port] / "manifest.json").read_bytes()
    assert json.loads(found["statistics"].read_text()) == json.loads(made["statistics"].read_text()) | {"harmful": {}}
    assert "left nothing out" in found["report"].read_text()


def test_what_classifiers_find_is_left_out_and_counted_by_category(assets, made, tmp_path, monkeypatch):
    word = next(sample.meta["noun"] for path in shard_paths(made["shards"], "train") for sample in read_shard(path) if sample.meta["kind"] == "photo")
    found, _ = screened(word, assets, tmp_path, monkeypatch)
    figures, before = (json.loads(ports["statistics"].read_text()) for ports in (found, made))
    dropped = figures["dropped"]["harmful_text"]
    assert dropped >= 1 and figures["harmful"] == {"harmful_text": {"weapons": dropped}} and figures["kept"] == before["kept"] - dropped
    captions = [caption for split in ("train", "val", "test") for path in shard_paths(found["shards"], split) for sample in read_shard(path)
                for caption in sample.meta["captions"]]
    assert captions and not [caption for caption in captions if word in caption.lower()]
    assert "a safety classifier finds the text harmful" in found["report"].read_text()
