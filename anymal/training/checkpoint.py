"""Training state on disk: weights, optimiser and history, in safetensors and JSON, replaced as one."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from anymal.data.tensors import save_tensors

LATEST = "latest"


@dataclass(frozen=True)
class State:
    """All that resuming needs: the same however many processes wrote it."""

    step: int
    """Steps done."""
    history: list[dict[str, Any]]
    weights: dict[str, Tensor]
    optimizer: dict[int, dict[str, Tensor]]
    """Index of the parameter -> name -> value."""


def write_state(folder: Path, state: State) -> None:
    """Write a state; a kill at any moment leaves the previous or the new one."""
    temporary = folder / ".writing"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_tensors(temporary / "weights.safetensors", state.weights)
    save_tensors(temporary / "optimizer.safetensors",
                 {f"{index}.{name}": value for index, values in state.optimizer.items() for name, value in values.items()})
    (temporary / "state.json").write_text(json.dumps({"step": state.step, "history": state.history}))
    current, previous = folder / LATEST, folder / ".previous"
    shutil.rmtree(previous, ignore_errors=True)
    if current.exists():
        current.rename(previous)
    temporary.rename(current)
    shutil.rmtree(previous, ignore_errors=True)


def read_state(folder: Path) -> State | None:
    """The latest state; None if there is none."""
    from safetensors.torch import load_file

    source = folder / LATEST if (folder / LATEST).is_dir() else folder / ".previous"
    if not source.is_dir():
        return None
    optimizer: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(source / "optimizer.safetensors").items():
        index, name = key.split(".", 1)
        optimizer.setdefault(int(index), {})[name] = value
    document = json.loads((source / "state.json").read_text())
    return State(document["step"], document["history"], load_file(source / "weights.safetensors"), optimizer)
