"""What every task of every pipeline gets, and how every pipeline begins and ends."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import Parameter, Signature
from typing import Any

from kfp import dsl, kubernetes

from anymal import profile
from anymal.cluster import Cluster, Resources
from anymal.config import without_nulls
from anymal.stage import stage_names
from components.align_on_nodes import align_on_nodes
from components.finetune_on_nodes import finetune_on_nodes
from components.outcome import outcome as outcome_component
from components.preflight import preflight as preflight_component

SETTINGS = "anymal"
"""ConfigMap of the namespace that says where the shared MLflow server and S3 are; without it a stage's records end with its pod."""
SETTING_KEYS = ("MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")
SHARED_MEMORY = "/dev/shm"  # noqa: S108  (where PyTorch and NCCL look for it)
RUN_ID = "metadata.labels['pipeline/runid']"
"""Kubeflow's id of the run, at each of its pods. In a command line, the placeholder for it stays as it is."""
ON_NODES = {"align": align_on_nodes, "finetune": finetune_on_nodes}
"""Component -> the one that trains on several processes, as a TrainJob."""


@dataclass(frozen=True)
class Plan:
    """A pipeline before it is built for a cluster."""

    name: str
    description: str
    sections: Mapping[str, str]
    """Argument -> section of the profile: `align_image` -> `align.image`."""
    uris: Mapping[str, type[dsl.Artifact]]
    """Argument -> type of the artifact whose URI it is."""
    parts: Callable[["Graph"], None]
    """Adds the tasks."""
    shares: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Argument -> which share (from 0) of its section's work it asks for, and of how many: its section gets that as the knob `part`."""


@dataclass
class Graph:
    """A pipeline while it is being built."""

    sections: Mapping[str, str]
    """As the plan has them."""
    given: Mapping[str, Any]
    """Argument -> its value when the pipeline runs."""
    cluster: Cluster
    made: dict[str, Any]
    """What is there so far: `assets`, `shards_image`, … -> artifact, imported or an output of a task."""
    first: Any = None
    """The task that all others wait for."""

    def run(self, component: Any, argument: str, *, note: str | None = None, **inputs: Any) -> Any:
        """Add the task of a stage; its config is the argument of that name, and its resources are those of the section which that holds.

        Args:
            note: to be shown behind its name.
            inputs: the component's inputs -> artifacts.
        """
        label = label_of(component, self.sections[argument])
        return self._added(component, argument, inputs).set_display_name(label if note is None else f"{label} ({note})")

    def _added(self, component: Any, argument: str, inputs: Mapping[str, Any]) -> Any:
        resources = self.cluster.of(argument_of(self.sections[argument]))
        if not resources.distributed:
            return settle(component(config=self.given[argument], **inputs), self.cluster, resources)
        workspace = self.cluster.workspace
        assert workspace is not None  # `cluster_problems` refuses a distributed stage without one
        job = without_nulls(resources.model_dump(mode="json")) | {"workspace": workspace.path}
        # The task itself only waits for the job, which asks for the stage's nodes and GPUs.
        waiting = self.cluster.defaults.model_copy(update={"secrets": resources.secrets})
        return settle(ON_NODES[component.name](config=self.given[argument], job=job, **inputs), self.cluster, waiting)


def settle(task: Any, cluster: Cluster, resources: Resources, *, once: bool = False) -> Any:
    """Give a task its resources, settings, secrets, mounts, retries and caching.

    Args:
        once: the task is the first or the last: neither tried again nor skipped for an earlier one's sake, and started even where a secret is
            missing: `preflight` says so, while other pods would wait for it for ever.
    """
    task.set_cpu_request(resources.cpu).set_memory_request(resources.memory).set_memory_limit(resources.memory)
    if resources.gpus:
        task.set_accelerator_type(resources.gpu).set_accelerator_limit(resources.gpus)
    task.set_caching_options(cluster.caching and not once)
    retries = cluster.retries
    if retries.count and not once:
        task.set_retry(retries.count, f"{retries.wait_seconds}s", retries.factor, f"{retries.longest_wait_seconds}s")
    kubernetes.use_config_map_as_env(
        task, config_map_name=SETTINGS, config_map_key_to_env={key: key for key in SETTING_KEYS}, optional=True)
    for variable in ("ANYMAL_GRAPH_RUN", "KFP_RUN_ID"):
        kubernetes.use_field_path_as_env(task, env_name=variable, field_path=RUN_ID)
    for secret, variables in resources.secrets.items():
        kubernetes.use_secret_as_env(task, secret_name=secret, secret_key_to_env=dict(variables), optional=once)
    kubernetes.set_image_pull_policy(task, cluster.image_pull_policy)
    if cluster.image_pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(cluster.image_pull_secrets))
    kubernetes.set_security_context(task, run_as_non_root=True)
    for label, value in resources.node_selector.items():
        kubernetes.add_node_selector(task, label_key=label, label_value=value)
    for taint in resources.tolerations:
        kubernetes.add_toleration(task, **taint.model_dump(exclude_none=True))
    if resources.shared_memory is not None:
        kubernetes.empty_dir_mount(task, volume_name="shared-memory", mount_path=SHARED_MEMORY, medium="Memory", size_limit=resources.shared_memory)
    if cluster.workspace is not None:
        kubernetes.mount_pvc(task, pvc_name=cluster.workspace.claim, mount_path=cluster.workspace.path)
    return task


