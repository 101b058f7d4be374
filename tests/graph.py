"""The graph as its writings have it: the runs of dvc.yaml, the tasks of the compiled pipeline, and the code that a run depends on."""

from __future__ import annotations

import ast
import functools
import importlib
import itertools
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anymal.__main__ import cli
from anymal.cluster import cluster_of
from anymal.config import read_document
from anymal.model.modalities import encoder_factory
from anymal.profile import SETTINGS
from anymal.stage import Stage, load_stage

ROOT = Path(__file__).parent.parent
PROFILES = ("params.yaml", "params.production.yaml")
MACHINERY = {"anymal/__init__.py", "anymal/__main__.py", "anymal/cluster.py", "anymal/config.py", "anymal/errors.py", "anymal/executor.py",
             "anymal/profile.py", "anymal/progress.py", "anymal/stage.py", "anymal/tracking/__init__.py",
             "anymal/tracking/facts.py", "anymal/tracking/recorder.py", "anymal/tracking/store.py", "anymal/tracking/warm.py"}
"""What runs a stage or shows its progress; a change there makes no result obsolete."""
TEMPLATES = (".html", ".md", ".yaml")
"""Files beside a module that it fills in or reads."""
INTERPOLATION = re.compile(r"\$\{([a-z_.]+)\}")


def command(name: str) -> str:
    """A stage's or port's name as it is typed."""
    return name.replace("_", "-")


def parse(words: list[str]) -> dict[str, Any]:
    """The options of a stage's command line, by parameter name."""
    context = cli.make_context("anymal", list(words), resilient_parsing=False)
    subcommand = cli.get_command(context, words[0])
    assert subcommand is not None, words[0]
    return dict(subcommand.make_context(words[0], list(words[1:]), parent=context).params)


@dataclass(frozen=True)
class Run:
    """One run of a stage: an entry of dvc.yaml, its `${…}` filled in."""

    name: str
    """As DVC calls it: `score`, `align@audio`."""
    entry: str
    """The key in dvc.yaml, which is also the component's name: `align`, `evaluate_mixed`."""
    key: str | None
    """Which of the entry's runs."""
    definition: dict[str, Any]

    @functools.cached_property
    def options(self) -> dict[str, Any]:
        """The command line as `anymal` parses it."""
        program, *words = shlex.split(self.definition["cmd"])
        assert program == "anymal", self.name
        return {"stage": words[0].replace("-", "_"), **parse(words)}

    @property
    def stage(self) -> Stage:
        """What it runs."""
        return load_stage(self.options["stage"])

    @property
    def modality(self) -> str | None:
        """What is said to `--modality`."""
        modality: str | None = self.options.get("modality")
        return modality

    @property
    def section(self) -> str:
        """Which section of a profile it takes: `score`, `align.audio`."""
        return self.stage.name if self.modality is None else f"{self.stage.name}.{self.modality}"

    @property
    def argument(self) -> str:
        """What that section is called among the pipeline's arguments."""
        return self.section.replace(".", "_")

    @property
    def place(self) -> tuple[str, str]:
        """Its task in the pipeline: component and argument."""
        return self.entry, self.argument

    def paths(self, port: str) -> list[str]:
        """The paths of a port, in order."""
        value = self.options[port]
        return [str(path) for path in (value if isinstance(value, tuple) else (value,))]

    @property
    def outputs(self) -> dict[str, str]:
        """Output port -> path."""
        return {port: self.paths(port)[0] for port in self.stage.outputs}

    @property
    def written(self) -> dict[str, dict[str, Any]]:
        """Path -> its settings, for all that dvc.yaml says it writes."""
        entries = [entry for kind in ("outs", "metrics", "plots") for entry in self.definition.get(kind, [])]
        return {path: settings for entry in entries for path, settings in (entry.items() if isinstance(entry, dict) else [(entry, {})])}


def section_of(document: Mapping[str, Any], section: str) -> Any:
    """`align.audio` of a profile."""
    found: Any = document
    for part in section.split("."):
        found = found[part]
    return found


