"""What MLflow is told of each stage: one run per stage, with knobs, metrics, artifacts and hashes; the only importer of its run API.

MLflow's client runs in a process of its own (`python -m anymal.tracking`), fed with JSON lines. So a stage never waits for the 5-20 s
import or for a slow server, its imports cannot collide with MLflow's, and a stage killed by SIGKILL is still marked as killed: the
recorder sees the pipe close.

Environment: `MLFLOW_TRACKING_URI` (default: `sqlite:///mlflow.db` in the working directory), `MLFLOW_EXPERIMENT_NAME` (default
`anymal`), `MLFLOW_RUN_ID` (resume that run), `ANYMAL_GRAPH_RUN` (name of the graph run whose stages share a parent; the running
`dvc` process otherwise), `ANYMAL_TRACKING=off`.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import queue
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from anymal.errors import Interrupted, TrackingError

DEFAULT_URI = "sqlite:///mlflow.db"
DEFAULT_EXPERIMENT = "anymal"
GRAPH_TAG = "anymal.graph_run"
REMEDY = "start the server, correct MLFLOW_TRACKING_URI (unset: ./mlflow.db is used), or set ANYMAL_TRACKING=off"

CHECK_SECONDS = 8.0
"""How long a server may take to answer before a stage starts."""
FINAL_SECONDS = 30.0
"""How long the recorder goes on trying after the stage has ended."""
STUCK_SECONDS = 300.0
"""When a recorder that says nothing is given up; importing MLflow and creating a database have taken 40 s on a busy machine."""
FLUSH_SECONDS = 2.0
BATCH = 1000
"""MLflow's limit of metrics per request."""
MAX_PENDING = 500_000
MAX_PARAM = 6000
MAX_TAG = 5000
MAX_FILE_BYTES = 8 * 2**20
MAX_FOLDER_FILE_BYTES = 2**20
MAX_FOLDER_FILES = 64
SHOWN = {".html", ".json", ".md", ".png"}

_active: StageRun | None = None


def enabled() -> bool:
    """Whether runs are recorded: not with `ANYMAL_TRACKING=off`, and only by rank 0 of several training processes."""
    return os.environ.get("ANYMAL_TRACKING", "").lower() not in {"off", "0", "false"} and os.environ.get("RANK", "0") == "0"


def tracking_uri() -> str:
    """The MLflow address in use, a relative SQLite path made absolute."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    database = sqlite_path(uri)
    return uri if database is None else f"sqlite:///{database.absolute()}"


def sqlite_path(uri: str) -> Path | None:
    """The database file of an SQLite address, None for any other."""
    match = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", uri)
    return Path(match[1]) if match else None


def shown_uri(uri: str) -> str:
    """The address without user name and password, for messages."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def environment() -> dict[str, str]:
    """Settings that MLflow's client reads: no telemetry, no chatter, bounded retries; what the user set wins."""
    settings = {
        "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_LOGGING_LEVEL": "ERROR", "GIT_PYTHON_REFRESH": "quiet",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    }  # fmt: skip
    return {name: os.environ.get(name, value) for name, value in settings.items()} | {"MLFLOW_TRACKING_URI": tracking_uri()}


def check_store() -> None:
    """Make sure that the MLflow store can be used; takes at most `CHECK_SECONDS`.

    Raises:
        TrackingError: naming `MLFLOW_TRACKING_URI`, its value without credentials, and the remedy.
    """
    uri = tracking_uri()
    database = sqlite_path(uri)
    if database is not None:
        _check_database(database)
    elif urlsplit(uri).scheme in {"http", "https"}:
        _check_server(uri)
    elif urlsplit(uri).scheme in {"", "file"}:
        raise TrackingError(f"MLFLOW_TRACKING_URI = {uri}: MLflow keeps no runs in folders any more; "
                            "name a database such as sqlite:///mlflow.db, or a server")


def _check_database(path: Path) -> None:
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise TrackingError(f"MLFLOW_TRACKING_URI = sqlite:///{path}: {path.parent} is not a folder that can be written; "
                            "correct MLFLOW_TRACKING_URI or set ANYMAL_TRACKING=off")
    if path.exists():
        with path.open("rb") as stream:
            head = stream.read(16)
        if head and head != b"SQLite format 3\0":
            raise TrackingError(f"MLFLOW_TRACKING_URI = sqlite:///{path}: is not an SQLite database; move it away or correct MLFLOW_TRACKING_URI")


