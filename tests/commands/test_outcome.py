"""`anymal outcome`: how a graph run ended stands at the run that its stages share, in a real store."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from anymal import tracking
from anymal.__main__ import cli
from anymal.errors import ConfigError, TrackingError

FAILED = {"state": "FAILED", "pipelineJobResourceName": "run/7", "pipelineTaskName": "exit-handler-1",
          "error": {"code": 9, "message": "align.image: the model ignores its input"}}  # fmt: skip


def outcome(status: Any, *words: str) -> str:
    line = ["outcome", "--status", status if isinstance(status, str) else json.dumps(status), *words]
    done = CliRunner().invoke(cli, line, catch_exceptions=False, standalone_mode=False)
    assert done.exit_code == 0
    return done.output


def parent() -> Any:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking.tracking_uri())
    (run,) = [run for run in client.search_runs([entry.experiment_id for entry in client.search_experiments()])
              if tracking.GRAPH_TAG in run.data.tags]
    return run


def test_a_failure_stands_at_the_run_of_the_graph(store, monkeypatch):
    """A later attempt that ends well says so."""
    monkeypatch.setenv("ANYMAL_GRAPH_RUN", "kfp-7")
    assert "align.image: the model ignores its input" in outcome(FAILED)
    run = parent()
    assert run.info.status == "FAILED"
    assert run.data.tags["anymal.outcome"] == "FAILED"
    assert run.data.tags["anymal.error"] == "align.image: the model ignores its input"
    outcome({"state": "SUCCEEDED"})
    run = parent()
    assert (run.info.status, run.data.tags["anymal.outcome"]) == ("FINISHED", "SUCCEEDED")
    assert "anymal.error" not in run.data.tags


def test_a_run_whose_first_task_failed_is_recorded_too(store):
    outcome({"state": "CANCELLED"}, "--graph-run", "it's mine")
    assert (parent().info.status, parent().data.tags[tracking.GRAPH_TAG]) == ("KILLED", "it_s mine")


@pytest.mark.parametrize(("status", "complaint"), [
    ("{", "--status: not valid JSON"), ("[]", "has no text 'state'"), ({"status": "FAILED"}, "has no text 'state'"),
    ({"state": 1}, "has no text 'state'")])
def test_another_status_is_refused(status, complaint):
    with pytest.raises(ConfigError, match=complaint):
        outcome(status, "--graph-run", "kfp-7")


def test_the_graph_run_must_be_known():
    with pytest.raises(ConfigError, match="--graph-run: not given, and ANYMAL_GRAPH_RUN is not set"):
        outcome({"state": "FAILED"})


def test_nothing_is_recorded_where_tracking_is_off(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "kfp-7: FAILED: align.image" in outcome(FAILED, "--graph-run", "kfp-7")
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_cannot_be_used_is_named(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    Path("other.db").write_text("no database")
    with pytest.raises(TrackingError, match="is not an SQLite database"):
        outcome(FAILED, "--graph-run", "kfp-7")
    with sqlite3.connect(store) as database:
        assert database.execute("SELECT COUNT(*) FROM runs").fetchone() == (0,)
