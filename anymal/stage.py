"""The stage mechanism: one typed config, named input and output paths, and nothing else.

A stage is a function `x(config: XConfig, *, a_port: In, b_port: Out) -> None` in `anymal/stages/x.py`. This module finds it,
reads its config, runs it with its outputs under temporary names, renames them when it succeeded, and writes what Kubeflow's
launcher expects. It knows neither kfp nor dvc, and stages know nothing of it but `Config`, `In`, `Out` and `resumable`.
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from anymal.errors import AnymalError, ConfigError, DataError

In = Annotated[Path, "in"]
Out = Annotated[Path, "out"]

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
    """Input port name -> whether it must be given."""
    outputs: tuple[str, ...]
    resumable: bool

    @property
    def summary(self) -> str:
        """First line of the stage function's docstring."""
        return (inspect.getdoc(self.function) or "").split("\n")[0]


def resumable(function: Callable[..., None]) -> Callable[..., None]:
    """Mark a stage that can go on from its own partial output when the same config and inputs come again."""
    function.resumable = True  # type: ignore[attr-defined]
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
        choices = [hint, *typing.get_args(hint)]
        if In in choices:
            inputs[parameter.name] = parameter.default is inspect.Parameter.empty
        elif Out in choices:
            outputs.append(parameter.name)
        else:
            raise TypeError(f"stage {name}: port {parameter.name} must be annotated In or Out, not {hint}")
    return Stage(name, function, hints["config"], inputs, tuple(outputs), getattr(function, "resumable", False))


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


def read_config(stage: Stage, source: str) -> Config:
    """Read a stage's knobs from a profile (its section) or from inline JSON (the section itself, as Kubeflow passes it).

    Raises:
        ConfigError: naming every wrong knob at once.
    """
    if source.lstrip().startswith("{"):
        try:
            section = json.loads(source)
        except json.JSONDecodeError as error:
            raise ConfigError(f"--config: not valid JSON: {error}") from error
    else:
        document = read_document(Path(source))
        if stage.name not in document:
            raise ConfigError(f"{source}: has no section '{stage.name}'; it has {', '.join(map(str, document))}")
        section = document[stage.name]
    return validate(stage.config, section, stage.name)


def validate(model: type[Config], section: object, prefix: str) -> Config:
    """Check one section against its schema; every problem becomes one line of a single `ConfigError`."""
    try:
        return model.model_validate(section)
    except ValidationError as error:
        problems = [_problem(item, model, prefix) for item in error.errors()]
    raise ConfigError("\n".join(problems))


def _problem(item: Mapping[str, Any], model: type[BaseModel], prefix: str) -> str:
    where = ".".join([prefix, *map(str, item["loc"])])
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(item["loc"][-1]), model.model_fields, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; known knobs: {', '.join(sorted(model.model_fields))}"
        return f"{where}: unknown knob{hint}"
    if item["type"] == "missing":
        return f"{where}: missing; add it to the profile's section '{prefix}'"
    value = str(item["input"])
    return f"{where} = {value if len(value) <= 60 else value[:57] + '...'}: {item['msg']}"


def fingerprint(path: Path) -> str:
    """SHA-256 that names an input's content: of the file, of the folder's manifest, or of all names and files in it."""
    from anymal.data.manifest import MANIFEST, sha256_of

    if path.is_file():
        return sha256_of(path)
    if (path / MANIFEST).is_file():
        return sha256_of(path / MANIFEST)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_of(file)}\n".encode())
    return digest.hexdigest()


def run_stage(stage: Stage, config: Config, ports: Mapping[str, Path], executor_input: str | None = None) -> None:
    """Run one stage: check inputs, run it with temporary outputs, rename them, and report to MLflow and Kubeflow.

    A stage that fails leaves none of its outputs. Partial work of a `resumable` stage stays beside the output as
    `.NAME.partial` and is used again only if config and inputs are the same.

    Raises:
        AnymalError: for everything the user can mend.
    """
    from anymal import tracking

    inputs = {name: ports[name] for name in stage.inputs if name in ports}
    missing = [f"--{name.replace('_', '-')} {path}" for name, path in inputs.items() if not path.exists()]
    if missing:
        raise DataError(f"{stage.name}: input not found: {', '.join(missing)}; run the stage that makes it, or correct the path")
    partials = {name: ports[name].with_name(f".{ports[name].name}.partial") for name in stage.outputs}
    hashes = {name: fingerprint(path) for name, path in inputs.items()}
    try:
        _prepare(stage, config, hashes, ports, partials)
        with tracking.stage_run(stage.name, config.model_dump(mode="json"), hashes) as run:
            stage.function(config, **inputs, **partials)
            absent = [name for name, path in partials.items() if not path.exists()]
            if absent:
                raise RuntimeError(f"stage {stage.name} did not write {', '.join(absent)}")
            for name, partial in partials.items():
                _replace(partial, ports[name])
            run.finish({name: ports[name] for name in stage.outputs})
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise AnymalError(f"{stage.name}: disk full while writing {error.filename or 'its outputs'}; "
                              "free some space or point the output ports at another disk; nothing half-written was kept as output") from error
        raise
    finally:
        if not stage.resumable:
            for partial in partials.values():
                _remove(partial)
    for name in stage.outputs:
        _remove(_state_file(ports[name]))
    if executor_input is not None:
        write_executor_output(json.loads(executor_input), {name: ports[name] for name in stage.outputs})


def _state_file(output: Path) -> Path:
    return output.with_name(f".{output.name}.state")


def _prepare(stage: Stage, config: Config, hashes: Mapping[str, str], ports: Mapping[str, Path], partials: Mapping[str, Path]) -> None:
    """Drop partial outputs that belong to other knobs or inputs, and note which ones the new ones belong to."""
    state = json.dumps({"config": config.model_dump(mode="json"), "inputs": dict(hashes)}, sort_keys=True)
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
    _remove(target) if target.is_dir() else None
    os.replace(source, target)


def write_executor_output(executor_input: Mapping[str, Any], outputs: Mapping[str, Path]) -> None:
    """Tell Kubeflow's launcher which artifacts exist; the scalars of JSON outputs become their metadata (shown as metrics).

    Numbers that JSON cannot hold (NaN, infinity) are left out: the launcher cannot read them.
    """
    declared = executor_input.get("outputs", {})
    artifacts = {}
    for name, entry in declared.get("artifacts", {}).items():
        first = entry["artifacts"][0]
        metadata = dict(first.get("metadata", {})) | _scalars(outputs.get(name))
        artifacts[name] = {"artifacts": [{"name": first["name"], "uri": first["uri"], "metadata": metadata}]}
    target = Path(declared["outputFile"])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"artifacts": artifacts}, allow_nan=False))


def _scalars(path: Path | None) -> dict[str, float]:
    """Flatten the finite numbers of a JSON file to dotted names; {} for any other output."""
    if path is None or not path.is_file() or path.read_bytes()[:1] != b"{":
        return {}
    return flatten(json.loads(path.read_text()))


def flatten(tree: object, prefix: str = "") -> dict[str, float]:
    """The finite numbers of nested dictionaries, by dotted name."""
    if isinstance(tree, dict):
        return {k: v for name, child in tree.items() for k, v in flatten(child, f"{prefix}.{name}" if prefix else str(name)).items()}
    if isinstance(tree, int | float) and not isinstance(tree, bool) and abs(tree) < float("inf"):
        return {prefix: float(tree)}
    return {}