def _check_server(uri: str) -> None:
    import requests

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", DEFAULT_EXPERIMENT)
    headers, credentials = {}, None
    if os.environ.get("MLFLOW_TRACKING_USERNAME"):
        credentials = (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ.get("MLFLOW_TRACKING_PASSWORD", ""))
    elif os.environ.get("MLFLOW_TRACKING_TOKEN"):
        headers["Authorization"] = f"Bearer {os.environ['MLFLOW_TRACKING_TOKEN']}"
    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in {"1", "true"}
    verify: str | bool = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or not insecure
    try:
        answer = requests.get(f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/get-by-name?experiment_name={quote(name)}",
                              headers=headers, auth=credentials, verify=verify, timeout=CHECK_SECONDS)
    except requests.RequestException as error:
        cause = "no answer in time" if isinstance(error, requests.Timeout) else type(error).__name__
        raise TrackingError(f"MLFLOW_TRACKING_URI = {shown_uri(uri)}: the MLflow server cannot be reached ({cause}); {REMEDY}") from error
    if answer.status_code in {401, 403}:
        raise TrackingError(f"MLFLOW_TRACKING_URI = {shown_uri(uri)}: the server refuses these credentials (HTTP {answer.status_code}); "
                            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN")
    if answer.status_code != 200 and not (answer.status_code == 404 and "RESOURCE_DOES_NOT_EXIST" in answer.text):
        raise TrackingError(f"MLFLOW_TRACKING_URI = {shown_uri(uri)}: answers with HTTP {answer.status_code}, not as an MLflow server does; {REMEDY}")


def graph_run() -> str | None:
    """Name of the graph run this process belongs to: `ANYMAL_GRAPH_RUN`, or the `dvc` process above this one; None outside any."""
    import psutil

    if os.environ.get("ANYMAL_GRAPH_RUN"):
        return os.environ["ANYMAL_GRAPH_RUN"]
    for process in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if any(Path(word).name == "dvc" for word in words[:3]) and {"repro", "exp", "experiments", "exec-run"} & set(words):
                return f"dvc-{socket.gethostname()}-{process.pid}-{int(process.create_time())}"
    return None


def git_version() -> dict[str, str]:
    """`{"revision", "dirty"}` of the repository at hand; `ANYMAL_GIT_REVISION` (set in images) where there is none; {} if unknown."""
    if os.environ.get("ANYMAL_GIT_REVISION"):
        return {"revision": os.environ["ANYMAL_GIT_REVISION"], "dirty": "false"}
    for folder in (Path.cwd(), Path(__file__).parent):
        revision = _git(folder, "rev-parse", "HEAD")
        if revision:
            return {"revision": revision, "dirty": str(bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))).lower()}
    return {}


