"""The MLflow store: its address, whether it can be used, its client, and the run that stands for a graph run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from anymal.errors import TrackingError

DEFAULT_URI = "sqlite:///mlflow.db"
DEFAULT_EXPERIMENT = "anymal"
GRAPH_TAG = "anymal.graph_run"
OUTCOME_TAG = "anymal.outcome"
ERROR_TAG = "anymal.error"
REMEDY = "start the server, correct MLFLOW_TRACKING_URI (unset: ./mlflow.db is used), or set ANYMAL_TRACKING=off"

CHECK_SECONDS = 8.0
"""How long a server may take to answer before a stage starts."""
STUCK_SECONDS = 300.0
"""When MLflow is given up that says nothing; importing it and creating a database have taken 40 s on a busy machine."""
MAX_TAG = 5000
"""Characters of a tag's value."""


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


def parent_run(client: Any, experiment: str, graph: str, start: int) -> str:
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


def record_outcome(graph: str, state: str, message: str | None) -> None:
    """Say at the run that stands for a graph run how the graph ended: its status, and the tags `anymal.outcome` and `anymal.error`.

    Args:
        graph: name of the graph run (`ANYMAL_GRAPH_RUN`); its run is made if no stage came so far.
        state: Kubeflow's word: `SUCCEEDED`, `CANCELLED`, `FAILED`, …

    Raises:
        TrackingError: if MLflow cannot be used.
    """
    check_store()
    os.environ.update(environment())
    from mlflow.exceptions import MlflowException

    now = int(time.time() * 1000)
    try:
        with store_lock():
            client, experiment = connect()
            run = parent_run(client, experiment, graph, now)
            client.set_tag(run, OUTCOME_TAG, state)
            if message:
                client.set_tag(run, ERROR_TAG, message[:MAX_TAG])
            elif ERROR_TAG in client.get_run(run).data.tags:  # of an attempt before this one
                client.delete_tag(run, ERROR_TAG)
            client.set_terminated(run, {"SUCCEEDED": "FINISHED", "CANCELLED": "KILLED", "CANCELED": "KILLED"}.get(state, "FAILED"), now)
    except (MlflowException, OSError) as error:
        raise TrackingError(f"MLFLOW_TRACKING_URI = {shown_uri(tracking_uri())}: the outcome could not be recorded: {first_line(error)}; "
                            f"{REMEDY}") from error


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0][:500]
