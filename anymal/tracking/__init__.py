"""What MLflow is told of each stage: one run per stage, with knobs, metrics, artifacts and hashes.

MLflow's client runs in a process of its own (`anymal.tracking.recorder`), fed with JSON lines. So a stage never waits for the 5-20 s
import or for a slow server, its imports cannot collide with MLflow's, and a stage killed by SIGKILL is still marked as killed: the
recorder sees the stream end.

Environment: `MLFLOW_TRACKING_URI` (default: `sqlite:///mlflow.db` in the working directory), `MLFLOW_EXPERIMENT_NAME` (default
`anymal`), `MLFLOW_RUN_ID` (resume that run), `ANYMAL_GRAPH_RUN` (name of the graph run whose stages share a parent; the running
`dvc` process otherwise), `ANYMAL_TRACKING=off`.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import resource
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from anymal.errors import Interrupted, TrackingError
from anymal.tracking import warm
from anymal.tracking.facts import clean_key, flatten_params, git_version, graph_run
from anymal.tracking.store import (
    GRAPH_TAG,
    MAX_TAG,
    REMEDY,
    STUCK_SECONDS,
    check_store,
    connect,
    enabled,
    environment,
    parent_run,
    record_outcome,
    shown_uri,
    store_lock,
    tracking_uri,
)

__all__ = ["GRAPH_TAG", "REMEDY", "StageRun", "check_store", "clean_key", "connect", "enabled", "environment", "git_version", "graph_run",
           "log_artifact", "log_metrics", "log_params", "parent_run", "record_outcome", "run_id", "shown_uri", "stage_run", "store_lock",
           "tracking_uri"]

MAX_FILE_BYTES = 8 * 2**20
MAX_FOLDER_FILE_BYTES = 2**20
MAX_FOLDER_FILES = 64
SHOWN = {".html", ".json", ".md", ".png"}

_active: StageRun | None = None


def stage_run(name: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> StageRun:
    """A context in which the stage `name` runs: it becomes one MLflow run with `config` as parameters and `inputs` (port -> SHA-256).

    Raises:
        TrackingError: before the work starts if MLflow cannot be used; after it, outputs kept, if something could not be recorded.
    """
    return StageRun(name, config, inputs)


def log_metrics(metrics: Mapping[str, float], step: int | None = None) -> None:
    """Record numbers (at a training step) in the stage's run; returns at once. Does nothing when no run is active."""
    if _active is not None:
        _active.send({"do": "metrics", "metrics": {k: float(v) for k, v in metrics.items()}, "step": step or 0, "time": int(time.time() * 1000)})


def log_params(params: Mapping[str, Any]) -> None:
    """Record facts found while running, beside the knobs. Does nothing when no run is active."""
    if _active is not None:
        _active.send({"do": "params", "params": flatten_params(params)})


def log_artifact(path: Path, folder: str | None = None) -> None:
    """Record a file as it is now (it may be moved or changed afterwards). Does nothing when no run is active."""
    if _active is not None:
        _active.send_copy(path, folder)


def run_id() -> str | None:
    """MLflow's id of the active stage's run; waits until the run exists. None when no run is active.

    Raises:
        TrackingError: if the run cannot be opened.
    """
    return None if _active is None else _active.wait_for_run()


