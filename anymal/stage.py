"""The stage mechanism: one typed config, named input and output paths, and nothing else.

A stage is a function `x(config: XConfig, *, a_port: In, b_port: Out) -> None` in `anymal/stages/x.py`. This module finds it,
reads its config, runs it with its outputs under temporary names, renames them when it succeeded, and writes what Kubeflow's
launcher expects. It knows neither kfp nor dvc, and stages know nothing of it but `Config`, `In`, `Out` and its
marks (`resumable`, `per_modality`, `distributed`).
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import importlib
import inspect
import json
import os
import shutil
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from anymal import processes
from anymal.data.manifest import MANIFEST, sha256_of, write_manifest
from anymal.errors import AnymalError, ConfigError, DataError

if TYPE_CHECKING:
    from anymal.data.remote import Outputs

P = TypeVar("P")

In = Annotated[Path, "in"]
Ins = Annotated[tuple[Path, ...], "ins"]
"""One or more paths: the option is repeated on the command line."""
Out = Annotated[Path, "out"]

Ports = Mapping[str, Path | tuple[Path, ...]]
Places = Mapping[str, Path | str | tuple[Path | str, ...]]
"""Ports as they are given: paths, and addresses `s3://BUCKET/PREFIX` as text."""

STAGES_FOLDER = Path(__file__).parent / "stages"


class Config(BaseModel):
    """Base of every stage's knobs. Unknown keys are refused; numbers may arrive as floats (Kubeflow sends 40 as 40.0)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seed: int = Field(ge=0)


@dataclass(frozen=True)
class Stage:
    """A stage function and what its signature says."""

    name: str
    function: Callable[..., None]
    config: type[Config]
    inputs: dict[str, bool]
    """Input port name -> whether it takes several paths."""
    outputs: tuple[str, ...]
    resumable: bool
    per_modality: bool
    distributed: bool

    @property
    def summary(self) -> str:
        """First line of the stage function's docstring."""
        return (inspect.getdoc(self.function) or "").split("\n")[0]


def resumable(function: Callable[..., None]) -> Callable[..., None]:
    """Mark a stage that can go on from its own partial output when the same config and inputs come again."""
    function.resumable = True  # type: ignore[attr-defined]
    return function


def per_modality(function: Callable[..., None]) -> Callable[..., None]:
    """Mark a stage that runs once per modality: its part of a profile holds one section for each, and its config a knob `modality`."""
    function.per_modality = True  # type: ignore[attr-defined]
    return function


def distributed(function: Callable[..., None]) -> Callable[..., None]:
    """Mark a resumable stage that several processes (torchrun) may run together; the main one alone writes outputs."""
    function.distributed = True  # type: ignore[attr-defined]
    return function


def stage_names() -> list[str]:
    """Names of all stages: the modules of `anymal/stages`."""
    return sorted(path.stem for path in STAGES_FOLDER.glob("*.py") if path.stem != "__init__")


def load_stage(name: str) -> Stage:
    """Import one stage and read its ports from its signature."""
    function = getattr(importlib.import_module(f"anymal.stages.{name}"), name)
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters
    inputs: dict[str, bool] = {}
    outputs: list[str] = []
    for parameter in list(parameters.values())[1:]:
        hint = hints[parameter.name]
        if hint in (In, Ins):
            inputs[parameter.name] = hint == Ins
        elif hint == Out:
            outputs.append(parameter.name)
        else:
            raise TypeError(f"stage {name}: port {parameter.name} must be annotated In, Ins or Out, not {hint}")
    return Stage(name, function, hints["config"], inputs, tuple(outputs), resumable=getattr(function, "resumable", False),
                 per_modality=getattr(function, "per_modality", False), distributed=getattr(function, "distributed", False))


def read_document(path: Path) -> dict[str, Any]:
    """Read a YAML mapping (YAML 1.2, as DVC does: duplicate keys are refused)."""
    from ruamel.yaml import YAML, YAMLError

    try:
        document = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; --config takes a YAML profile such as params.yaml") from error
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        first = " ".join(str(error).split())
        raise ConfigError(f"{path}: cannot be read as YAML: {first}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: must be a mapping of sections, found {type(document).__name__}")
    return document


