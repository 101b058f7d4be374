"""Where and with what the stages run on a cluster: the section `kubeflow` of a profile.

No stage reads it and no result depends on it: pipelines turn it into resources, mounts and retries when they are compiled.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from anymal.config import check
from anymal.errors import ConfigError

SECTION = "kubeflow"

_MEMORY = re.compile(r"[1-9][0-9]*(Ki|Mi|Gi|Ti|Pi|K|M|G|T|P)?")
_CPU = re.compile(r"([1-9][0-9]*m?|[0-9]+\.[0-9]*[1-9][0-9]*)")
_NAME = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"
_LABEL = r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$"


def _memory(value: str) -> str:
    if not _MEMORY.fullmatch(value):
        raise ValueError("is no amount of memory; write it as Kubernetes does, such as 512Mi or 64Gi")
    return value


def _cpu(value: str) -> str:
    if not _CPU.fullmatch(value):
        raise ValueError("is no number of CPU cores; write it as Kubernetes does, such as 500m or 16")
    return value


def in_bytes(memory: str) -> int:
    """Bytes of an amount of memory as Kubernetes writes it: `512Mi`, `64Gi`, `1G`."""
    number, unit = re.fullmatch(r"([0-9]+)([KMGTP]?)(i?)", memory).group(1, 2)  # type: ignore[union-attr]
    return int(number) * (1024 if memory.endswith("i") else 1000) ** " KMGTP".index(unit or " ")


Memory = Annotated[str, AfterValidator(_memory)]
Cpu = Annotated[str, AfterValidator(_cpu)]
Name = Annotated[str, Field(pattern=_NAME)]
"""Of a Kubernetes object."""
Label = Annotated[str, Field(pattern=_LABEL)]
"""Key of a label, a taint or a resource, with or without a domain before it."""
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""Name of an environment variable."""


class _Settings(BaseModel):
    # A YAML 16 is as good a quantity as "16".
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)


class Toleration(_Settings):
    """A taint of nodes that a pod may run on all the same."""

    key: Label
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    """For the operator Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """All effects if null."""

    @model_validator(mode="after")
    def _value_if_equal(self) -> Self:
        if (self.value is not None) != (self.operator == "Equal"):
            raise ValueError(f"operator {self.operator} {'needs a' if self.operator == 'Equal' else 'takes no'} value")
        return self


class Resources(_Settings):
    """What the pod of a stage asks for."""

    cpu: Cpu
    """Cores requested. There is no limit: idle cores of the node may be used."""
    memory: Memory
    """Requested, and the limit. What lies in shared memory counts as well."""
    gpus: int = Field(ge=0)
    """On each node."""
    gpu: Label
    """What the GPU resource is called, such as nvidia.com/gpu."""
    gpu_memory: Memory | None
    """What one GPU holds: `preflight` plans training stages against it; null plans nothing."""
    shared_memory: Memory | None
    """Size of /dev/shm, which data loaders and NCCL use; null leaves the container engine's 64 MB."""
    node_selector: dict[Label, str]
    """Labels that a node must have."""
    tolerations: list[Toleration]
    """Taints that a node may have."""
    secrets: dict[Name, dict[str, Variable]]
    """Secret -> its key -> environment variable. The secrets must be in the namespace; `preflight` checks that the variables are set."""
    nodes: int = Field(ge=1)
    """Nodes that train together, each with these resources."""
    processes: int = Field(ge=1)
    """Training processes on each node; one for each GPU, as a rule."""

    @model_validator(mode="after")
    def _a_gpu_per_process(self) -> Self:
        if self.gpus and self.processes > self.gpus:
            raise ValueError(f"processes = {self.processes} is more than gpus = {self.gpus}; lower it, or ask for more GPUs")
        return self

    @property
    def distributed(self) -> bool:
        """Whether several processes train together, as a TrainJob of Kubeflow Trainer."""
        return self.nodes * self.processes > 1


class Retries(_Settings):
    """How often a task that failed is tried again."""

    count: int = Field(ge=0, le=10)
    wait_seconds: int = Field(gt=0, le=3600)
    """Before the first retry."""
    factor: float = Field(ge=1)
    """By which each further wait is longer."""
    longest_wait_seconds: int = Field(gt=0, le=3600)


class Workspace(_Settings):
    """The volume that all pods of a run share."""

    claim: Name
    """PersistentVolumeClaim; it must be there (manifests/base/workspace.yaml)."""
    path: str = Field(pattern=r"^/[A-Za-z0-9/_.-]*[A-Za-z0-9]$")
    """Where pods see it."""


class Cluster(_Settings):
    """The section `kubeflow`."""

    service_account: Name
    """Of the pods (manifests/base/accounts.yaml)."""
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"]
    image_pull_secrets: list[Name]
    """For a registry that asks who one is."""
    workspace: Workspace | None
    caching: bool
    """Whether a task is skipped whose component and arguments are those of an earlier one."""
    retries: Retries
    defaults: Resources
    """Of every stage."""
    stages: dict[str, dict[str, Any]]
    """Stage, or stage_modality (`align`, `align_image`) -> what differs from the defaults: mappings are merged, all else is replaced."""

    def of(self, argument: str) -> Resources:
        """What a stage asks for.

        Args:
            argument: what its section is called among a pipeline's arguments: `score`, `align_image`.

        Raises:
            ConfigError: if what its entry changes makes no sense.
        """
        tree: Mapping[str, Any] = self.defaults.model_dump()
        for name in sorted(self.stages, key=len):
            if argument == name or argument.startswith(f"{name}_"):
                tree = _merged(tree, self.stages[name])
        return check(Resources, tree, f"{SECTION}.stages.{argument}")


def cluster_of(document: Mapping[str, Any], source: str) -> Cluster:
    """The section `kubeflow` of a profile.

    Args:
        source: what the profile is called.

    Raises:
        ConfigError: naming all that is wrong with it.
    """
    if SECTION not in document:
        raise ConfigError(f"{source}: has no section '{SECTION}'; copy the one of params.yaml")
    if problems := cluster_problems(document[SECTION]):
        raise ConfigError("\n".join(problems))
    return check(Cluster, document[SECTION], SECTION)


def cluster_problems(section: object) -> list[str]:
    """All that is wrong with the section `kubeflow`."""
    from anymal.stage import load_stage, stage_names

    try:
        cluster = check(Cluster, section, SECTION)
    except ConfigError as error:
        return str(error).split("\n")
    known, problems = stage_names(), []
    for name in cluster.stages:
        stage = max((stage for stage in known if name == stage or name.startswith(f"{stage}_")), key=len, default=None)
        if stage is None or (name != stage and not load_stage(stage).per_modality):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"stages: {', '.join(known)}"
            problems.append(f"{SECTION}.stages.{name}: belongs to no stage; {hint}")
            continue
        try:
            if cluster.of(name).distributed and not load_stage(stage).distributed:
                problems.append(f"{SECTION}.stages.{name}: {stage} runs in one process; set nodes and processes to 1")
            elif cluster.of(name).distributed and cluster.workspace is None:
                problems.append(f"{SECTION}.workspace = None: {name} trains on several processes, which share their files there; "
                                "name a claim and a path")
        except ConfigError as error:
            problems += str(error).split("\n")
    if cluster.defaults.distributed:
        problems.append(f"{SECTION}.defaults: nodes = {cluster.defaults.nodes}, processes = {cluster.defaults.processes}: most stages run in one "
                        "process; set both to 1 here, and more for those that train")
    return problems


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A tree with another laid over it."""
    merged = dict(base)
    for name, value in changes.items():
        below = merged.get(name)
        merged[name] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
