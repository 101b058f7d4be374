"""A stand-in for a cluster with Kubeflow Trainer: an HTTP server on the loopback that answers the calls of Kubeflow's SDK, refuses what Trainer's
schemas do not have, and runs each node of a TrainJob as a process of this machine. It schedules nothing, restarts nothing and mounts nothing."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kubeflow_trainer_api.models import TrainerV1alpha1TrainingRuntime, TrainerV1alpha1TrainJob
from ruamel.yaml import YAML

from pipelines.servers import free_port

ROOT = Path(__file__).parent.parent
NAMESPACE = "anymal"
TRAINER = "/apis/trainer.kubeflow.org/v1alpha1"
NOW = "2026-01-01T00:00:00Z"
Object = dict[str, Any]


def runtime() -> Object:
    """The TrainingRuntime of the manifests, as it lies in the cluster."""
    document: Object = YAML(typ="safe", pure=True).load((ROOT / "manifests" / "base" / "training.yaml").read_text(encoding="utf-8"))
    document["metadata"]["namespace"] = NAMESPACE
    assert TrainerV1alpha1TrainingRuntime.from_dict(copy.deepcopy(document)).to_dict() == document
    return document


class Running:
    """A TrainJob and its processes, one a node."""

    def __init__(self, document: Object, folder: Path) -> None:
        self.document, self.deleted = document, False
        trainer, node = document["spec"]["trainer"], runtime()["spec"]["template"]["spec"]["replicatedJobs"][0]
        (container,) = node["template"]["spec"]["template"]["spec"]["containers"]
        # Kubernetes fills in $(NAME) and takes $$ for $.
        program, *words = trainer.get("command", container["command"]) + [word.replace("$$(", "$(") for word in trainer.get("args", [])]
        assert program == "torchrun"
        argv = [sys.executable, "-m", "torch.distributed.run", *words]
        environment = os.environ | {entry["name"]: entry["value"] for entry in trainer.get("env", [])} | {
            "PET_NNODES": str(trainer["numNodes"]), "PET_NPROC_PER_NODE": "auto", "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
        self.logs = [folder / f"{document['metadata']['name']}-{number}.log" for number in range(trainer["numNodes"])]
        self.processes = []
        for number, path in enumerate(self.logs):
            with path.open("wb") as log:
                self.processes.append(subprocess.Popen(argv, env=environment | {"PET_NODE_RANK": str(number)}, stdout=log, stderr=log))

    @property
    def alive(self) -> bool:
        return any(process.poll() is None for process in self.processes)

    def pods(self) -> list[Object]:
        """As the API lists them."""
        name = self.document["metadata"]["name"]
        return [{
            "metadata": {"name": f"{name}-node-0-{number}-x", "namespace": NAMESPACE, "labels": {
                "jobset.sigs.k8s.io/jobset-name": name, "jobset.sigs.k8s.io/replicatedjob-name": "node",
                "batch.kubernetes.io/job-completion-index": str(number)}},
            "spec": {"containers": [{"name": "node", "image": "anymal-train"}]},
            "status": {"phase": "Running" if process.poll() is None else "Failed" if process.returncode else "Succeeded"},
        } for number, process in enumerate(self.processes)]

    def described(self) -> Object:
        """The object with its status."""
        document = copy.deepcopy(self.document)
        failed = [process for process in self.processes if process.poll()]
        if failed or not self.alive:
            kind = "Failed" if failed else "Complete"
            document["status"] = {"conditions": [{"type": kind, "status": "True", "reason": "x", "message": "x", "lastTransitionTime": NOW}]}
        return document

    def end(self, number: int) -> None:
        """Send a signal to all nodes that run."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)