def read_config(stage: Stage, source: str, modality: str | None = None) -> Config:
    """Read a stage's knobs from a profile (its section) or from inline JSON (the section itself, as Kubeflow passes it).

    Args:
        modality: which of the sections to read from a profile, for a stage that runs once per modality.

    Raises:
        ConfigError: naming every wrong knob at once.
    """
    prefix = stage.name
    if source.lstrip().startswith("{"):
        try:
            section = json.loads(source, object_pairs_hook=_unique)
        except json.JSONDecodeError as error:
            raise ConfigError(f"--config: not valid JSON: {error}") from error
        section = with_nulls(stage.config, section)
    else:
        document = read_document(Path(source))
        if stage.name not in document:
            raise ConfigError(f"{source}: has no section '{stage.name}'; it has {', '.join(map(str, document))}")
        section = document[stage.name]
        if stage.per_modality:
            prefix, section = f"{stage.name}.{modality}", _of_modality(stage.name, section, modality, source)
    return validate(stage.config, section, prefix)


def _of_modality(name: str, sections: object, modality: str | None, source: str) -> object:
    """One of the sections of a stage that runs once per modality."""
    known = ", ".join(map(str, sections)) if isinstance(sections, dict) else "none"
    if modality is None:
        raise ConfigError(f"{name}: runs once per modality; add --modality with one of {known}")
    if not isinstance(sections, dict) or modality not in sections:
        raise ConfigError(f"--modality {modality}: {source} has no section '{name}.{modality}'; '{name}' has {known}")
    return sections[modality]


def section_problems(stage: Stage, section: object) -> list[str]:
    """All that is wrong with a stage's part of a profile: with its section, or with those of each modality."""
    parts = {stage.name: section}
    if stage.per_modality:
        if not isinstance(section, dict) or not section:
            return [f"{stage.name}: must hold a section per modality"]
        parts = {f"{stage.name}.{modality}": part for modality, part in section.items()}
    problems = []
    for prefix, part in parts.items():
        try:
            validate(stage.config, part, prefix)
        except ConfigError as error:
            problems += str(error).split("\n")
    return problems


