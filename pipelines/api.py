"""The API server of Kubeflow Pipelines: a run is sent there and followed to its end; each trouble is a sentence.

Environment, kfp's own variables where it has one: `KF_PIPELINES_ENDPOINT` (address), `KF_PIPELINES_UI_ENDPOINT` (of the links, if it is another),
`KF_PIPELINES_SA_TOKEN_PATH` (file with a bearer token, read again for each request) or `KF_PIPELINES_TOKEN` (the token itself),
`KF_PIPELINES_NAMESPACE` (on a server with several users), `KF_PIPELINES_CA_FILE` (certificates that the server's is signed with).
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anymal.errors import AnymalError

ENDPOINT = "KF_PIPELINES_ENDPOINT"
TOKEN = "KF_PIPELINES_TOKEN"  # noqa: S105 - names of variables
TOKEN_FILE = "KF_PIPELINES_SA_TOKEN_PATH"  # noqa: S105
NAMESPACE = "KF_PIPELINES_NAMESPACE"
CA_FILE = "KF_PIPELINES_CA_FILE"
FINISHED = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}
TIMEOUT = 60.0
"""Seconds until a server that says nothing is given up."""
PATIENCE = 600.0
"""Seconds that a server may be away while a run is followed."""
PAUSE = 10.0
"""Seconds between two questions about a run."""
PARTS = re.compile(r"root|executor|.*-driver|.*-driver-\d+")
"""What the server lists beside the tasks of a pipeline: the pods that start them, and the run itself."""


class ServerError(AnymalError):
    """The API server cannot be used, or refused."""


class Unanswered(ServerError):
    """It did not answer, or was in trouble itself: the same request may succeed later."""


@dataclass(frozen=True)
class Progress:
    """A run as the server describes it."""

    state: str
    tasks: dict[str, str]
    """Task -> its state, for those that have begun."""
    errors: tuple[str, ...]


class Server:
    """The API server that the environment names.

    Raises:
        ServerError: if it is not named, cannot be reached or does not take the credentials.
    """

    def __init__(self) -> None:
        socket.setdefaulttimeout(TIMEOUT)  # kfp's client sets none
        self._endpoint = os.environ.get(ENDPOINT, "").rstrip("/")
        if not re.match(r"https?://[^/]", self._endpoint):
            raise ServerError(f"{ENDPOINT} = {self._endpoint or 'not set'}: names no server; set it to the address of Kubeflow Pipelines, "
                              "such as https://HOST/pipeline or, with a forwarded port, http://localhost:8080")
        self._namespace = os.environ.get(NAMESPACE)
        self._client = self._connected()

    def _connected(self) -> Any:
        """kfp's client, once the server has answered."""
        import kfp_server_api
        from kfp.client import Client, ServiceAccountTokenVolumeCredentials

        token, file, authority = os.environ.get(TOKEN, "").strip(), os.environ.get(TOKEN_FILE), os.environ.get(CA_FILE)
        for name, path in ((TOKEN_FILE, file), (CA_FILE, authority)):
            if path is not None and not os.access(path, os.R_OK):
                raise ServerError(f"{name} = {path}: cannot be read; correct the path, or remove the variable")
        # The client's constructor asks for the server's health five times with pauses; so what is wrong is found out before.
        configuration = kfp_server_api.Configuration(host=self._endpoint)
        configuration.ssl_ca_cert = authority
        if secret := Path(file).read_text(encoding="utf-8").strip() if file else token:
            configuration.api_key, configuration.api_key_prefix = {"authorization": secret}, {"authorization": "Bearer"}
        with self._explained("asked how it is"):
            health = kfp_server_api.HealthzServiceApi(kfp_server_api.ApiClient(configuration)).healthz_service_get_healthz()
        if health.multi_user and not self._namespace:
            raise ServerError(f"{NAMESPACE}: not set, and {self._endpoint} has several users; set it to the namespace that the run belongs to")
        with warnings.catch_warnings(), self._explained("asked how it is"):
            warnings.simplefilter("ignore", FutureWarning)
            return Client(host=self._endpoint, existing_token=None if file else token or None, ssl_ca_cert=authority,
                          credentials=ServiceAccountTokenVolumeCredentials(file) if file else None,
                          **({"namespace": self._namespace} if self._namespace else {}))

    def start(self, package: Path, arguments: Mapping[str, Any], *, experiment: str, name: str, pipeline_root: str | None,
              service_account: str) -> str:
        """Start a run of a compiled pipeline in an experiment, which is made if it is not there.

        Returns:
            The run's id.

        Raises:
            ServerError: if the server refuses it.
        """
        # Both calls print links of their own.
        with self._explained(f"asked for the experiment '{experiment}'"), contextlib.redirect_stdout(io.StringIO()):
            found = self._client.create_experiment(experiment, namespace=self._namespace).experiment_id
        if not found:
            raise ServerError(f"{ENDPOINT} = {self._endpoint}: answers, but not as Kubeflow Pipelines does (perhaps with a log-in page); correct the "
                              f"address, or set {TOKEN_FILE}")
        with self._explained(f"sent the run '{name}'"), contextlib.redirect_stdout(io.StringIO()):
            run = self._client.run_pipeline(found, name, str(package), dict(arguments), pipeline_root=pipeline_root, service_account=service_account)
        return str(run.run_id)

    def link(self, run: str) -> str:
        """The page of a run."""
        return f"{os.environ.get('KF_PIPELINES_UI_ENDPOINT', self._endpoint).rstrip('/')}/#/runs/details/{run}"

    def progress(self, run: str) -> Progress:
        """How far a run is.

        Raises:
            Unanswered: if the server is away.
            ServerError: if it refuses to say.
        """
        with self._explained(f"asked for the run {run}"):
            found = self._client.get_run(run)
        details = (found.run_details and found.run_details.task_details) or []
        tasks = {detail.display_name: str(detail.state) for detail in details if detail.display_name and not PARTS.fullmatch(detail.display_name)}
        messages = [error.message for error in (found.error, *(detail.error for detail in details)) if error is not None and error.message]
        return Progress(str(found.state), tasks, tuple(dict.fromkeys(messages)))

    @contextlib.contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        """A sentence for what kfp's client raises."""
        import kfp_server_api
        import urllib3

        logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns of each attempt
        try:
            yield
        except kfp_server_api.ApiException as error:
            kind = Unanswered if not error.status or error.status >= 500 else ServerError
            raise kind(f"{ENDPOINT} = {self._endpoint}: {doing}, it answered {_answer(error)}") from error
        except urllib3.exceptions.HTTPError as error:
            raise Unanswered(f"{ENDPOINT} = {self._endpoint}: {doing}, it did not answer; check the address, the network and the server") from error
        except ValueError as error:  # two experiments of one name, or an answer of another form
            text = ' '.join(str(error).split())
            raise ServerError(f"{ENDPOINT} = {self._endpoint}: {doing}, its answer cannot be used: {text}") from error


