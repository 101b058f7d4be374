"""The one training loop: batches in, trained modules and a history out, resumable at any step to the bit."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from anymal import processes, tracking
from anymal.errors import DataError, Interrupted, NumericalError
from anymal.progress import track
from anymal.training.checkpoint import State, read_state, write_state
from anymal.training.parallel import Alone, divided_as, whole


@dataclass(frozen=True)
class Optimization:
    """How weights move: AdamW with linear warm-up, then cosine decay to zero.

    Attributes:
        learning_rate: the peak.
        warmup_steps: steps until the peak.
        gradient_clip: largest gradient norm.
    """

    learning_rate: float
    warmup_steps: int
    weight_decay: float
    gradient_clip: float
    steps: int

    def rate(self, step: int) -> float:
        """Learning rate of a step, a pure function of it."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Work:
    """One step's work: its loss in parts that add up to it, each made when its turn comes, and how much it trains on.

    Gradients add up over the parts, so memory follows the largest of them. With several processes, each has parts of its own, as many as the
    others, and the loss is the mean over the processes.
    """

    parts: Sequence[Callable[[], Tensor]]
    size: int
    """Of all processes' parts, in the unit of the loop, such as target tokens or samples."""
    idle: Sequence[nn.Parameter] = ()
    """Weights that the step has no use for: they stay as they are, also where sharding gives them gradients of zero."""


def train(trained: nn.Module, work: Callable[[int], Work], *, unit: str, optimization: Optimization, prepare: Callable[[], None],
          validate: Callable[[], dict[str, float]], validate_every: int, checkpoint_every: int, folder: Path, label: str,
          parallel: Alone) -> list[dict[str, Any]]:
    """Train `trained` for `optimization.steps` steps; go on from `folder` if it holds a state.

    Args:
        trained: a module; with several processes, a part of the model that `parallel` spreads.
        work: step -> its work; must be a pure function of the step and of the weights.
        unit: what `Work.size` counts.
        prepare: called once before the first step, not when going on from a state.
        validate: called every `validate_every` steps and after the last; its figures join the history.
        folder: where the state is kept, every `checkpoint_every` steps and on SIGTERM or SIGINT.

    Returns:
        One record per step: `step`, `loss`, `learning_rate`, `gradient_norm`, and `validation` where made.

    Raises:
        DataError: if not all processes see the same state.
        Interrupted: after SIGTERM or SIGINT, with the state saved.
        NumericalError: if the loss is not finite.
    """
    state = read_state(folder)
    first, history = (0, []) if state is None else (state.step, state.history)
    if state is None:
        prepare()
    else:
        trained.load_state_dict(state.weights, strict=True)
    if parallel.total(float(first)) != [float(first * processes.count())]:
        raise DataError(f"{label}: not all processes see the state in {folder}; put the outputs on a file system that all of them share")
    parallel.begin(trained)
    parameters = [p for p in trained.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=optimization.learning_rate, betas=(0.9, 0.95), weight_decay=optimization.weight_decay)
    if state is None:
        _save(folder, 0, trained, optimizer, [])
    else:
        tracking.log_metrics({"resumed_at_step": first}, step=first)
        optimizer.load_state_dict({"param_groups": optimizer.state_dict()["param_groups"], "state": {
            index: {name: divided_as(parameters[index], value) for name, value in values.items()} for index, values in state.optimizer.items()}})
    rates = _Throughput(unit)
    trained.train()
    with _stop_signals() as stop, track(total=optimization.steps, label=label, unit="steps") as bar:
        bar.update(first)
        for step in range(first, optimization.steps):
            started, todo = time.perf_counter(), work(step)
            record = _step(optimizer, todo, parallel, optimization=optimization, step=step)
            rates.add(todo.size, time.perf_counter() - started)
            last = step + 1 == optimization.steps
            if (step + 1) % validate_every == 0 or last:
                trained.eval()
                record["validation"] = validate()
                trained.train()
            history.append(record)
            _log(record, rates)
            bar.update(1)
            bar.set_postfix_str(f"loss {record['loss']:.3f}, {rates.units_per_second:.0f} {unit}/s", refresh=False)
            stopped = parallel.total(float(stop.is_set())) != [0.0]  # a signal to one process stops all after the same step
            if (step + 1) % checkpoint_every == 0 or last or stopped:
                _save(folder, step + 1, trained, optimizer, history)
            if stopped and not last:
                raise Interrupted(f"{label}: stopped after step {step + 1} of {optimization.steps}; the state is saved, "
                                  "run the same command to go on")
    parallel.end(trained)
    return history


def _save(folder: Path, step: int, trained: nn.Module, optimizer: torch.optim.Optimizer, history: list[dict[str, Any]]) -> None:
    weights = {name: _gathered(value) for name, value in trained.state_dict().items()}
    values = {index: {name: _gathered(value) for name, value in values.items()} for index, values in optimizer.state_dict()["state"].items()}
    if processes.is_main():
        write_state(folder, State(step, history, weights, values))


def _gathered(tensor: Tensor) -> Tensor:
    """All of a tensor, in the host's memory if it had to be gathered: a GPU would hold all of the training state at once."""
    return whole(tensor).cpu() if isinstance(tensor, DTensor) else tensor


def _step(optimizer: torch.optim.Optimizer, work: Work, parallel: Alone, *, optimization: Optimization, step: int) -> dict[str, Any]:
    for group in optimizer.param_groups:
        group["lr"] = optimization.rate(step)
    optimizer.zero_grad(set_to_none=True)
    value = 0.0
    for place, part in enumerate(work.parts, start=1):
        with parallel.part(last=place == len(work.parts)):
            loss = part()
            loss.backward()
        value += float(loss.detach())
        del loss  # bitsandbytes keeps 8-bit activations on the graph, which lives as long as the loss
    value = parallel.total(value)[0] / processes.count()
    for parameter in work.idle:
        parameter.grad = None
    if not math.isfinite(value):
        raise NumericalError(f"step {step + 1}: the loss is {value}; lower learning_rate = {optimization.learning_rate} "
                             f"or gradient_clip = {optimization.gradient_clip}")
    norm = float(whole(nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], optimization.gradient_clip)))
    optimizer.step()
    return {"step": step + 1, "loss": value, "learning_rate": optimization.rate(step), "gradient_norm": norm}


def _log(record: dict[str, Any], rates: _Throughput) -> None:
    figures = {name: record[name] for name in ("loss", "learning_rate", "gradient_norm")}
    figures |= {f"validation_{name}": value for name, value in record.get("validation", {}).items()}
    figures |= {"steps_per_second": rates.steps_per_second, f"{rates.unit.replace(' ', '_')}_per_second": rates.units_per_second}
    tracking.log_metrics(figures, step=record["step"])


class _Throughput:
    """Steps and units per second of training itself, validation and checkpoints left out."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self._steps, self._size, self._seconds = 0, 0, 0.0

    def add(self, size: int, seconds: float) -> None:
        self._steps, self._size, self._seconds = self._steps + 1, self._size + size, self._seconds + seconds

    @property
    def steps_per_second(self) -> float:
        return self._steps / self._seconds if self._seconds else 0.0

    @property
    def units_per_second(self) -> float:
        return self._size / self._seconds if self._seconds else 0.0


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Turn SIGTERM and SIGINT into an event while training runs (in the main thread; elsewhere signals cannot be caught)."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