def read_profile(source: str) -> dict[str, Any]:
    """A whole profile: from its file, or as inline JSON, where knobs that are null may be left out (Kubeflow's arguments know no null).

    Raises:
        ConfigError: if it cannot be read; what its sections hold is not looked at.
    """
    if not source.lstrip().startswith("{"):
        return read_document(Path(source))
    try:
        document = json.loads(source, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--config: not valid JSON: {error}") from error
    for name in document.keys() & set(stage_names()):
        stage, section = load_stage(name), document[name]
        for part in (section.values() if stage.per_modality and isinstance(section, dict) else [section]):
            with_nulls(stage.config, part)
    return document


def profile_problems(document: Mapping[str, Any], source: str, stages: Sequence[str] | None = None) -> list[str]:
    """All that is wrong with a profile.

    Args:
        source: what it is called.
        stages: those that are to run and must have a section; any that has one, if not given. Other sections are checked as well.
    """
    known = stage_names()
    problems = []
    for name in [*document, *(stages or [])]:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"stages: {', '.join(known)}"
            what = f"{source}: section '{name}' belongs to no stage" if name in document else f"--stages {name}: no such stage"
            problems.append(f"{what}; {hint}")
    problems += [f"{source}: has no section '{name}'; it has {', '.join(map(str, document))}" for name in stages or []
                 if name in known and name not in document]
    for name in sorted(set(known) & set(document)):
        problems += section_problems(load_stage(name), document[name])
    return problems


def label(stage: Stage, config: Config) -> str:
    """What a run of a stage is called: `ingest`, `align.audio`."""
    return f"{stage.name}.{config.modality}" if stage.per_modality else stage.name  # type: ignore[attr-defined]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    section: dict[str, Any] = {}
    for name, value in pairs:
        if name in section:
            raise ConfigError(f"--config: key '{name}' comes twice; keep one")
        section[name] = value
    return section


def without_nulls(tree: Any) -> Any:
    """A section as Kubeflow can carry it: kfp's arguments know no null, so knobs that are null are left out."""
    if isinstance(tree, dict):
        return {name: without_nulls(child) for name, child in tree.items() if child is not None}
    return [without_nulls(child) for child in tree] if isinstance(tree, list) else tree


def with_nulls(model: type[Config], section: Any) -> Any:
    """Undo `without_nulls`: a knob that may be null and is missing is null. Profiles, in contrast, must name every knob."""
    try:
        model.model_validate(section)
    except ValidationError as error:
        for *path, name in (item["loc"] for item in error.errors() if item["type"] == "missing"):
            owner, group = section, _model_at(model, path)
            for part in path:
                owner = owner[part]
            if str(name) in group.model_fields and type(None) in _kinds(group.model_fields[str(name)].annotation)[1:]:
                owner[name] = None
    return section


def validate(model: type[Config], section: object, prefix: str) -> Config:
    """Check one section against its schema; every problem becomes one line of a single `ConfigError`.

    Args:
        prefix: what the section is called; `align.audio` must say `modality: audio`.
    """
    modality = prefix.partition(".")[2]
    try:
        config = model.model_validate(section)
        if not modality or config.modality == modality:  # type: ignore[attr-defined]
            return config
        problems = [f"{prefix}.modality = {config.modality}: must be {modality}, as the section is called"]  # type: ignore[attr-defined]
    except ValidationError as error:
        problems = [_problem(item, model, prefix) for item in error.errors()]
    raise ConfigError("\n".join(problems))


def _problem(item: Mapping[str, Any], model: type[BaseModel], prefix: str) -> str:
    where = ".".join([prefix, *map(str, item["loc"])])
    if item["type"] == "extra_forbidden":
        known = list(_model_at(model, item["loc"][:-1]).model_fields)
        near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; known knobs: {', '.join(sorted(known))}"
        return f"{where}: unknown knob{hint}"
    if item["type"] == "missing":
        return f"{where}: missing; add it to the profile's section '{prefix}'"
    message = str(item["ctx"]["error"]) if item["type"] == "value_error" else item["msg"]
    if isinstance(item["input"], dict | BaseModel):  # a whole group is wrong: its value would say nothing
        return f"{where}: {message}"
    value = str(item["input"])
    return f"{where} = {value if len(value) <= 60 else value[:57] + '...'}: {message}"


def _model_at(model: type[BaseModel], location: Sequence[str | int]) -> type[BaseModel]:
    """The nested model that a problem's location leads to; locations may pass through list indices and dict keys."""
    for part in location:
        field = model.model_fields.get(str(part))
        nested = [] if field is None else [kind for kind in _kinds(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        model = nested[0] if nested else model
    return model


def _kinds(annotation: object) -> list[object]:
    """A type and all types named inside it: `dict[str, X | None]` -> dict, str, X, None."""
    return [annotation, *(kind for part in typing.get_args(annotation) for kind in _kinds(part))]


def fingerprint(path: Path) -> str:
    """SHA-256 that names an input's content: of the file, of the folder's manifest, or of all names and files in it."""
    if path.is_file():
        return sha256_of(path)
    if (path / MANIFEST).is_file():
        return sha256_of(path / MANIFEST)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_of(file)}\n".encode())
    return digest.hexdigest()


def run_stage(stage: Stage, config: Config, ports: Places | Ports, executor_input: str | None = None) -> None:
    """Run one stage: check inputs, run it with temporary outputs, rename them, and report to MLflow and Kubeflow.

    A stage that fails leaves none of its outputs. Partial work of a `resumable` stage stays beside the output as
    `.NAME.partial` and is used again only if config and inputs are the same. Inputs on S3 are fetched first, outputs sent there last.

    Of several processes that torchrun started, the main one does this; the others only run the stage with it.

    Raises:
        AnymalError: for everything the user can mend.
    """
    if processes.count() > 1 and not stage.distributed:
        raise ConfigError(f"{stage.name}: runs in one process, but WORLD_SIZE = {processes.count()}; start it without torchrun")
    with _explained(stage, ports), _on_this_machine(stage, ports) as (local, sending), processes.together():
        _run_stage(stage, config, local, executor_input, sending)


@contextmanager
def _on_this_machine(stage: Stage, ports: Places | Ports) -> Iterator[tuple[Ports, Outputs | None]]:
    """Paths for all ports, and the outputs that are to be sent to S3."""
    if any(isinstance(place, str) for _, place in _flat(ports)):
        from anymal.data.remote import local_ports

        outputs = {name: place for name in stage.outputs if not isinstance(place := ports[name], tuple)}
        with local_ports(stage.name, {name: ports[name] for name in stage.inputs}, outputs) as found:
            yield found
    else:
        yield ports, None  # type: ignore[misc]


def _run_stage(stage: Stage, config: Config, ports: Ports, executor_input: str | None, sending: Outputs | None) -> None:
    inputs = {name: ports[name] for name in stage.inputs}
    targets = {name: path for name in stage.outputs if isinstance(path := ports[name], Path)}
    missing = [f"--{name.replace('_', '-')} {path}" for name, path in _flat(inputs) if not path.exists()]
    if missing:
        raise DataError(f"{stage.name}: input not found: {', '.join(missing)}; run the stage that makes it, or correct the path")
    _check_outputs(stage, targets, inputs)
    partials = {name: _partial(path) for name, path in targets.items()}
    hashes = _fingerprints(inputs) if processes.is_main() or sending is not None else {}
    state = json.dumps({"config": config.model_dump(mode="json"), "inputs": hashes}, sort_keys=True)
    made = sending is not None and sending.made(state, targets)
    if not processes.is_main():
        processes.wait()
        if not made:
            stage.function(config, **inputs, **partials)
        return
    try:
        if not made:
            _prepare(stage, state, targets, partials)
        processes.wait()
        if not made:
            _make(stage, config, inputs, targets, hashes=hashes, published=None if sending is None else lambda: sending.keep(state, targets))
        if sending is not None:
            sending.send()
        if executor_input is not None:
            write_executor_output(json.loads(executor_input), targets)
        if sending is not None:
            sending.clear()
    finally:
        if not stage.resumable:
            for partial in partials.values():
                _remove(partial)


def _make(stage: Stage, config: Config, inputs: Ports, targets: Mapping[str, Path], *, hashes: Mapping[str, str],
          published: Callable[[], None] | None) -> None:
    """Run the stage and give its outputs their names, as one run of MLflow; then call `published`."""
    from anymal import tracking

    partials = {name: _partial(path) for name, path in targets.items()}
    with tracking.stage_run(label(stage, config), config.model_dump(mode="json"), hashes) as run:
        stage.function(config, **inputs, **partials)
        _publish(stage.name, partials, targets)
        if published is not None:
            published()
        run.finish(targets)
    for path in targets.values():
        _remove(_state_file(path))


@contextmanager
def _explained(stage: Stage, ports: Places | Ports) -> Iterator[None]:
    """Say trouble that lies in the machine in a sentence."""
    try:
        yield
    except AnymalError:
        raise
    except Exception as error:
        places = {str(place.parent if isinstance(place, Path) else place) for name in stage.outputs for _, place in _flat({name: ports[name]})}
        sentence = _explain(error, ", ".join(sorted(places)))
        if sentence is None:
            raise
        raise AnymalError(f"{stage.name}: {sentence}") from error


def _flat(ports: Mapping[str, P | tuple[P, ...]]) -> list[tuple[str, P]]:
    """(port, path) of every path."""
    return [(name, path) for name, value in ports.items() for path in (value if isinstance(value, tuple) else (value,))]


def _fingerprints(inputs: Ports) -> dict[str, str]:
    """Port (with a number, where it takes several paths) -> SHA-256 of what is there."""
    return {name: fingerprint(value) for name, value in inputs.items() if isinstance(value, Path)} | {
        f"{name}.{number}": fingerprint(path) for name, value in inputs.items() if isinstance(value, tuple) for number, path in enumerate(value)}


def _check_outputs(stage: Stage, targets: Mapping[str, Path], inputs: Ports) -> None:
    """Refuse output paths whose replacement would delete an input, another output, or a folder that no stage made."""
    for name, target in targets.items():
        option, path = f"{stage.name}: --{name.replace('_', '-')} {target}", target.resolve()
        others = [*_flat(inputs), *((other, place) for other, place in targets.items() if other != name), ("working folder", Path())]
        for other, place in others:
            if place.resolve().is_relative_to(path):
                raise ConfigError(f"{option}: would replace {other} ({place}); name a path of its own for each output")
        if path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).is_file():
            raise ConfigError(f"{option}: is a folder that no stage wrote (it has no {MANIFEST}); move it away or name another path")


def _explain(error: Exception, where: str) -> str | None:
    """A sentence for trouble that lies in the machine, not in the stage; None for anything else."""
    if _is_disk_full(error):
        return f"disk full while writing to {where}; free some space or point the output ports at another disk; nothing half-written was kept"
    if isinstance(error, PermissionError):
        return f"may not use {error.filename}: {error.strerror}; change its permissions or point the port elsewhere"
    return None


def _publish(stage: str, partials: Mapping[str, Path], ports: Mapping[str, Path]) -> None:
    """Give the outputs of a stage that succeeded their names, folders with a manifest."""
    absent = [name for name, path in partials.items() if not path.exists()]
    if absent:
        raise RuntimeError(f"stage {stage} did not write {', '.join(absent)}")
    for name, partial in partials.items():
        if partial.is_dir() and not (partial / MANIFEST).is_file():
            write_manifest(partial)
        _replace(partial, ports[name])


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk or quota is at the root; libraries written in Rust or C++ say so only in their message."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _partial(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial")