def expand(entries: Mapping[str, Any]) -> list[Run]:
    """The runs of dvc.yaml's stages: `foreach` and `matrix` entries are repeated with `${key}` and `${item…}` filled in."""
    runs = []
    for name, entry in entries.items():
        if "foreach" in entry:
            items = entry["foreach"]
            named = items.items() if isinstance(items, dict) else [(str(item), item) for item in items]
            runs += [Run(f"{name}@{key}", name, key, fill(entry["do"], {"key": key, "item": item})) for key, item in named]
        elif "matrix" in entry:
            rest = {part: value for part, value in entry.items() if part != "matrix"}
            for values in itertools.product(*entry["matrix"].values()):
                key = "-".join(values)
                runs.append(Run(f"{name}@{key}", name, key, fill(rest, {"key": key, "item": dict(zip(entry["matrix"], values, strict=True))})))
        else:
            runs.append(Run(name, name, None, entry))
    return runs


def fill(tree: Any, values: Mapping[str, Any]) -> Any:
    """A tree with its `${…}` filled in; one that is not known is an error."""
    if isinstance(tree, dict):
        return {fill(name, values): fill(child, values) for name, child in tree.items()}
    if isinstance(tree, list):
        return [fill(child, values) for child in tree]
    return INTERPOLATION.sub(lambda found: str(section_of(values, found[1])), tree) if isinstance(tree, str) else tree


@functools.cache
def runs() -> dict[str, Run]:
    """Name -> run, in the order of dvc.yaml."""
    return {run.name: run for run in expand(read_document(ROOT / "dvc.yaml")["stages"])}


def producers() -> dict[str, tuple[str, str]]:
    """Path -> the run that writes it and the port."""
    return {path: (run.name, port) for run in runs().values() for port, path in run.outputs.items()}


@functools.cache
def document_of(name: str) -> dict[str, Any]:
    """One of the two profiles; not to be changed by its callers."""
    return read_document(ROOT / name)


@functools.cache
def profile_of(name: str) -> dict[str, Any]:
    """The sections of stages of one of the two profiles; not to be changed by its callers."""
    return {section: part for section, part in document_of(name).items() if section not in SETTINGS}


# --- code
def closure(starts: Iterable[str], root: Path = ROOT) -> set[str]:
    """Files of `anymal` that these run, themselves included: what they import at any depth, and the templates that they name.

    Imports inside functions count, those for type checkers only do not; so does a package's `__init__.py`, unless there is nothing in it.
    The machinery is not looked into, and not among the files.
    """
    seen: set[str] = set()
    pending = list(starts)
    while pending:
        file = pending.pop()
        if file in seen or file in MACHINERY:
            continue
        seen.add(file)
        if file.endswith(".py"):
            pending += _named(root, file)
    return seen


@functools.cache
def _named(root: Path, file: str) -> list[str]:
    """What one module imports, or names as a template or a folder of data beside it."""
    tree = ast.parse((root / file).read_text(encoding="utf-8"))
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    skipped = {id(inner) for block in blocks for inner in ast.walk(block)}
    found = [Path(file).parent / "__init__.py"]
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for place in (Path(*name.split(".")) for name in names if name.startswith("anymal.")):
            found += [place.with_suffix(".py"), *(folder / "__init__.py" for folder in (place, *place.parents))]
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(TEMPLATES) and "/" not in node.value:
            found.append(Path(file).with_name(node.value))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[a-z_]+", node.value):
            folder = Path(file).with_name(node.value)  # of data, such as texts; a package has modules
            if (root / folder).is_dir() and not (root / folder / "__init__.py").exists():
                found += [folder / path.relative_to(root / folder) for path in sorted((root / folder).rglob("*"))]
    return [path.as_posix() for path in found if (root / path).is_file() and (root / path).stat().st_size > 0]


def needed_code(run: Run, profile: Mapping[str, Any]) -> set[str]:
    """All code that a run depends on: its stage's, and that of the encoders which its section of the profile makes it load."""
    return closure([f"anymal/stages/{run.stage.name}.py", *(module_of(kind) for kind in loaded_kinds(run, profile))])


