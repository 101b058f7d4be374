"""The whole stage on a small converted folder and on Ego4D's layout together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anymal.config import validate
from anymal.data.manifest import fingerprint, verify_manifest
from anymal.data.shards import read_shard, shard_paths
from anymal.errors import ConfigError, DataError
from anymal.stage import load_stage, run_stage
from tests.cards import check_dataset_card
from tests.curation.test_ego4d import narrate, narration, write_narrations, write_recording
from tests.curation.test_motions import series, write_watch

STAGE = load_stage("curate_imu")


def knobs(**changes: Any) -> dict[str, Any]:
    watch = {
        "asset": "watch", "reader": "watch_series", "licence": "BSD-3-Clause", "held_out": {"val": [7], "test": [8, 9]},
        "labels": {"PEN": "pendulum", "ROW": "bent over row"}, "captions": ["A person does the {label}.", "One arm ({side}) does the {label}."],
        "questions": {"label": "What exercise is the person doing?", "side": "Which arm does the exercise?"},
    }
    ego = watch | {"asset": "ego4d", "reader": "ego4d", "licence": "LicenseRef-Ego4D", "held_out": {"val": ["b"], "test": ["c"]}, "labels": {},
                   "captions": [], "questions": {}}
    return {
        "seed": 0, "sources": {"watch": watch, "ego": ego}, "window_seconds": 5.0, "stride_seconds": 1.0, "test_stride_seconds": 5.0, "rate": 50,
        "val_fraction": 0.0, "test_fraction": 0.0, "samples_per_shard": 20, "report_examples": 2,
    } | changes


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("assets")
    write_watch(folder / "watch", *((subject, side, exercise, series(11, subject * 10 + number)) for subject in (1, 2, 7, 8, 9)
                                    for number, (side, exercise) in enumerate((("left", "PEN"), ("right", "ROW")))))
    for video in ("a", "b", "c"):
        write_recording(folder / "ego4d", video, 12)
    times = {"a": 5.0, "b": 5.5, "c": 6.0, "d": 6.5}  # the recordings are alike: at equal times their windows would be duplicates
    narrations = {video: narrate(narration(time, "#C C sits"), narration(6.0, "#O man X sits")) for video, time in times.items()}
    write_narrations(folder / "ego4d", narrations)
    return folder


def run(assets: Path, out: Path, section: dict[str, Any]) -> dict[str, Path]:
    ports = {"assets": assets, "shards": out / "shards", "report": out / "imu.html", "statistics": out / "imu.json"}
    run_stage(STAGE, validate(STAGE.config, section, "curate_imu"), ports)
    return ports


def test_stage_leaves_shards_report_and_statistics(assets: Path, tmp_path: Path):
    made = run(assets, tmp_path / "one", knobs())
    figures = json.loads(made["statistics"].read_text())
    assert figures["splits"] == {"train": 2 * 2 * 7 + 1, "val": 2 * 2 + 1, "test": 2 * 2 * 2 + 1}
    assert figures["sources"]["ego"] == {"seen": 8, "kept": 3, "dropped": {"no_recording": 1, "caption_is_other_person": 4}}
    assert figures["seen"] == figures["kept"] + sum(figures["dropped"].values()) and figures["leaks"] == 0
    assert figures["labels"]["test"] == {"bent over row": 4, "pendulum": 4} and figures["questions"] == {"label": 40, "side": 40}
    verify_manifest(made["shards"])
    groups: dict[str, set[str]] = {}
    for path in shard_paths(made["shards"]):
        for sample in read_shard(path):
            assert {"kind", "split", "source", "license", "captions", "questions", "objects", "sha256", "group", "duration",
                    "rate"} <= set(sample.meta)
            assert sample.meta["captions"] and all(sample.meta.get("label", "") in caption for caption in sample.meta["captions"])
            groups.setdefault(sample.meta["group"], set()).add(sample.meta["split"])
    assert all(len(splits) == 1 for splits in groups.values()) and len(groups) == 8
    assert "caption_is_other_person" in made["report"].read_text()
    check_dataset_card(made["shards"])
    again = run(assets, tmp_path / "two", knobs())
    assert {name: fingerprint(made[name]) for name in made} == {name: fingerprint(again[name]) for name in again}
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["imu.html", "imu.json", "shards"], "nothing else is left"


def change(section: dict[str, Any], source: str, **values: Any) -> dict[str, Any]:
    return section | {"sources": section["sources"] | {source: section["sources"][source] | values}}


@pytest.mark.parametrize(("section", "message"), [
    (knobs(val_fraction=0.5, test_fraction=0.5), "leaves nothing to train on"),
    (knobs(test_stride_seconds=4.0), "windows of the test would overlap"),
    (knobs(rate=5), "rate = 5"),
    (knobs(window_second=5.0), "window_second: unknown knob; did you mean 'window_seconds'"),
    (knobs(sources={}), "sources"),
    (change(knobs(), "watch", captions=["A person moves."]), r"caption 'A person moves.' must have {label}"),
    (change(knobs(), "watch", captions=["{label} of {subject}"]), "must have {label} and may have {side}, nothing else"),
    (change(knobs(), "watch", captions=["{label} {"]), "must have {label}"),
    (change(knobs(), "watch", captions=[]), "must not be empty for reader watch_series"),
    (change(knobs(), "watch", labels={"PEN": "row", "ROW": "bent over row"}), "label 'row' comes twice or is a part of another"),
    (change(knobs(), "watch", labels={"PEN": "Pendulum"}), "labels.PEN = Pendulum"),
    (change(knobs(), "watch", held_out={"val": [7], "test": ["7"]}), "7 is in val and in test"),
    (change(knobs(), "watch", questions={"age": "How old?"}), "questions.age"),
    (change(knobs(), "watch", reader="csv"), "reader = csv"),
    (change(knobs(), "watch", asset="../watch"), r"asset = \.\./watch"),
    (change(knobs(), "ego", captions=["{label}"]), "must be empty for reader ego4d"),
])
def test_wrong_knobs_are_named(section: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        validate(STAGE.config, section, "curate_imu")


def test_kubeflow_sends_whole_numbers_as_floats():
    section = change(knobs(rate=50.0), "watch", held_out={"val": [7.0], "test": [8.0, 9.0]})
    config = validate(STAGE.config, section, "curate_imu")
    assert config.sources["watch"].held_out.test == (8, 9)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("section", "error", "message"), [
    (change(knobs(), "watch", asset="absent"), ConfigError, r"sources\.watch\.asset = absent: .* is no folder; add the asset to ingest\.assets"),
    (change(knobs(), "watch", held_out={"val": [], "test": [77]}), ConfigError, r"held_out\.test = 77"),
    (change(knobs(), "ego", asset="watch"), DataError, "v2/imu: no such folder"),
    (knobs(window_seconds=20.0, test_stride_seconds=20.0), DataError, "windows were dropped, 13 of them for 'too_short'"),
])
def test_stage_that_fails_leaves_nothing(assets: Path, tmp_path: Path, section: dict[str, Any], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        run(assets, tmp_path, section)
    assert list(tmp_path.iterdir()) == []
