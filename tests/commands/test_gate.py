"""`anymal gate`: a model that ignores one of its inputs does not pass."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from anymal.__main__ import cli
from anymal.errors import DataError
from tests.graph import ROOT

RESULTS = json.loads((ROOT / "results" / "evaluate.json").read_text())


def gate(folder: Path, results: Any, *words: str) -> tuple[str, str]:
    """Verdict and report."""
    (folder / "evaluation").write_text(results if isinstance(results, str) else json.dumps(results))
    out = folder / "out"
    line = ["gate", "--evaluation", str(folder / "evaluation"), "--verdict", str(out / "verdict"), "--report", str(out / "report")]
    done = CliRunner().invoke(cli, [*line, *words], catch_exceptions=False, standalone_mode=False)
    assert done.exit_code == 0
    return (out / "verdict").read_text(), (out / "report").read_text()


def test_the_demos_results_pass(tmp_path):
    """A sentence for each task of each modality."""
    verdict, report = gate(tmp_path, RESULTS)
    assert verdict == "passed"
    assert report.startswith("# Gate: passed\n")
    assert report.count("- ✓") == sum(len(tasks) for tasks in RESULTS.values())


@pytest.mark.parametrize(("modality", "task", "control", "metric"), [
    ("image", "caption", "gap_shuffled", "nll"), ("image", "vqa", "gap_blank", "accuracy"), ("audio", "caption", "gap_shuffled", "class_accuracy"),
    ("mixed", "qa", "gap_shuffled_imu", "accuracy_imu"), ("video", "qa", "gap_blank", "accuracy")])
def test_one_gap_that_may_be_nothing_fails(tmp_path, modality, task, control, metric):
    results = copy.deepcopy(RESULTS)
    results[modality][task][control][metric] |= {"low": -1.0, "high": 1.0}
    verdict, report = gate(tmp_path, results)
    assert verdict == "failed"
    assert [line.startswith(f"- ✗ {modality}: ") for line in report.splitlines() if "✗" in line] == [True]


def test_an_evaluation_of_nothing_fails(tmp_path):
    assert gate(tmp_path, {})[0] == "failed"


@pytest.mark.parametrize("content", ["", "[]", '{"image": {"caption": {}}}', '{"image": 1}'])
def test_another_file_is_refused(tmp_path, content):
    with pytest.raises(DataError, match="is not what the stage score writes"):
        gate(tmp_path, content)
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_refused(tmp_path):
    line = ["gate", "--evaluation", str(tmp_path / "none")]
    with pytest.raises(DataError, match="no such file; run the stage score"):
        CliRunner().invoke(cli, line, catch_exceptions=False, standalone_mode=False)


def test_kubeflow_is_told_of_the_report(tmp_path):
    artifact = {"name": "report", "uri": "s3://bucket/report", "metadata": {}}
    given = {"outputs": {"artifacts": {"report": {"artifacts": [artifact]}}, "outputFile": str(tmp_path / "out" / "executor_output.json")}}
    gate(tmp_path, RESULTS, "--executor-input", json.dumps(given))
    assert json.loads((tmp_path / "out" / "executor_output.json").read_text()) == {"artifacts": {"report": {"artifacts": [artifact]}}}