class StageRun:
    """One stage's run. Use `stage_run`."""

    def __init__(self, name: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
        self._name, self._config, self._inputs = name, config, inputs
        self._line: socket.socket | None = None
        self._recorder: int | None = None
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._run: str | None = None
        self._outbox: queue.Queue[bytes | None] = queue.Queue()
        self._copies = 0
        self._start = time.monotonic()

    def __enter__(self) -> StageRun:
        if not enabled():
            return self
        check_store()
        self._spool = Path(tempfile.mkdtemp(prefix="anymal-mlflow-"))
        self._log = (self._spool / "stderr.txt").open("w")
        self._line = warm.connect(self._log)
        for work in (self._listen, self._speak):  # the stage itself never waits for a recorder that is still importing MLflow
            threading.Thread(target=work, args=(self._line,), daemon=True).start()
        self.send({
            "do": "open", "name": self._name, "config": self._config, "inputs": self._inputs, "graph": graph_run(),
            "resume": os.environ.get("MLFLOW_RUN_ID"),
            "time": int(time.time() * 1000), "command": " ".join(sys.argv)[:MAX_TAG],
        })  # fmt: skip
        global _active  # noqa: PLW0603
        _active = self
        # A server and a file were checked above; any other database, or a run to resume, can only be checked by opening it.
        if os.environ.get("MLFLOW_RUN_ID") or urlsplit(tracking_uri()).scheme not in {"http", "https", "sqlite"}:
            try:
                self.wait_for_run()
            except BaseException:
                self._close()
                raise
        return self

    def finish(self, outputs: Mapping[str, Path]) -> None:
        """Record the stage's outputs: hashes of all, the numbers of JSON files as metrics, small readable files as artifacts."""
        if self._line is None:
            return
        from anymal.data.manifest import fingerprint
        from anymal.executor import scalars

        self.send({"do": "tags", "tags": {f"output.{port}": fingerprint(path) for port, path in outputs.items()}})
        for port, path in outputs.items():
            numbers = scalars(path)
            if numbers:
                log_metrics(numbers)
            for file, folder in _artifacts(port, path):
                self.send({"do": "artifact", "path": str(file.absolute()), "folder": folder})

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._line is None:
            return
        peak = {f"system.peak_memory_{who}_mib": resource.getrusage(which).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
                for who, which in (("self", resource.RUSAGE_SELF), ("children", resource.RUSAGE_CHILDREN))}
        log_metrics({"system.duration_seconds": time.monotonic() - self._start, **peak})
        status = "FINISHED" if error is None else "KILLED" if isinstance(error, Interrupted | KeyboardInterrupt) else "FAILED"
        text = None if error is None else (str(error).strip() or type(error).__name__).split("\n")[0][:MAX_TAG]
        self.send({"do": "end", "status": status, "error": text, "time": int(time.time() * 1000)})
        try:
            self._await("done")
        except TrackingError as problem:
            if error is None:
                raise TrackingError(f"{problem}; the stage {self._name} itself succeeded and its outputs are kept") from None
            print(f"anymal: warning: {problem}", file=sys.stderr)
        finally:
            self._close()

    def send(self, message: Mapping[str, Any]) -> None:
        """Hand one message to the recorder."""
        self._outbox.put(json.dumps(message).encode() + b"\n")

    def send_copy(self, path: Path, folder: str | None) -> None:
        """Copy a file aside and hand it over under its own name."""
        self._copies += 1
        copy = self._spool / str(self._copies) / path.name
        copy.parent.mkdir()
        shutil.copyfile(path, copy)
        self.send({"do": "artifact", "path": str(copy), "folder": folder})

    def wait_for_run(self) -> str:
        """Wait for the run's id."""
        if self._run is None:
            self._run = str(self._await("run")["run"])
        return self._run

    def recorder(self) -> int:
        """Wait for the recorder's process id."""
        if self._recorder is None:
            self._await("recorder")
        assert self._recorder is not None
        return self._recorder

    def _await(self, event: str) -> dict[str, Any]:
        where = f"MLFLOW_TRACKING_URI = {shown_uri(tracking_uri())}"
        deadline = time.monotonic() + STUCK_SECONDS
        while True:
            try:
                message = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise TrackingError(f"{where}: the run could not be recorded, MLflow has not answered for {STUCK_SECONDS:.0f} s; {REMEDY}") from None
            if message is None:
                raise TrackingError(f"{where}: the run could not be recorded, MLflow's client ended: {_last_line(self._spool / 'stderr.txt')}")
            if message.get("problem") is not None:
                raise TrackingError(f"{where}: {message['problem']}; {REMEDY}")
            if message["event"] == "recorder":
                self._recorder = message["process"]
            if message["event"] == "run":
                self._run = message["run"]
            if message["event"] == event:
                return message

    def _listen(self, line: socket.socket) -> None:
        with contextlib.suppress(OSError), line.makefile("r", encoding="utf-8") as reports:
            for report in reports:
                self._events.put(json.loads(report))
        self._events.put(None)

    def _speak(self, line: socket.socket) -> None:
        with contextlib.suppress(OSError):  # a recorder that died is reported when the stage ends
            while (message := self._outbox.get()) is not None:
                line.sendall(message)

    def _close(self) -> None:
        global _active  # noqa: PLW0603
        _active = None
        line, self._line = self._line, None
        assert line is not None
        self._outbox.put(None)
        with contextlib.suppress(OSError):  # the recorder is gone already
            line.shutdown(socket.SHUT_RDWR)
        line.close()
        self._log.close()
        shutil.rmtree(self._spool)


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no message"


def _artifacts(port: str, path: Path) -> Iterator[tuple[Path, str]]:
    """The files of an output that are worth showing, with their artifact folder."""
    if path.is_file():
        if path.suffix in SHOWN and path.stat().st_size <= MAX_FILE_BYTES:
            yield path, port
        return
    files = sorted(f for f in path.rglob("*") if f.is_file() and f.suffix in SHOWN and f.stat().st_size <= MAX_FOLDER_FILE_BYTES)
    for file in files[:MAX_FOLDER_FILES]:
        yield file, (Path(port) / file.relative_to(path).parent).as_posix()
