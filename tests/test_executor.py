"""What Kubeflow's launcher is told of a container's outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anymal.executor import FURTHER, MOST_SHOWN, scalars, shown, write_executor_output
from tests.graph import ROOT

FIGURE = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}


def written(folder: Path, document: Any) -> Path:
    path = folder / "metrics"
    path.write_text(json.dumps(document))
    return path


def test_numbers_are_shown_by_dotted_name(tmp_path):
    """Of a figure with its interval the value; no texts, truth values, or numbers that are none."""
    path = written(tmp_path, {"loss": 1, "image": {"caption": {"cider": FIGURE, "prompt": "Describe"}}, "nan": float("nan"),
                              "far": {"away": float("-inf"), "near": True}, "list": [1, 2]})  # fmt: skip
    assert shown(path) == {"loss": 1.0, "image.caption.cider": 0.5}
    assert scalars(path)["image.caption.cider.low"] == 0.4


def test_too_many_numbers_are_cut_by_depth_and_the_rest_is_counted(tmp_path):
    path = written(tmp_path, {"a": 1, "b": {"c": 2}, "d": {"e": {str(number): number for number in range(MOST_SHOWN)}}})
    assert shown(path) == {"a": 1.0, "b.c": 2.0, FURTHER: float(MOST_SHOWN)}
    exact = written(tmp_path, {str(number): number for number in range(MOST_SHOWN)})
    assert len(shown(exact)) == MOST_SHOWN
    flat = written(tmp_path, {str(number): number for number in range(MOST_SHOWN + 1)})
    assert shown(flat) == {FURTHER: MOST_SHOWN + 1.0}


def test_the_demos_figures_are_shown_in_short():
    """Those of the right input and their gaps; the next task gets them as part of one argument."""
    numbers = shown(ROOT / "results" / "evaluate.json")
    assert {"image.caption.cider_d", "image.vqa.accuracy", "imu.caption.gap_shuffled.nll", FURTHER} <= set(numbers)
    assert len(numbers) <= MOST_SHOWN + 1
    assert len(json.dumps(numbers)) < 8_000 < len(json.dumps(scalars(ROOT / "results" / "evaluate.json")))


def test_other_files_and_folders_show_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "lines").write_text('{"a": 1}\n{"a": 2}\n')
    (tmp_path / "page").write_text("<html>")
    assert [shown(tmp_path / name) for name in ("folder", "lines", "page", "none")] == [{}] * 4
    assert shown(None) == {}


def test_every_artifact_is_reported_with_what_it_was_given(tmp_path):
    given = {"metrics": {"name": "1", "uri": "s3://bucket/metrics", "metadata": {"kept": "yes"}}, "model": {"uri": "s3://bucket/model"}}
    target = tmp_path / "deep" / "output.json"
    declared = {"artifacts": {name: {"artifacts": [entry]} for name, entry in given.items()}, "outputFile": str(target)}
    write_executor_output({"outputs": declared}, {"metrics": written(tmp_path, {"loss": FIGURE}), "model": tmp_path})
    reported = json.loads(target.read_text())["artifacts"]
    assert reported["metrics"]["artifacts"] == [{"name": "1", "uri": "s3://bucket/metrics", "metadata": {"kept": "yes", "loss": 0.5}}]
    assert reported["model"]["artifacts"] == [{"name": "model", "uri": "s3://bucket/model", "metadata": {}}]