def _state_file(output: Path) -> Path:
    return output.with_name(f".{output.name}.state")


def _prepare(stage: Stage, state: str, ports: Mapping[str, Path], partials: Mapping[str, Path]) -> None:
    """Drop partial outputs that belong to other knobs or inputs (to another `state`), and note which ones the new ones belong to."""
    for name, partial in partials.items():
        partial.parent.mkdir(parents=True, exist_ok=True)
        note = _state_file(ports[name])
        if not (stage.resumable and note.is_file() and note.read_text() == state):
            _remove(partial)
        if stage.resumable:
            note.write_text(state)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _replace(source: Path, target: Path) -> None:
    if source.is_dir() or target.is_dir():
        _remove(target)
    source.replace(target)


def write_executor_output(executor_input: Mapping[str, Any], outputs: Mapping[str, Path]) -> None:
    """Tell Kubeflow's launcher which artifacts exist; the scalars of JSON outputs become their metadata (shown as metrics).

    Numbers that JSON cannot hold (NaN, infinity) are left out: the launcher cannot read them.
    """
    declared = executor_input.get("outputs", {})
    artifacts = {}
    for name, entry in declared.get("artifacts", {}).items():
        first = entry["artifacts"][0]
        metadata = dict(first.get("metadata", {})) | scalars(outputs.get(name))
        artifacts[name] = {"artifacts": [{"name": first.get("name", name), "uri": first["uri"], "metadata": metadata}]}
    target = Path(declared["outputFile"])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"artifacts": artifacts}, allow_nan=False))


def scalars(path: Path | None) -> dict[str, float]:
    """Flatten the finite numbers of a JSON file to dotted names; {} for any other output (JSON lines begin alike)."""
    if path is None or not path.is_file():
        return {}
    with path.open("rb") as stream:
        if stream.read(1) != b"{":
            return {}
    try:
        return flatten(json.loads(path.read_bytes()))
    except ValueError:
        return {}


def flatten(tree: object, prefix: str = "") -> dict[str, float]:
    """The finite numbers of nested dictionaries, by dotted name."""
    if isinstance(tree, dict):
        return {k: v for name, child in tree.items() for k, v in flatten(child, f"{prefix}.{name}" if prefix else str(name)).items()}
    if isinstance(tree, int | float) and not isinstance(tree, bool) and abs(tree) < float("inf"):
        return {prefix: float(tree)}
    return {}
