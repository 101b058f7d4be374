"""The stage mechanism: one typed config, named input and output paths, and nothing else.

A stage is a function `x(config: XConfig, *, a_port: In, b_port: Out) -> None` in `anymal/stages/x.py`. This module finds it,
runs it with its outputs under temporary names, and renames them when it succeeded. It knows neither kfp nor dvc, and stages
know nothing of it but `Config`, `In`, `Out` and its marks (`resumable`, `per_modality`, `distributed`).
"""

from __future__ import annotations

import errno
import importlib
import inspect
import json
import os
import shutil
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from anymal import processes
from anymal.config import Config
from anymal.data.manifest import MANIFEST, fingerprint, write_manifest
from anymal.errors import AnymalError, ConfigError, DataError
from anymal.executor import write_executor_output

if TYPE_CHECKING:
    from anymal.data.remote import Outputs

P = TypeVar("P")

In = Annotated[Path, "in"]
Ins = Annotated[tuple[Path, ...], "ins"]
"""One or more paths: the option is repeated on the command line."""
Out = Annotated[Path, "out"]
DType = Literal["auto", "bfloat16", "float16", "float32"]
"""A knob: an LLM's number format; "auto" is bfloat16 where the machine has instructions for it, and float32 elsewhere."""

Ports = Mapping[str, Path | tuple[Path, ...]]
Places = Mapping[str, Path | str | tuple[Path | str, ...]]
"""Ports as they are given: paths, and addresses `s3://BUCKET/PREFIX` as text."""

STAGES_FOLDER = Path(__file__).parent / "stages"


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


def label(stage: Stage, config: Config, part: str | None = None) -> str:
    """What a run of a stage is called: as its section, `ingest`, `align.audio`, `evaluate.image_aligned`.

    Args:
        part: which of the stage's sections it is, if it has one per modality and this one is not called as its modality.
    """
    return f"{stage.name}.{part or config.modality}" if stage.per_modality else stage.name  # type: ignore[attr-defined]


def run_stage(stage: Stage, config: Config, ports: Places | Ports, executor_input: str | None = None, *, part: str | None = None) -> None:
    """Run one stage: check inputs, run it with temporary outputs, rename them, and report to MLflow and Kubeflow.

    A stage that fails leaves none of its outputs. Partial work of a `resumable` stage stays beside the output as
    `.NAME.partial` and is used again only if config and inputs are the same. Inputs on S3 are fetched first, outputs sent there last.

    Of several processes that torchrun started, the main one does this; the others only run the stage with it.

    Args:
        part: see `label`.

    Raises:
        AnymalError: for everything the user can mend.
    """
    if processes.count() > 1 and not stage.distributed:
        raise ConfigError(f"{stage.name}: runs in one process, but WORLD_SIZE = {processes.count()}; start it without torchrun")
    with _explained(stage, ports), _on_this_machine(stage, ports) as (local, sending), processes.together():
        _run_stage(stage, config, local, executor_input, sending, run_name=label(stage, config, part))


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


def _run_stage(stage: Stage, config: Config, ports: Ports, executor_input: str | None, sending: Outputs | None, *, run_name: str) -> None:
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
            _make(stage, config, inputs, targets, run_name=run_name, hashes=hashes,
                  published=None if sending is None else lambda: sending.keep(state, targets))
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


def _make(stage: Stage, config: Config, inputs: Ports, targets: Mapping[str, Path], *, run_name: str, hashes: Mapping[str, str],
          published: Callable[[], None] | None) -> None:
    """Run the stage and give its outputs their names, as one run of MLflow; then call `published`."""
    from anymal import tracking

    partials = {name: _partial(path) for name, path in targets.items()}
    with tracking.stage_run(run_name, config.model_dump(mode="json"), hashes) as run:
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