class TrainerServer:
    """The server; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.calls: list[str] = []
        self.created: list[Object] = []
        self.jobs: dict[str, Running] = {}
        self.applied = True
        """Whether the manifests are there."""
        self._folder = folder
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                """Tests look at `calls`."""

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = urlsplit(self.path)
                owner.calls.append(f"{self.command} {parts.path}")
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                status, answer = owner.answer(self.command, parts.path, query, json.loads(body) if body else None)
                self.send_response(status)
                self.end_headers()
                for chunk in [json.dumps(answer).encode()] if isinstance(answer, dict) else answer:
                    self.wfile.write(chunk)
                    self.wfile.flush()

            do_GET = do_POST = do_DELETE = _serve

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        uri = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "test", "clusters": [{"name": "test", "cluster": {"server": uri}}],
            "users": [{"name": "test", "user": {}}], "contexts": [{"name": "test", "context": {
                "cluster": "test", "user": "test", "namespace": NAMESPACE}}]}))

    def __enter__(self) -> TrainerServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for job in self.jobs.values():
            job.end(signal.SIGKILL)
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, query: dict[str, str], body: Object | None) -> tuple[int, Any]:
        """Status and content of an answer: an object, or the blocks of a log."""
        for name, job in list(self.jobs.items()):
            if job.deleted and not job.alive:
                del self.jobs[name]
        jobs = f"{TRAINER}/namespaces/{NAMESPACE}/trainjobs"
        pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
        if (method, path) == ("GET", f"{TRAINER}/namespaces/{NAMESPACE}/trainingruntimes/anymal-torch") and self.applied:
            return 200, runtime()
        if (method, path) == ("POST", jobs) and body is not None:
            return self._create(body)
        if path.startswith(f"{jobs}/") and (job := self.jobs.get(path.rpartition("/")[2])) is not None:
            if method == "DELETE":
                job.deleted = True
                job.end(signal.SIGTERM)
            return 200, job.described()
        if (method, path) == ("GET", pods):
            named = re.search(r"jobset\.sigs\.k8s\.io/jobset-name=([a-z0-9-]+)", query["labelSelector"])
            found = self.jobs.get(named[1]) if named else None
            return 200, {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": found.pods() if found is not None else []}
        if method == "GET" and (log := re.fullmatch(rf"{pods}/([a-z0-9-]+)-node-0-(\d+)-x/log", path)) and log[1] in self.jobs:
            job, number = self.jobs[log[1]], int(log[2])
            return 200, _read(job.logs[number], job.processes[number], follow=query.get("follow") == "True")
        code = 403 if "/clustertrainingruntimes/" in path else 404  # the role is one of the namespace
        return code, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": f"{method} {path}: no", "code": code}

    def _create(self, body: Object) -> tuple[int, Object]:
        name = body["metadata"]["name"]
        if problem := refused(body):
            return 422, {"kind": "Status", "message": problem, "code": 422}
        if name in self.jobs:
            return 409, {"kind": "Status", "message": f'trainjobs "{name}" already exists', "code": 409}
        document = body | {"metadata": body["metadata"] | {"namespace": NAMESPACE, "creationTimestamp": NOW}}
        self.created.append(body)
        self.jobs[name] = Running(document, self._folder)
        return 201, document


def refused(body: Object) -> str | None:
    """What Kubeflow Trainer has against a TrainJob: its schema, and rules of its webhook that a job of ours could break."""
    try:
        same = TrainerV1alpha1TrainJob.from_dict(copy.deepcopy(body)).to_dict()
    except ValueError as error:
        return str(error)
    spec, known = body["spec"], runtime()["spec"]["template"]["spec"]["replicatedJobs"][0]
    patched = [job for patch in spec.get("runtimePatches", []) for job in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]]
    volumes = {volume["name"] for job in patched for volume in job["template"]["spec"]["template"]["spec"].get("volumes", [])}
    rules = {
        "its keys change on the way through Kubeflow Trainer's model": same == body,
        "metadata.name: too long for the names of its pods": re.fullmatch(r"[a-z]([a-z0-9-]{0,40}[a-z0-9])?", body["metadata"]["name"]),
        "spec.runtimeRef: there is no such runtime": spec["runtimeRef"].get("name") == "anymal-torch",
        "spec.trainer.env: is reserved for the torch plugin": not any(entry["name"].startswith("PET_") for entry in spec["trainer"].get("env", [])),
        "spec.runtimePatches: the runtime has no such job": all(job["name"] == known["name"] for job in patched),
        "spec.runtimePatches: nothing mounts such a volume":
            volumes <= {volume["name"] for volume in known["template"]["spec"]["template"]["spec"]["volumes"]},
    }
    return next((rule for rule, kept in rules.items() if not kept), None)


def _read(path: Path, process: subprocess.Popen[bytes], *, follow: bool) -> Iterator[bytes]:
    """A log; with `follow`, until its process ends."""
    with path.open("rb") as stream:
        while True:
            ended = process.poll() is not None
            if block := stream.read():
                yield block
            elif ended or not follow:
                return
            else:
                time.sleep(0.05)