def _git(folder: Path, *words: str) -> str | None:
    """What git prints; None without git or outside a repository."""
    try:
        answer = subprocess.run(["git", *words], check=False, cwd=folder, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


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


def flatten_params(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Knobs by dotted name, as text; lists as JSON; values longer than MLflow takes are cut (config.json holds them whole)."""
    flat: dict[str, str] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat |= flatten_params(value, f"{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            flat[clean_key(key)] = text if len(text) <= MAX_PARAM else text[: MAX_PARAM - 1] + "…"
    return flat


def clean_key(key: str) -> str:
    """A name that MLflow takes for a parameter or metric: others than letters, digits and `_-./: ` become `_`; 250 at most."""
    return re.sub(r"[^\w\-./: ]", "_", key, flags=re.ASCII)[:250]


class StageRun:
    """One stage's run. Use `stage_run`."""

    def __init__(self, name: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> None:
        self._name, self._config, self._inputs = name, config, inputs
        self._process: subprocess.Popen[str] | None = None
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._run: str | None = None
        self._lock = threading.Lock()
        self._copies = 0
        self._start = time.monotonic()

    def __enter__(self) -> StageRun:
        if not enabled():
            return self
        check_store()
        self._spool = Path(tempfile.mkdtemp(prefix="anymal-mlflow-"))
        self._log = (self._spool / "stderr.txt").open("w")
        # A session of its own: Ctrl-C and a group's SIGTERM must reach the stage only, which then says how it ended.
        self._process = subprocess.Popen([sys.executable, "-m", "anymal.tracking"], env=os.environ | environment(), text=True, encoding="utf-8",
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, start_new_session=True)
        threading.Thread(target=self._listen, args=(self._process,), daemon=True).start()
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
        if self._process is None:
            return
        from anymal.stage import fingerprint, scalars

        self.send({"do": "tags", "tags": {f"output.{port}": fingerprint(path) for port, path in outputs.items()}})
        for port, path in outputs.items():
            numbers = scalars(path)
            if numbers:
                log_metrics(numbers)
            for file, folder in _artifacts(port, path):
                self.send({"do": "artifact", "path": str(file.absolute()), "folder": folder})

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is None:
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
        process = self._process
        assert process is not None and process.stdin is not None
        with self._lock, contextlib.suppress(BrokenPipeError):  # a recorder that died is reported when the stage ends
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()

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
            if message["event"] == "run":
                self._run = message["run"]
            if message["event"] == event:
                return message

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._events.put(json.loads(line))
        self._events.put(None)

    def _close(self) -> None:
        global _active  # noqa: PLW0603
        _active = None
        process, self._process = self._process, None
        assert process is not None and process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(timeout=FINAL_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
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


# --- The recorder's side: runs in its own process ---------------------------------------------------------------------------------


class _Recorder:
    """Sends operations to MLflow in order; what fails for a passing reason stays queued and is tried again."""

    def __init__(self, emit: Any) -> None:
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
                    self.passing = _first_line(error)
                    return False
                self._fail(taken[0], error)
            except OSError as error:
                if isinstance(error, ConnectionError | TimeoutError):
                    self.passing = _first_line(error)
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
        self.problem = self.problem or f"{what}: {_first_line(error)}"
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
                self._parent = _parent_run(self._client, experiment, spec["graph"], spec["time"])
        if not self._run:
            if spec["resume"] is not None:
                self._run = self._client.get_run(spec["resume"]).info.run_id
                self._client.update_run(self._run, status="RUNNING")
            else:
                parent = {"mlflow.parentRunId": self._parent} if self._parent else {}
                self._run = self._client.create_run(experiment, start_time=spec["time"], run_name=spec["name"], tags=parent).info.run_id
        self._send_params(flatten_params(spec["config"], f"{spec['name']}."))
        self._client.log_dict(self._run, spec["config"], f"{spec['name']}.config.json")
        self._send_tags(_facts(spec))
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


def _facts(spec: Mapping[str, Any]) -> dict[str, str]:
    import getpass

    from anymal import __version__

    tags = {"stage": spec["name"], "anymal.version": __version__, "mlflow.source.name": spec["command"], "mlflow.source.type": "JOB"}
    with contextlib.suppress(OSError, KeyError):  # a container's user id may have no name
        tags["mlflow.user"] = getpass.getuser()
    git = git_version()
    if git:
        tags |= {"mlflow.source.git.commit": git["revision"], "git.dirty": git["dirty"]}
    for variable in ("KFP_RUN_ID", "KFP_POD_NAME", "DVC_EXP_NAME"):
        if os.environ.get(variable):
            tags[variable.lower()] = os.environ[variable]
    return tags | {f"input.{port}": digest for port, digest in spec["inputs"].items()}


@contextlib.contextmanager
def store_lock() -> Iterator[None]:
    """Held while the database, the experiment, a parent run or a model version is looked for and created: stages run side by side."""
    from filelock import FileLock

    name = hashlib.sha256(tracking_uri().encode()).hexdigest()[:16]
    with FileLock(Path(tempfile.gettempdir()) / f"anymal-mlflow-{os.getuid()}-{name}.lock", timeout=STUCK_SECONDS):
        yield


def connect() -> tuple[Any, str]:
    """MLflow's client, and the id of the experiment, created if need be. Beside an SQLite database, artifacts lie in `mlartifacts`."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    client, name = MlflowClient(tracking_uri()), os.environ.get("MLFLOW_EXPERIMENT_NAME", DEFAULT_EXPERIMENT)
    found = client.get_experiment_by_name(name)
    if found is None:
        database = sqlite_path(tracking_uri())
        location = None if database is None else (database.parent / "mlartifacts").as_uri()
        try:
            return client, str(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # by another machine, between the two calls
                raise
            found = client.get_experiment_by_name(name)
    assert found is not None
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return client, str(found.experiment_id)


def _parent_run(client: Any, experiment: str, graph: str, start: int) -> str:
    """Id of the run that stands for a graph run; machines that create it at once agree on the oldest."""
    escaped = graph.replace("'", "_")
    query = f"tags.`{GRAPH_TAG}` = '{escaped}'"
    order = ["attributes.start_time ASC", "attributes.run_id ASC"]
    found = client.search_runs([experiment], query, order_by=order, max_results=1)
    if not found:
        own = client.create_run(experiment, start_time=start, run_name=f"graph {graph}", tags={GRAPH_TAG: escaped}).info.run_id
        found = client.search_runs([experiment], query, order_by=order, max_results=1)
        if found[0].info.run_id != own:
            client.delete_run(own)
    client.update_run(found[0].info.run_id, status="RUNNING")
    return str(found[0].info.run_id)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:500]


def _main() -> None:
    """Read operations from stdin until it closes; report on stdout."""
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not be taken for a report
    inbox: queue.Queue[dict[str, Any] | None] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            inbox.put(json.loads(line))
        inbox.put(None)

    def emit(event: Mapping[str, Any]) -> None:
        # A stage that was killed does not listen any more; its run must be closed all the same.
        with contextlib.suppress(BrokenPipeError):
            reports.write(json.dumps(event) + "\n")
            reports.flush()

    threading.Thread(target=read, daemon=True).start()
    recorder = _Recorder(emit)
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


if __name__ == "__main__":
    _main()
