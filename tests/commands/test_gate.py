"""`anymal gate`: what was measured must pass the gates of the profile, before anything is registered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from anymal.__main__ import cli
from anymal.errors import ConfigError, DataError
from tests import planted


def gate(folder: Path, *words: str, config: str | None = None, **files: Path) -> tuple[str, str]:
    """Verdict and report."""
    out = folder / "out"
    line = ["gate", "--config", config or json.dumps(planted.RULES), "--verdict", str(out / "verdict"), "--report", str(out / "report")]
    line += [word for name, path in files.items() for word in (f"--{name}", str(path))]
    done = CliRunner().invoke(cli, [*line, *words], catch_exceptions=False, standalone_mode=False)
    assert done.exit_code == 0
    return (out / "verdict").read_text(), (out / "report").read_text()


def files(folder: Path, share: float = 0.6, **settings: Any) -> dict[str, Path]:
    """Called as Kubeflow calls them: after their ports, without a suffix."""
    written = planted.write(folder / "results", planted.answers(share), **settings)
    return {path.stem: path.rename(path.with_suffix("")) for path in written.values()}


def test_a_good_model_passes_with_a_sentence_for_each_rule(tmp_path):
    verdict, report = gate(tmp_path, **files(tmp_path))
    assert verdict == "passed"
    assert report.startswith("# Gate: passed\n")
    passed = [line.split(" ")[2] for line in report.splitlines() if line.startswith("- ✓ ")]
    assert "400 samples have this score to compare with a champion's" in report
    assert passed == ["floor:", "ceiling:", "grounding:", "lineage:", "regression:"]


def test_a_blind_and_poor_model_fails_for_both_reasons(tmp_path):
    verdict, report = gate(tmp_path, **files(tmp_path, 0.3, blind=True))
    assert verdict == "failed"
    assert [line.split(" ")[2] for line in report.splitlines() if line.startswith("- ✗ ")] == ["floor:", "grounding:"]


def test_an_evaluation_of_nothing_fails(tmp_path):
    given = files(tmp_path)
    given["evaluation"].write_text("{}")
    assert gate(tmp_path, **given)[0] == "failed"


@pytest.mark.parametrize(("content", "words"), [
    ("", "evaluation.json: "), ("[]", "evaluation.json: holds no JSON object"), ('{"image": {"caption": {}}}', "not measured: the loss"),
    ('{"image": 1}', "is not what the stage score writes")])
def test_another_file_fails_and_says_why(tmp_path, content, words):
    given = files(tmp_path)
    given["evaluation"].write_text(content)
    verdict, report = gate(tmp_path, **given)
    assert verdict == "failed" and words in report


def test_a_missing_file_is_an_error(tmp_path):
    given = files(tmp_path)
    given["samples"].unlink()
    with pytest.raises(DataError, match=r"--samples .*samples: no such file; run the stage"):
        gate(tmp_path, **given)


def test_the_rules_come_from_the_profile(tmp_path):
    from ruamel.yaml import YAML

    profile = tmp_path / "mine.yaml"
    YAML().dump({"promote": planted.RULES | {"floors": [{"figure": "safety.text.auroc", "part": "low", "limit": 0.9}]}}, profile)
    verdict, report = gate(tmp_path, config=str(profile), **files(tmp_path))
    assert verdict == "failed" and "safety.text.auroc: its low was not measured" in report
    YAML().dump({"score": {}}, profile)
    with pytest.raises(ConfigError, match="has no section 'promote'"):
        gate(tmp_path, config=str(profile), **{path.stem: path for path in (tmp_path / "results").iterdir()})


def test_kubeflow_is_told_of_the_report(tmp_path):
    artifact = {"name": "report", "uri": "s3://bucket/report", "metadata": {}}
    given = {"outputs": {"artifacts": {"report": {"artifacts": [artifact]}}, "outputFile": str(tmp_path / "out" / "executor_output.json")}}
    gate(tmp_path, "--executor-input", json.dumps(given), **files(tmp_path))
    assert json.loads((tmp_path / "out" / "executor_output.json").read_text()) == {"artifacts": {"report": {"artifacts": [artifact]}}}
