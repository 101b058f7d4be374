"""The recorder's side: operations of one stage in, an MLflow run out."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TextIO

from anymal.tracking.facts import clean_key, facts, flatten_params
from anymal.tracking.store import MAX_TAG, connect, first_line, parent_run, store_lock

FINAL_SECONDS = 30.0
"""How long it goes on trying after the stage has ended."""
FLUSH_SECONDS = 2.0
BATCH = 1000
"""MLflow's limit of metrics per request."""
MAX_PENDING = 500_000


class Recorder:
    """Sends operations to MLflow in order; what fails for a passing reason stays queued and is tried again."""

    def __init__(self, emit: Callable[[Mapping[str, Any]], None]) -> None:
        self._emit = emit
        self._operations: deque[dict[str, Any]] = deque()
        self._client: Any = None
        self._run = self._parent = ""
        self.problem: str | None = None
        """What could not be recorded for good."""
        self.passing: str | None = None
        """What failed last and may work later."""
        self.dropped = 0
        self._refused = False

    def add(self, operation: dict[str, Any]) -> None:
        if operation["do"] == "metrics" and len(self._operations) >= MAX_PENDING:
            self.dropped += 1
            return
        self._operations.append(operation)

    def flush(self) -> bool:
        """Send what is queued; False if something is left for a later try."""
        from mlflow.exceptions import MlflowException
        from mlflow.protos import databricks_pb2 as codes

        hopeless = {codes.ErrorCode.Name(c) for c in (codes.INVALID_PARAMETER_VALUE, codes.RESOURCE_DOES_NOT_EXIST, codes.PERMISSION_DENIED,
                                                     codes.UNAUTHENTICATED, codes.INVALID_STATE, codes.BAD_REQUEST)}
        while self._operations:
            taken = self._take()
            try:
                self._send(taken)
                self.passing = None
            except MlflowException as error:
                if error.error_code not in hopeless:
                    self.passing = first_line(error)
                    return False
                self._fail(taken[0], error)
            except OSError as error:
                if isinstance(error, ConnectionError | TimeoutError):
                    self.passing = first_line(error)
                    return False
                self._fail(taken[0], error)
            for _ in taken:
                self._operations.popleft()
        return True

    def _fail(self, operation: Mapping[str, Any], error: Exception) -> None:
        what = f"the run's {operation['do']} could not be recorded"
        if operation["do"] == "open":
            self._refused = True
            given = operation["resume"]
            what = "no run could be made" if given is None else f"MLFLOW_RUN_ID = {given}: cannot be resumed (unset it for a new run)"
        self.problem = self.problem or f"{what}: {first_line(error)}"
        if self._refused:
            self._emit({"event": "run", "problem": self.problem})

    def _take(self) -> list[dict[str, Any]]:
        """The next operation, or as many metrics as fit into one request."""
        taken = [self._operations[0]]
        if taken[0]["do"] == "metrics":
            size = len(taken[0]["metrics"])
            for operation in itertools.islice(self._operations, 1, BATCH):
                size += len(operation.get("metrics", ()))
                if operation["do"] != "metrics" or size > BATCH:
                    break
                taken.append(operation)
        return taken

    def _send(self, taken: list[dict[str, Any]]) -> None:
        first = taken[0]
        if self._refused:
            return  # without a run there is nothing to add to; `problem` says why
        match first["do"]:
            case "open":
                self._open(first)
            case "metrics":
                self._send_metrics(taken)
            case "params":
                self._send_params(first["params"])
            case "tags":
                self._send_tags(first["tags"])
            case "artifact":
                self._client.log_artifact(self._run, first["path"], first["folder"])
            case "end":
                self._end(first)

    def _send_metrics(self, taken: list[dict[str, Any]]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(clean_key(key), value, item["time"], item["step"]) for item in taken for key, value in item["metrics"].items()]
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(self._run, metrics=metrics[start : start + BATCH])

    def _send_params(self, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        items = list(params.items())
        for start in range(0, len(items), 100):
            self._client.log_batch(self._run, params=[Param(key, value) for key, value in items[start : start + 100]])

    def _send_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(self._run, tags=[RunTag(key, value[:MAX_TAG]) for key, value in tags.items()])

    def _open(self, spec: Mapping[str, Any]) -> None:
        with store_lock():
            self._client, experiment = connect()
            if spec["graph"] is not None and spec["resume"] is None and not self._parent:
                self._parent = parent_run(self._client, experiment, spec["graph"], spec["time"])
        if not self._run:
            if spec["resume"] is not None:
                self._run = self._client.get_run(spec["resume"]).info.run_id
                self._client.update_run(self._run, status="RUNNING")
            else:
                parent = {"mlflow.parentRunId": self._parent} if self._parent else {}
                self._run = self._client.create_run(experiment, start_time=spec["time"], run_name=spec["name"], tags=parent).info.run_id
        self._send_params(flatten_params(spec["config"], f"{spec['name']}."))
        self._client.log_dict(self._run, spec["config"], f"{spec['name']}.config.json")
        self._send_tags(facts(spec))
        self._emit({"event": "run", "run": self._run})

    def _end(self, spec: Mapping[str, Any]) -> None:
        if spec["error"] is not None:
            self._send_tags({"error": spec["error"]})
        self._client.set_terminated(self._run, spec["status"], spec["time"])
        if self._parent:
            self._end_parent(spec["time"])

    def _end_parent(self, end: int) -> None:
        """No process knows when a graph run ends: its run carries the worst status of its stages' last attempts, and the last time."""
        experiment = self._client.get_run(self._parent).info.experiment_id
        stages = self._client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{self._parent}'", order_by=["attributes.start_time ASC"])
        last = {run.data.tags.get("stage", run.info.run_id): run.info.status for run in stages}
        worst = next((status for status in ("RUNNING", "FAILED", "KILLED") if status in last.values()), "FINISHED")
        if worst == "RUNNING":
            self._client.update_run(self._parent, status="RUNNING")
        else:
            self._client.set_terminated(self._parent, worst, end)


def record(operations: Iterable[str], reports: TextIO) -> None:
    """Record one stage: operations, a JSON line each, until the last one or until they end without it.

    Args:
        reports: takes events, a JSON line each: `run` with the run's id, `done` with what could not be recorded.
    """
    inbox: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def read() -> None:
        with contextlib.suppress(OSError):  # a stage that was killed may leave what was not read
            for line in operations:
                inbox.put(json.loads(line))
        inbox.put(None)

    def emit(event: Mapping[str, Any]) -> None:
        # A stage that was killed does not listen any more; its run must be closed all the same.
        with contextlib.suppress(BrokenPipeError, ConnectionError):
            reports.write(json.dumps(event) + "\n")
            reports.flush()

    emit({"event": "recorder", "process": os.getpid()})
    threading.Thread(target=read, daemon=True).start()
    recorder = Recorder(emit)
    ended = False
    while not ended:
        time.sleep(0.0 if not inbox.empty() else 0.05)
        until = time.monotonic() + FLUSH_SECONDS
        while not ended and (left := until - time.monotonic()) > 0:
            try:
                operation = inbox.get(timeout=left)
            except queue.Empty:
                break
            if operation is None:
                operation = {"do": "end", "status": "KILLED", "time": int(time.time() * 1000),
                             "error": "the stage's process ended without a word (killed, or out of memory)"}  # fmt: skip
            recorder.add(operation)
            ended = operation["do"] == "end"
            if operation["do"] == "open":
                break
        recorder.flush()
    deadline = time.monotonic() + FINAL_SECONDS
    while not (complete := recorder.flush()) and time.monotonic() < deadline:
        time.sleep(1.0)
    problem = recorder.problem if complete else f"MLflow stopped answering and parts of the run are not recorded: {recorder.passing}"
    if recorder.dropped:
        problem = f"{problem or 'MLflow was too slow'}; {recorder.dropped} metric records were dropped"
    emit({"event": "done", "problem": problem})