def _answer(error: Any) -> str:
    """What the server said, and what can be done about it."""
    remedies = {
        401: f"401: not logged in; renew the token in {TOKEN_FILE} (or {TOKEN})",
        403: f"403: not allowed; use a token that may create runs in the namespace {os.environ.get(NAMESPACE, '')}".rstrip(),
        404: f"404: there is no such thing; correct {ENDPOINT} (Kubeflow's own entrance has /pipeline at its end)",
    }
    if error.status in remedies:
        return remedies[error.status]
    if not error.status:
        return f"nothing: no trusted connection; check {CA_FILE} and the address"
    try:
        said = json.loads(error.body)
        text = said.get("message") or said.get("error") or error.reason
    except (ValueError, TypeError, AttributeError):
        text = error.reason
    return f"{error.status}: {' '.join(str(text).split())[:300]}"


def follow(server: Server, run: str, *, patience: float = PATIENCE, say: Callable[[str], None] = print) -> None:
    """Tell what becomes of a run's tasks until it is over.

    Args:
        patience: seconds that the server may be away.

    Raises:
        AnymalError: if the run failed or was stopped; the message names the tasks that failed.
        ServerError: if the server stays away; the run goes on.
    """
    before: dict[str, str] = {}
    heard = time.monotonic()
    while True:
        try:
            found = server.progress(run)
            heard = time.monotonic()
        except Unanswered as error:
            if time.monotonic() - heard > patience:
                raise Unanswered(f"{error}; the run itself goes on: {server.link(run)}") from error
            time.sleep(PAUSE)
            continue
        for task, state in found.tasks.items():
            if before.get(task) != state:
                ended = sum(other in FINISHED for other in found.tasks.values())
                say(f"{task}: {state.lower()} ({ended} of {len(found.tasks)} begun tasks ended)")
        before = found.tasks
        if found.state in FINISHED:
            break
        time.sleep(PAUSE)
    if found.state != "SUCCEEDED":
        failed = [task for task, state in found.tasks.items() if state == "FAILED"]
        words = [f"tasks that failed: {', '.join(failed)}"] if failed else []
        words += [" ".join(message.split())[:300] for message in found.errors[:3]]
        raise AnymalError(f"the run ended as {found.state.lower()}{': ' if words else ''}{'; '.join(words)}; its pages and logs: {server.link(run)}")
