"""Where jobs (`anymal/jobs.py`) run: TrainJobs of Kubeflow Trainer, or processes of this machine. The only importer of Kubeflow's SDK."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from anymal.errors import ConfigError
from anymal.jobs import Job, JobError, State

RUNTIME = "anymal-torch"
"""The TrainingRuntime of manifests/base/training.yaml; its container runs `torchrun -m anymal` and is called `node`."""
NODE = "node"
SHARED_MEMORY_VOLUME = "shared-memory"
RUNTIMES_SECRETS = {"anymal-s3"}
"""Secrets that the runtime gives to the pods."""
PASSED_ON = ("ANYMAL_GRAPH_RUN", "ANYMAL_GIT_REVISION", "ANYMAL_TRACKING", "KFP_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID",
             "MLFLOW_TRACKING_URI")
"""Environment variables that a job gets from this process: which run of MLflow it belongs to."""
GRACE = 900.0
"""Seconds that the pods of a deleted job may take to save their state and end; the runtime gives them 600."""


class Kubernetes:
    """Kubeflow Trainer on the cluster that this pod belongs to, or that the kubeconfig names.

    Raises:
        JobError: if there is neither.
    """

    def __init__(self) -> None:
        from kubeflow.trainer import TrainerClient
        from kubernetes.config import ConfigException

        # It warns that it may not read a settings map of Trainer's own namespace, which the role does not allow.
        logging.getLogger("kubeflow").setLevel(logging.ERROR)
        try:
            self._client = TrainerClient()
        except ConfigException as error:
            raise JobError(f"no cluster: this is no pod, and there is no kubeconfig ({error}); set KUBECONFIG, "
                                "or use --backend local") from error

    def find(self, name: str) -> State | None:
        """A job; None if there is none."""
        try:
            job = self._client.get_job(name)
        except (RuntimeError, TimeoutError) as error:
            if str(error).startswith("Failed to get TrainJob:") and getattr(error.__cause__, "status", None) == 404:
                return None
            raise _explained(name, error) from error
        return State(job.status, {step.name: (step.pod_name, step.status or "Pending") for step in job.steps})

    def start(self, name: str, words: Sequence[str], job: Job, image: str | None) -> None:
        """Start a job."""
        from kubeflow.trainer import CustomTrainerContainer
        from kubeflow.trainer.options import Name, TrainerArgs, TrainerCommand

        if further := sorted(job.secrets.keys() - RUNTIMES_SECRETS):
            print(f"anymal: {name}: the SDK passes no secrets on: the job has {', '.join(further)} only if the TrainingRuntime {RUNTIME} names them",
                  file=sys.stderr)
        resources: dict[str, str | int] = {"cpu": job.cpu, "memory": job.memory} | ({job.gpu: job.gpus} if job.gpus else {})
        container = CustomTrainerContainer(image=image, num_nodes=job.nodes, resources_per_node=resources,  # type: ignore[arg-type]  # None: the runtime's
                                           env={variable: os.environ[variable] for variable in PASSED_ON if variable in os.environ})
        # The processes of a node are torchrun's to count: the SDK has no setting for them.
        command = ["torchrun", f"--nproc-per-node={job.processes}", "-m", "anymal"]
        options = [Name(name), TrainerCommand(command), TrainerArgs([_unexpanded(word) for word in words]), *_patches(job)]
        try:
            self._client.train(runtime=RUNTIME, trainer=container, options=options)
        except (RuntimeError, TimeoutError) as error:
            raise _explained(name, error) from error

    def lines(self, name: str, node: str, *, follow: bool) -> Iterator[str]:
        """What a node has printed; with `follow`, until it ends."""
        try:
            yield from self._client.get_job_logs(name, step=node, follow=follow)
        except (RuntimeError, TimeoutError) as error:
            raise _explained(name, error) from error

    def remove(self, name: str) -> None:
        """Stop a job and remove it; returns when its pods are gone: two jobs must not write the same state."""
        try:
            self._client.delete_job(name)
        except (RuntimeError, TimeoutError) as error:
            if getattr(error.__cause__, "status", None) != 404:
                raise _explained(name, error) from error
        end = time.monotonic() + GRACE
        while self.find(name) is not None or self._has_pods(name):
            if time.monotonic() > end:
                raise JobError(f"{name}: was deleted {GRACE:g} seconds ago and its pods are still there; see why with "
                               f"`kubectl -n {self._client.backend.namespace} describe pods`")
            time.sleep(2)

    def _has_pods(self, name: str) -> bool:
        from kubeflow.trainer.constants.constants import JOBSET_NAME_LABEL
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        backend = self._client.backend
        try:
            return bool(backend.core_api.list_namespaced_pod(backend.namespace, label_selector=f"{JOBSET_NAME_LABEL}={name}").items)
        except (ApiException, HTTPError) as error:
            raise _explained(name, error) from error


def _patches(job: Job) -> list[Any]:
    """What the pods of a job get besides the runtime's: where they may run, and the size of their shared memory."""
    if not (job.node_selector or job.tolerations or job.shared_memory):
        return []
    from kubeflow.trainer.options import (
        JobSetSpecPatch,
        JobSetTemplatePatch,
        JobSpecPatch,
        JobTemplatePatch,
        PodSpecPatch,
        PodTemplatePatch,
        ReplicatedJobPatch,
        RuntimePatch,
        TrainingRuntimeSpecPatch,
    )

    volumes = [] if job.shared_memory is None else [{"name": SHARED_MEMORY_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": job.shared_memory}}]
    spec = PodSpecPatch(node_selector=dict(job.node_selector) or None, volumes=volumes or None,
                        tolerations=[toleration.model_dump(exclude_none=True) for toleration in job.tolerations] or None)
    pods = JobTemplatePatch(spec=JobSpecPatch(template=PodTemplatePatch(spec=spec)))
    jobs = JobSetSpecPatch(replicated_jobs=[ReplicatedJobPatch(name=NODE, template=pods)])
    return [RuntimePatch(training_runtime_spec=TrainingRuntimeSpecPatch(template=JobSetTemplatePatch(spec=jobs)))]


def _unexpanded(word: str) -> str:
    """A word of a command line as Kubernetes takes it, which would fill in $(NAME)."""
    return word.replace("$(", "$$(")


def _explained(name: str, error: Exception) -> JobError:
    """One sentence for what the SDK raises."""
    cause = error.__cause__ or error
    status, body = getattr(cause, "status", None), getattr(cause, "body", None)
    said = ""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        said = str(json.loads(body or "")["message"])
    remedies = {403: "the service account needs the role of manifests/base/accounts.yaml", 404: "apply the manifests, and install Kubeflow Trainer",
                409: "there is a job of this name; wait until it is gone", 422: "correct what it says in the profile's section kubeflow"}
    text = " ".join((said or str(cause)).split())[:300]
    remedy = remedies.get(status or 0, "check the cluster and the network")
    if str(error).startswith("Failed to get Runtime:"):  # it is not in the namespace, and the role does not let one look into the others
        remedy = f"apply the manifests, which have the TrainingRuntime {RUNTIME}"
    what = f"{error}: " if error is not cause else ""
    return JobError(f"{name}: {what}{text}; {remedy}")


class LocalProcesses:
    """Processes of this machine, through the SDK's own backend for them; jobs end with the process that started them."""

    def __init__(self) -> None:
        from kubeflow.trainer import TrainerClient
        from kubeflow.trainer.backends.localprocess.types import LocalProcessBackendConfig

        self._client = TrainerClient(LocalProcessBackendConfig())
        self._names: set[str] = set()

    def find(self, name: str) -> State | None:
        """A job; None if there is none."""
        if name not in self._names:
            return None
        job = self._client.get_job(name)
        return State(job.status, {step.name: (step.pod_name, job.status) for step in job.steps})

    def start(self, name: str, words: Sequence[str], job: Job, image: str | None) -> None:
        """Start a job; what the job asks of a cluster, images among it, means nothing here."""
        from kubeflow.trainer import CustomTrainer

        if job.nodes != 1:
            raise ConfigError(f"--job nodes = {job.nodes}: this machine is one node; set nodes to 1")
        (runtime,) = self._client.list_runtimes()
        # The SDK makes an empty environment for each job, whose torchrun would have to be installed first: ours is started from there.
        runtime.trainer.framework = "python"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={job.processes}", "-m", "anymal", *words]
        self._client.train(runtime=runtime, trainer=CustomTrainer(func=_become, func_args={"command": command}, env=dict(os.environ)),
                           options=[_named(name)])
        self._names.add(name)

    def lines(self, name: str, node: str, *, follow: bool) -> Iterator[str]:
        """What a node has printed; with `follow`, the SDK itself prints it while it comes."""
        lines = self._client.get_job_logs(name, step=node, follow=follow)
        yield from [] if follow and list(lines) else lines

    def remove(self, name: str) -> None:
        """Stop a job, which saves its state."""
        import psutil

        # The SDK would end the shell that started torchrun, and not torchrun.
        running = [process for shell in psutil.Process().children() for process in shell.children()]
        for process in running:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        psutil.wait_procs(running, timeout=GRACE)
        self._client.delete_job(name)
        self._names.discard(name)


def _become(parameters):  # type: ignore[no-untyped-def]  # its text is all that reaches the job: nothing of this module is known there
    """Run a command in place of this process."""
    import os

    os.execv(parameters["command"][0], parameters["command"])  # noqa: S606


def _named(name: str) -> Any:
    """The option of the SDK that names a job, for any backend."""
    from kubeflow.trainer.options import Name

    return Name(name)


BACKENDS: Mapping[str, type[Kubernetes | LocalProcesses]] = {"kubernetes": Kubernetes, "local": LocalProcesses}
