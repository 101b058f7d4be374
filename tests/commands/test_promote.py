"""`anymal promote`: what it is asked wrongly is said before MLflow is (the drill is tests/test_promotion.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click import UsageError
from click.testing import CliRunner

from anymal.__main__ import cli
from anymal.errors import AnymalError, BundleError, ConfigError, DataError, TrackingError
from pipelines.servers import free_port
from tests import planted

RULES = json.dumps(planted.RULES)


def promote(*words: str) -> None:
    CliRunner().invoke(cli, ["promote", *words], catch_exceptions=False, standalone_mode=False)


@pytest.mark.parametrize("words", [
    (), ("models:/a/1", "--registration", "r"), ("models:/a/1",), ("models:/a/1", "--config", RULES, "--reason", "x"), ("models:/a", "--rollback"),
    ("--registration", "r", "--rollback", "--reason", "x"), ("models:/a", "--rollback", "--reason", "x", "--config", RULES)])
def test_options_that_do_not_go_together(words):
    with pytest.raises(UsageError):
        promote(*words)


@pytest.mark.parametrize(("words", "error", "message"), [
    (("models:/anymal", "--config", RULES), BundleError, "is no address of a registered model"),
    (("models:/anymal/1", "--config", "{}"), ConfigError, "promote.seed: missing"),
    (("models:/anymal/1", "--config", "none.yaml"), ConfigError, "none.yaml: no such file"),
    (("--registration", "none", "--config", RULES), DataError, "--registration none: no such file; run the stage register"),
    (("--registration", "bad", "--config", RULES), DataError, "is not what the stage register writes"),
    (("models:/anymal/1", "--rollback", "--reason", "x"), BundleError, "without alias or version"),
    (("models:/anymal", "--rollback", "--reason", "x"), TrackingError, "MLFLOW_TRACKING_URI = http://127"),
    (("models:/anymal/1", "--config", RULES), TrackingError, "MLFLOW_TRACKING_URI = http://127")])
def test_errors_are_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], error: type[AnymalError], message: str):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    Path("bad").write_text("[]")
    with pytest.raises(error, match=message):
        promote(*words)