def build(plan: Plan, cluster: Cluster, *, outcome: bool = True) -> Any:
    """The pipeline of a plan for a cluster: `preflight`, then the parts; and last, whatever happened, `outcome`.

    Args:
        outcome: without it the pipeline ends with its last part; kfp's local runners cannot tell a task how the others ended.
    """
    arguments: dict[str, Any] = dict.fromkeys([*plan.uris, *plan.sections], str)

    def pipeline(*values):
        given = dict(zip(arguments, values, strict=True))
        if not outcome:
            plan.parts(_begun(plan, given, cluster))
            return
        last = settle(outcome_component(), cluster, cluster.defaults, once=True)
        with dsl.ExitHandler(last, name="graph"):
            plan.parts(_begun(plan, given, cluster))

    pipeline.__signature__ = Signature([  # type: ignore[attr-defined]
        Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, annotation=kind) for name, kind in arguments.items()])
    return dsl.pipeline(name=f"anymal-{plan.name}", description=plan.description)(pipeline)


def _begun(plan: Plan, given: Mapping[str, Any], cluster: Cluster) -> Graph:
    """Importers and the task `preflight`, which all but the lock's importer waits for."""
    secrets: dict[str, dict[str, str]] = {}
    for argument in plan.sections:
        for secret, variables in cluster.of(argument_of(plan.sections[argument])).secrets.items():
            secrets[secret] = secrets.get(secret, {}) | variables
    importers = {}
    for uri, kind in plan.uris.items():
        # Kubeflow's cache goes by an artifact's record, which an importer makes anew or finds by URI. The lock's URI has its hash in it
        # (pipelines/arguments.py); what lies behind the others may change.
        importers[uri] = dsl.importer(artifact_uri=given[uri], artifact_class=kind, reimport=uri != "lock")
    component = preflight_component(
        plan.sections, list(plan.uris), sorted({variable for variables in secrets.values() for variable in variables.values()}),
        json.dumps(cluster.model_dump(mode="json")))
    inputs = {uri: importers[uri].output if uri == "lock" else given[uri] for uri in plan.uris}
    first = component(**inputs, **{argument: given[argument] for argument in plan.sections})
    settle(first, cluster, cluster.defaults.model_copy(update={"secrets": secrets}), once=True)
    for uri, importer in importers.items():
        if uri != "lock":
            importer.after(first)
    return Graph(plan.sections, given, cluster, {uri: importer.output for uri, importer in importers.items()}, first)


def label_of(component: Any, section: str) -> str:
    """What a task is called where people see it: as in MLflow (`align.image`), or after its component (`evaluate_image_aligned.image`)."""
    own, (stage, _, modality) = component.name.replace("-", "_"), section.partition(".")
    return section if own in {stage, argument_of(section)} or not modality else f"{own}.{modality}"


def section_of(argument: str) -> str:
    """Which section of a profile an argument holds: `align_image` -> `align.image`, `curate_image` -> `curate_image`, `promote` -> `promote`."""
    known = stage_names()
    if argument in known or argument in profile.SETTINGS:
        return argument
    stage = max((name for name in known if argument.startswith(f"{name}_")), key=len)
    return f"{stage}.{argument.removeprefix(f'{stage}_')}"


def argument_of(section: str) -> str:
    """What a section is called among the arguments of pipelines."""
    return section.replace(".", "_")
