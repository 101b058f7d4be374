"""The whole stage on small real files: clips composed from cut-outs, good clips of a source, and each kind of bad one."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anymal.config import validate
from anymal.curation.clip_shards import REASONS
from anymal.data.manifest import verify_manifest
from anymal.data.shards import Sample, read_shard, shard_paths
from anymal.errors import ConfigError, DataError
from anymal.media.video import open_video, write_mp4
from anymal.stage import load_stage, run_stage
from tests.cards import check_dataset_card
from tests.curation.test_clips import write_stamps
from tests.media.test_video import encode, fast_start, part, sound


def knobs(**changes: Any) -> dict[str, Any]:
    return {
        "seed": 1, "sources": {"web": {"asset": "web", "reader": "webdataset", "licence": "CC-BY-4.0", "group_field": "video"}},
        "videos": {"max_bytes": 200_000, "max_seconds": 6.0, "min_side": 16, "side": 64, "rate": 4},
        "captions": {"max_characters": 200, "min_words": 2, "max_words": 30, "min_english": 0.5},
        "val_fraction": 0.25, "test_fraction": 0.25,
        "clips": {"count": {"train": 10, "val": 5, "test": 5}, "size": 64, "frames": 8, "rate": 4},
        "samples_per_shard": 12, "report_examples": 3, "workers": 1,
    } | changes


def moving(seed: int, count: int = 16) -> bytes:
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((128, 96), Image.Resampling.BICUBIC)
    return write_mp4([picture.rotate(index * 5) for index in range(count)], 8)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


GOOD = 12
SAID = "A man walks slowly across the green field."


def write_web(folder: Path) -> None:
    """A source of good clips, two of each video, and one of each bad kind."""
    folder.mkdir(parents=True)
    whole = moving(100)
    bad: dict[str, tuple[str, bytes, Any]] = {
        "words": ("not_a_video", b"this is no video", SAID), "song": ("not_a_video", sound(), SAID), "empty": ("empty_file", b"", SAID),
        "one": ("one_frame", encode(1), SAID), "long": ("too_long", encode(60), SAID), "blink": ("too_short", encode(2, rate=60), SAID),
        "cut": ("cut_short", part(fast_start(whole), 0.7), SAID), "codec": ("codec_unknown", whole.replace(b"avc1", b"zzzz"), SAID),
        "big": ("file_too_large", whole + bytes(200_000), SAID), "strip": ("too_small", encode(16, size=(512, 16)), SAID),
        "silent": ("no_caption", moving(101), ""), "foreign": ("not_english", moving(102), "Ein kleiner Hund läuft über die Wiese."),
        "essay": ("caption_too_long", moving(103), "a man walks " * 100), "word": ("caption_too_short", moving(104), "Field."),
        "twin": ("exact_duplicate", moving(0), SAID), "lost": ("no_group", moving(105), SAID),
    }
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for index in range(GOOD):
            add(tar, f"good{index}.mp4", moving(index))
            add(tar, f"good{index}.json", json.dumps({"caption": f"{SAID[:-1]} near house number {index}.", "video": f"v{index // 2}"}).encode())
        add(tar, "webm.webm", encode(12, codec="libvpx-vp9", kind="webm"))
        add(tar, "webm.json", json.dumps({"text": "A dog runs to the <b>house</b>.", "video": 7}).encode())
    with tarfile.open(folder / "00001.tar", "w") as tar:
        for name, (_, data, text) in bad.items():
            add(tar, f"{name}.mp4", data)
            add(tar, f"{name}.json", json.dumps({"caption": text} | ({} if name == "lost" else {"video": f"bad-{name}"})).encode())
        add(tar, "good0.mp4", moving(106))
        link = tarfile.TarInfo("link.mp4")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    expected = {reason for reason, _, _ in bad.values()} | {"duplicate_key", "unreadable"}
    assert expected == set(REASONS) - {"too_many_pixels"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_web(folder / "assets" / "web")
    write_stamps(folder / "stamps", {"train": 12, "val": 5, "test": 6})
    return folder


def run(inputs: Path, out: Path, section: dict[str, Any]) -> dict[str, Path]:
    stage = load_stage("curate_video")
    ports = {"stamps": inputs / "stamps", "assets": inputs / "assets", "shards": out / "shards", "report": out / "video.html",
             "statistics": out / "video.json"}
    run_stage(stage, validate(stage.config, section, "curate_video"), ports)
    return ports


@pytest.fixture(scope="module")
def made(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    os.environ["ANYMAL_TRACKING"] = "off"
    return run(inputs, tmp_path_factory.mktemp("out"), knobs())


@pytest.fixture(scope="module")
def samples(made: dict[str, Path]) -> list[Sample]:
    return [sample for path in shard_paths(made["shards"]) for sample in read_shard(path)]


def test_each_bad_clip_is_dropped_for_its_reason_and_nothing_vanishes(made: dict[str, Path]) -> None:
    figures = json.loads(made["statistics"].read_text())
    assert figures["dropped"] == {reason: 2 if reason == "not_a_video" else 1 for reason in REASONS if reason != "too_many_pixels"}
    assert figures["sources"]["web"] == {"seen": GOOD + 1 + 18, "kept": GOOD + 1, "dropped": figures["dropped"]}
    assert figures["sources"]["clips"] == {"seen": 20, "kept": 20, "dropped": {}}
    assert figures["seen"] == figures["kept"] + sum(figures["dropped"].values()) == GOOD + 19 + 20
    assert figures["kept"] == sum(figures["splits"].values())
    assert figures["leaks"] == 0


def test_samples_are_whole_and_say_what_they_are(made: dict[str, Path], samples: list[Sample]) -> None:
    figures = json.loads(made["statistics"].read_text())
    verify_manifest(made["shards"])
    assert len(samples) == len({sample.key for sample in samples}) == figures["kept"]
    for sample in samples:
        meta = sample.meta
        assert sample.extension == "mp4"
        assert {"kind", "split", "source", "license", "captions", "questions", "objects", "sha256", "group", "duration", "frames", "rate", "width",
                "height"} <= set(meta)
        assert meta["captions"]
        frames = open_video(io.BytesIO(sample.data), sample.key, frames=meta["frames"])
        assert frames[0].size == (meta["width"], meta["height"])
        assert max(frames[0].size) <= 64
        assert meta["duration"] * meta["rate"] == meta["frames"]
    clips = [sample.meta for sample in samples if sample.meta["kind"] == "clip"]
    assert len(clips) == 20
    assert all(meta["parts"] and meta["questions"] for meta in clips)
    licences = {f"key-{index:02d}": "CC0-1.0" if index % 2 else "CC-BY-4.0" for index in range(30)}
    assert all(meta["license"] == " AND ".join(sorted({licences[part] for part in meta["parts"]})) for meta in clips)
    videos = {sample.meta["original"]: sample.meta for sample in samples if sample.meta["kind"] == "video"}
    assert videos["webm.webm"]["captions"] == ["A dog runs to the house."]
    assert (videos["webm.webm"]["group"], videos["webm.webm"]["license"]) == ("web/7", "CC-BY-4.0")


def test_splits_share_nothing(samples: list[Sample]) -> None:
    owners: dict[str, set[str]] = {}
    for sample in samples:
        for name in (sample.meta["group"], sample.meta["sha256"], *sample.meta["parts"]):
            owners.setdefault(name, set()).add(sample.meta["split"])
    assert all(len(splits) == 1 for splits in owners.values())
    assert {sample.meta["split"] for sample in samples if sample.meta["kind"] == "video"} == {"train", "val", "test"}
    together = {sample.meta["original"]: sample.meta["split"] for sample in samples if sample.meta["kind"] == "video"}
    assert all(together[f"good{index}.mp4"] == together[f"good{index + 1}.mp4"] for index in range(2, GOOD, 2)), "clips of one video"


def test_report_and_card_tell_what_was_kept_and_dropped(made: dict[str, Path]) -> None:
    page = made["report"].read_text(encoding="utf-8")
    assert len(page) < 1_000_000
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    assert "<script" not in page
    assert page.count("data:image/png;base64,") == 9
    for reason in REASONS:
        assert (f"<h3>{reason}: " in page) == (reason != "too_many_pixels")
    assert "web/cut.mp4" in page
    card = (made["shards"] / "README.md").read_text(encoding="utf-8")
    check_dataset_card(made["shards"])
    for line in ("| web | CC-BY-4.0 | 31 | 13 |", "| clips | CC-BY-4.0 AND CC0-1.0 | 20 | 20 |", "| one_frame |"):
        assert line in card


def test_the_same_inputs_give_the_same_bytes_with_any_number_of_workers(made: dict[str, Path], inputs: Path, tmp_path: Path) -> None:
    again = run(inputs, tmp_path, knobs(workers=3))
    for name in ("shards", "report", "statistics"):
        files = sorted(p.relative_to(made[name]) for p in made[name].rglob("*")) if made[name].is_dir() else [Path()]
        assert files
        for file in files:
            assert (again[name] / file).read_bytes() == (made[name] / file).read_bytes(), file
    assert {path.name for path in tmp_path.iterdir()} == {"shards", "video.html", "video.json"}


def test_a_damaged_shard_costs_what_comes_after_and_is_counted(inputs: Path, tmp_path: Path) -> None:
    shard = inputs / "assets" / "web" / "00000.tar"
    target = tmp_path / "assets" / "web" / "00000.tar"
    target.parent.mkdir(parents=True)
    target.write_bytes(part(shard.read_bytes(), 0.5))
    (tmp_path / "stamps").symlink_to(inputs / "stamps")
    made = run(tmp_path, tmp_path / "out", knobs(clips=knobs()["clips"] | {"count": {"train": 0, "val": 0, "test": 0}}))
    figures = json.loads(made["statistics"].read_text())
    assert figures["dropped"].get("unreadable", 0) >= 1
    assert 0 < figures["kept"] < GOOD
    assert figures["questions"] == {}


def test_missing_and_wrong_inputs_are_one_clear_error(inputs: Path, tmp_path: Path) -> None:
    source = knobs()["sources"]["web"]
    with pytest.raises(DataError, match=r"curate_video\.sources\.web: .*nowhere holds no \.tar shard; run ingest"):
        run(inputs, tmp_path, knobs(sources={"web": source | {"asset": "nowhere"}}))
    clips = knobs()["clips"]
    with pytest.raises(DataError, match=r"curate_video\.clips\.count\.val = 5: the stamps of this split show only 2 different nouns"):
        write_stamps(tmp_path / "few" / "stamps", {"train": 12, "val": 2, "test": 6})
        (tmp_path / "few" / "assets").mkdir()
        run(tmp_path / "few", tmp_path, knobs(sources={}))
    with pytest.raises(DataError, match=r"all 3 clips were dropped, 2 of them for 'not_a_video'"):
        web = tmp_path / "bad" / "assets" / "web"
        web.mkdir(parents=True)
        with tarfile.open(web / "0.tar", "w") as tar:
            for name, data in (("a", b"x" * 99), ("b", b"y" * 99), ("c", b"")):
                add(tar, f"{name}.mp4", data)
                add(tar, f"{name}.json", json.dumps({"caption": SAID, "video": name}).encode())
        (tmp_path / "bad" / "stamps").symlink_to(inputs / "stamps")
        run(tmp_path / "bad", tmp_path, knobs(clips=clips | {"count": {"train": 0, "val": 0, "test": 0}}))
    assert {path.name for path in tmp_path.iterdir()} == {"few", "bad"}, "nothing half-written is left"


@pytest.mark.parametrize(("change", "message"), [
    ({"val_fraction": 0.6, "test_fraction": 0.5}, "leaves nothing to train on"), ({"workers": 0}, "curate_video.workers"),
    ({"sources": {}, "clips": {"count": {"train": 0, "val": 0, "test": 0}, "size": 64, "frames": 8, "rate": 4}}, "there is nothing to curate"),
    ({"clips": {"count": {"train": 1, "val": 0, "test": 0}, "size": 65, "frames": 8, "rate": 4}}, "curate_video.clips.size = 65"),
    ({"sources": {"clips": knobs()["sources"]["web"]}}, "the name is taken by the composed clips"), ({"thumbnails": 1}, "unknown knob"),
])
def test_wrong_knobs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(load_stage("curate_video").config, knobs(**change), "curate_video")