def loaded_kinds(run: Run, profile: Mapping[str, Any]) -> list[str]:
    """Kinds of encoders that a run makes or loads; a kind that is built on another names it in its settings."""
    if run.stage.name == "pretrain_encoder":
        return [section_of(profile, run.section)["kind"]]
    if run.stage.name == "evaluate_safety":
        return [profile["encode"]["image"]["kind"]]
    if run.stage.name not in {"encode", "evaluate", "benchmark"}:
        return []
    config = section_of(profile, run.section)
    if run.stage.name == "benchmark":
        read = list(profile["encode"])
    else:
        read = [config["modality"]] if config.get("mixed") is None else [part["modality"] for part in config["mixed"]["parts"]]
    sections = [profile["encode"][modality] for modality in read]
    return [kind for section in sections for kind in (section["kind"], section["settings"].get("image_kind")) if kind is not None]


def module_of(kind: str) -> str:
    """The file that an encoder's class is in."""
    return f"{encoder_factory(kind).__module__.replace('.', '/')}.py"


# --- Kubeflow
COMMANDS = {"gate", "outcome", "preflight", "promote", "promote_guard"}
"""Components of commands; all others run stages."""
COMPONENTS = sorted(path.stem for path in (ROOT / "components").glob("*.py") if path.stem not in {"__init__", "images", *COMMANDS})
ON_NODES = [name for name in COMPONENTS if name.endswith("_on_nodes")]
"""Those that run their stage as a job of several processes; no run of dvc.yaml does."""


def component(name: str) -> Any:
    """A component by its file's name."""
    return getattr(importlib.import_module(f"components.{name}"), name)


def component_ports(name: str) -> dict[str, list[str]]:
    """Input port of the stage -> the component's inputs that feed it, in order: `PORT`, or several `PORT_suffix`."""
    spec = component(name).component_spec
    ports = component_stage(name).inputs
    fed: dict[str, list[str]] = {port: [] for port in ports}
    for given in spec.inputs:
        if given not in {"config", "job"}:
            port = max((port for port in ports if given == port or given.startswith(f"{port}_")), key=len, default=None)
            assert port is not None, f"{name}.{given} feeds no port of {component_stage(name).name}"
            fed[port].append(given)
    return fed


def component_stage(name: str) -> Stage:
    """The stage that a component runs."""
    program, *words = component(name).component_spec.implementation.container.command
    assert program == "anymal"
    assert words[:-1] == (["trainjob"] if name in ON_NODES else [])
    return load_stage(words[-1].replace("-", "_"))


@functools.cache
def pipeline_spec() -> dict[str, Any]:
    """The compiled training pipeline as JSON, without its exit task, so that all tasks lie at the root."""
    from google.protobuf import json_format

    from pipelines.tasks import build
    from pipelines.training import PLAN

    pipeline = build(PLAN, cluster_of(document_of("params.yaml"), "params.yaml"), outcome=False)
    spec: dict[str, Any] = json_format.MessageToDict(pipeline.pipeline_spec)
    return spec


@dataclass(frozen=True)
class Task:
    """One task of the pipeline."""

    name: str
    definition: dict[str, Any]
    specification: dict[str, Any]
    """Of its component."""
    container: dict[str, Any]

    @property
    def argument(self) -> str:
        """The pipeline's argument that is its config."""
        (parameter,) = self.definition["inputs"]["parameters"].values()
        found: str = parameter["componentInputParameter"]
        return found

    @property
    def component(self) -> str:
        """Name of the component's file (kfp numbers what comes more than once)."""
        return re.sub(r"-\d+$", "", self.specification["executorLabel"].removeprefix("exec-")).replace("-", "_")


@functools.cache
def tasks() -> dict[tuple[str, str], Task]:
    """Component and the pipeline's argument that is its config -> task; importers and commands are left out."""
    spec = pipeline_spec()
    found = []
    for name, definition in spec["root"]["dag"]["tasks"].items():
        specification = spec["components"][definition["componentRef"]["name"]]
        container = spec["deploymentSpec"]["executors"][specification["executorLabel"]].get("container")
        if container is not None and container["command"][1] not in COMMANDS:
            found.append(Task(name, definition, specification, container))
    by_place = {(task.component, task.argument): task for task in found}
    assert len(by_place) == len(found), "two tasks run the same component with the same section"
    return by_place
