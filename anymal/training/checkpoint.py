"""Training state on disk: weights, optimiser and history, in safetensors and JSON, replaced as one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anymal.data.tensors import save_tensors

LATEST = "latest"


def save_state(folder: Path, step: int, modules: nn.Module, optimizer: torch.optim.Optimizer, history: list[dict[str, Any]]) -> None:
    """Write everything that resuming after `step` steps needs; a kill at any moment leaves the previous or the new state."""
    temporary = folder / ".writing"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_tensors(temporary / "weights.safetensors", modules.state_dict())
    state = optimizer.state_dict()["state"]
    save_tensors(temporary / "optimizer.safetensors",
                 {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()})
    (temporary / "state.json").write_text(json.dumps({"step": step, "history": history}))
    current, previous = folder / LATEST, folder / ".previous"
    shutil.rmtree(previous, ignore_errors=True)
    if current.exists():
        current.rename(previous)
    temporary.rename(current)
    shutil.rmtree(previous, ignore_errors=True)


def load_state(folder: Path, modules: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, list[dict[str, Any]]] | None:
    """Restore the latest state into `modules` and `optimizer`.

    Returns:
        Steps done and their history; None if there is no state.
    """
    from safetensors.torch import load_file

    source = folder / LATEST if (folder / LATEST).is_dir() else folder / ".previous"
    if not source.is_dir():
        return None
    modules.load_state_dict(load_file(source / "weights.safetensors"), strict=True)
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(source / "optimizer.safetensors").items():
        index, name = key.split(".", 1)
        states.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    document = json.loads((source / "state.json").read_text())
    return document["step"], document["history"]
