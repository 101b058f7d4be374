"""What MLflow is told of a stage, against real stores: an SQLite file, and a real server that dies half-way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from anymal import tracking
from anymal.errors import TrackingError
from pipelines.servers import free_port
from tests.conftest import Server

CONFIG = {"seed": 3, "optimizer": {"learning_rate": 0.001, "betas": [0.9, 0.95]}, "prompt": "x" * 7000, "limit": None}


def client(uri: str | None = None) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri or tracking.tracking_uri())


def runs(uri: str | None = None) -> dict[str, Any]:
    """All runs by name; a name that comes twice gets a number."""
    found: dict[str, Any] = {}
    mlflow = client(uri)
    for run in mlflow.search_runs([experiment.experiment_id for experiment in mlflow.search_experiments()], order_by=["attributes.start_time ASC"]):
        name = run.info.run_name
        found[name if name not in found else f"{name} {len(found)}"] = run
    return found


def test_a_stage_becomes_a_nested_run_with_all_that_was_asked(store, tmp_path, monkeypatch):
    monkeypatch.setenv("ANYMAL_GRAPH_RUN", "graph-1")
    monkeypatch.setenv("ANYMAL_GIT_REVISION", "f" * 40)
    monkeypatch.setenv("KFP_RUN_ID", "kfp-7")
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "loss.png").write_bytes(b"png")
    (tmp_path / "plots" / "weights.safetensors").write_bytes(b"w")
    (tmp_path / "metrics.json").write_text(json.dumps({"image": {"accuracy": {"value": 0.5}}, "note": "text"}))
    (tmp_path / "big.html").write_bytes(b"x" * (tracking.MAX_FILE_BYTES + 1))
    (tmp_path / "side.md").write_text("first")
    start = time.monotonic()
    with tracking.stage_run("align", CONFIG, {"features": "a" * 64}) as run:
        for step in range(2500):
            tracking.log_metrics({"loss": 1 / (step + 1), "grounding <image>": float("nan")}, step=step)
        tracking.log_params({"device": "cpu"})
        tracking.log_artifact(tmp_path / "side.md")
        (tmp_path / "side.md").write_text("second")
        logged = time.monotonic() - start
        run.finish({"plots": tmp_path / "plots", "metrics": tmp_path / "metrics.json", "report": tmp_path / "big.html"})
    assert logged < 3, "the stage waited for MLflow"

    found = runs()
    assert set(found) == {"align", "graph graph-1"}
    stage, parent = found["align"], found["graph graph-1"]
    assert stage.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert stage.info.status == parent.info.status == "FINISHED"
    params = stage.data.params
    assert params["align.optimizer.learning_rate"] == "0.001" and params["align.optimizer.betas"] == "[0.9, 0.95]"
    assert params["align.limit"] == "null" and params["device"] == "cpu" and len(params["align.prompt"]) == 6000
    tags = stage.data.tags
    assert tags["mlflow.source.git.commit"] == "f" * 40 and tags["git.dirty"] == "false" and tags["kfp_run_id"] == "kfp-7"
    assert tags["input.features"] == "a" * 64 and len(tags["output.plots"]) == len(tags["output.report"]) == 64
    metrics = stage.data.metrics
    assert metrics["image.accuracy.value"] == 0.5 and metrics["system.duration_seconds"] > 0 and metrics["system.peak_memory_self_mib"] > 10
    history = client().get_metric_history(stage.info.run_id, "loss")
    assert [point.step for point in sorted(history, key=lambda point: point.step)] == list(range(2500))
    assert "grounding _image_" in metrics

    artifacts = tmp_path / "mlartifacts" / stage.info.run_id / "artifacts"
    names = {file.relative_to(artifacts).as_posix() for file in artifacts.rglob("*") if file.is_file()}
    assert names == {"align.config.json", "plots/loss.png", "metrics/metrics.json", "side.md"}
    assert json.loads((artifacts / "align.config.json").read_text()) == CONFIG
    assert (artifacts / "side.md").read_text() == "first"


def test_stages_that_run_side_by_side_share_one_parent_and_a_new_store(tmp_path, monkeypatch):
    """The database does not exist yet: three processes make it, the experiment and the parent at once."""
    script = textwrap.dedent("""
        import sys
        from anymal import tracking
        with tracking.stage_run(sys.argv[1], {"seed": 0}, {}) as run:
            run.finish({})
            if sys.argv[1] == "bad":
                raise ValueError("first line\\nsecond line")
            if sys.argv[1] == "stopped":
                from anymal.errors import Interrupted
                raise Interrupted("asked to stop")
    """)
    environment = {key: value for key, value in os.environ.items() if key != "ANYMAL_TRACKING"} | {"ANYMAL_GRAPH_RUN": "graph-2"}
    started = [subprocess.Popen([sys.executable, "-c", script, name], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
               for name in ("good", "bad", "stopped")]
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert errors[0] == "" and "ValueError" in errors[1] and "Interrupted" in errors[2]
    assert not [error for error in errors if "alembic" in error or "mlflow" in error.lower()]

    found = runs(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert set(found) == {"good", "bad", "stopped", "graph graph-2"}
    parents = {found[name].data.tags["mlflow.parentRunId"] for name in ("good", "bad", "stopped")}
    assert parents == {found["graph graph-2"].info.run_id}
    assert [found[name].info.status for name in ("good", "bad", "stopped")] == ["FINISHED", "FAILED", "KILLED"]
    assert found["bad"].data.tags["error"] == "first line" and found["graph graph-2"].info.status == "FAILED"


def test_a_stage_killed_without_warning_is_marked_so(store, tmp_path):
    script = textwrap.dedent("""
        import time
        from anymal import tracking
        with tracking.stage_run("align", {"seed": 0}, {}):
            tracking.log_metrics({"loss": 2.5}, step=4)
            print(tracking.run_id(), flush=True)
            time.sleep(300)
    """)
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
                               env={key: value for key, value in os.environ.items() if key != "ANYMAL_TRACKING"})
    assert process.stdout is not None
    run_id = process.stdout.readline().strip()
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while (run := client().get_run(run_id)).info.status == "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.5)
    assert run.info.status == "KILLED" and run.data.metrics["loss"] == 2.5 and "ended without a word" in run.data.tags["error"]


def test_resumes_the_run_it_is_given(store, monkeypatch):
    given = client().create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    monkeypatch.setenv("ANYMAL_GRAPH_RUN", "ignored")
    with tracking.stage_run("align", {"seed": 5}, {}):
        assert tracking.run_id() == given
    run = client().get_run(given)
    assert run.info.status == "FINISHED" and run.data.params["align.seed"] == "5" and len(runs()) == 1

    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(TrackingError, match="0000"), tracking.stage_run("align", {"seed": 5}, {}):
        raise AssertionError("the stage must not start")


def test_an_unreachable_server_is_named_before_the_work_starts(monkeypatch):
    monkeypatch.delenv("ANYMAL_TRACKING")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{free_port()}")
    start = time.monotonic()
    with pytest.raises(TrackingError, match=r"MLFLOW_TRACKING_URI = http://127\.0\.0\.1:\d+: .*ANYMAL_TRACKING=off") as caught, \
            tracking.stage_run("align", {"seed": 0}, {}):
        raise AssertionError("the stage must not start")
    assert time.monotonic() - start < 10
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("uri", "sentence"), [("sqlite:///none/mlflow.db", "not a folder that can be written"), ("./mlruns", "name a database"),
                                               ("sqlite:///notes.txt", "is not an SQLite database")])
def test_a_store_that_cannot_be_is_named(tmp_path, monkeypatch, uri, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("these are notes, not tables")
    monkeypatch.delenv("ANYMAL_TRACKING")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError, match=sentence), tracking.stage_run("align", {"seed": 0}, {}):
        raise AssertionError("the stage must not start")


def test_off_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with tracking.stage_run("align", {"seed": 0}, {}) as run:
        tracking.log_metrics({"loss": 1.0}, step=1)
        assert tracking.run_id() is None
        run.finish({"x": tmp_path})
    assert list(tmp_path.iterdir()) == []


def test_only_the_first_of_several_training_processes_records(monkeypatch):
    monkeypatch.delenv("ANYMAL_TRACKING")
    monkeypatch.setenv("RANK", "1")
    assert not tracking.enabled()
    monkeypatch.setenv("RANK", "0")
    assert tracking.enabled()


def test_the_graph_run_is_the_dvc_process_above(tmp_path):
    """A stand-in named `dvc` starts two stages, as `dvc repro` does: both must get its name."""
    script = tmp_path / "dvc"
    script.write_text("import subprocess, sys\nfor _ in range(2):\n    subprocess.run([sys.executable, '-c', "
                      "'from anymal import tracking; print(tracking.graph_run())'], check=True)\n")
    lines = subprocess.run([sys.executable, str(script), "repro"], capture_output=True, text=True, check=True).stdout.split()
    assert len(set(lines)) == 1 and lines[0].startswith("dvc-")
    assert subprocess.run([sys.executable, str(script), "status"], capture_output=True, text=True, check=True).stdout.split() == ["None", "None"]


def test_a_recorder_that_dies_is_reported_but_never_covers_the_stage_s_own_error(store, capsys):
    with pytest.raises(TrackingError, match=r"client ended.*its outputs are kept"), tracking.stage_run("align", {"seed": 0}, {}) as run:
        os.kill(run.recorder(), signal.SIGKILL)
        time.sleep(0.5)
        tracking.log_metrics({"loss": 1.0}, step=1)
    with pytest.raises(ValueError, match="its own"), tracking.stage_run("align", {"seed": 0}, {}) as run:
        os.kill(run.recorder(), signal.SIGKILL)
        raise ValueError("its own")
    assert "warning: MLFLOW_TRACKING_URI" in capsys.readouterr().err


def test_stages_share_a_process_that_has_imported_mlflow(store):
    listeners = set()
    for name in ("first", "second"):
        with tracking.stage_run(name, {"seed": 0}, {}) as run:
            listeners.add(psutil.Process(run.recorder()).ppid())
    assert len(listeners) == 1 and set(runs()) == {"first", "second"}


def test_a_folder_that_others_may_enter_is_not_used_to_reach_the_recorder(store, monkeypatch):
    refusal = r"not a folder that only this user can enter.*remove it"
    with tempfile.TemporaryDirectory() as folder:  # short: the address of a socket is
        (Path(folder) / f"anymal-{os.getuid()}").mkdir(mode=0o755)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        with pytest.raises(TrackingError, match=refusal), tracking.stage_run("align", {"seed": 0}, {}):
            pass


@pytest.mark.slow
def test_a_server_that_dies_half_way_keeps_the_outputs_and_is_named(mlflow_server: Server, tmp_path, monkeypatch):
    monkeypatch.delenv("ANYMAL_TRACKING")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    output = tmp_path / "metrics.json"
    with tracking.stage_run("whole", {"seed": 0}, {}) as run:
        tracking.log_metrics({"loss": 1.0}, step=1)
        output.write_text("{}")
        run.finish({"metrics": output})
    assert runs(mlflow_server.uri)["whole"].info.status == "FINISHED"

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with tracking.stage_run("bumpy", {"seed": 0}, {}) as run:  # the server answers again in time: nothing is lost
        tracking.run_id()
        mlflow_server.freeze()
        try:
            tracking.log_metrics({"loss": 1.0}, step=1)
            time.sleep(6)
        finally:
            mlflow_server.thaw()
    bumpy = runs(mlflow_server.uri)["bumpy"]
    assert bumpy.info.status == "FINISHED" and bumpy.data.metrics["loss"] == 1.0

    with pytest.raises(TrackingError, match=r"not recorded.*outputs are kept"), tracking.stage_run("cut", {"seed": 0}, {}) as run:
        tracking.run_id()
        mlflow_server.stop()
        output.write_text("[]")
        run.finish({"metrics": output})
    assert output.read_text() == "[]"
