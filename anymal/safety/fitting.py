"""The training loop of the picture and pair classifiers: epochs, early stop on validation data, and a state from which it goes on exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from anymal.errors import NumericalError
from anymal.progress import track
from anymal.safety.thresholds import EDGE, calibrate
from anymal.training.checkpoint import State, read_state, write_state

MOST_WEIGHT = 8.0
"""A rare category's positives count at most this often."""


@dataclass(frozen=True)
class Fit:
    """How weights move: AdamW, its rate falling linearly from `learning_rate` over all epochs; it stops after `patience` epochs that do not
    lower the validation loss."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    patience: int
    seed: int


class Loss(nn.Module):
    """Weighted cross-entropy of each category, and of harmful at all; harmful and harmless samples weigh the same."""

    def __init__(self, truth: np.ndarray) -> None:
        """Weights from the training data's truth, (samples, categories)."""
        super().__init__()
        positives, harmful = truth.sum(0), truth.any(1).mean()
        rare = np.sqrt((len(truth) - positives) / np.maximum(positives, 1)).clip(1.0, MOST_WEIGHT)
        self.rare = nn.Buffer(torch.from_numpy(rare).float())
        self.sides = nn.Buffer(torch.tensor([0.5 / (1 - harmful), 0.5 / harmful]).float())

    def forward(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Logits and truth, (samples, categories), to nats."""
        harmful = truth.amax(1)
        each = functional.binary_cross_entropy_with_logits(logits, truth, pos_weight=self.rare, reduction="none").mean(1)
        anything = functional.binary_cross_entropy_with_logits(logits.logsumexp(1), harmful, reduction="none")
        loss: Tensor = (self.sides[harmful.long()] * (each + anything)).mean()
        return loss


def calibrated_loss(logits: Tensor, truth: Tensor) -> float:
    """Cross-entropy per category after calibration, in nats: what early stopping goes by, for being too sure is mended by calibration and says
    nothing about how well samples are told apart.

    Args:
        logits, truth: (samples, categories) of validation data.
    """
    values, labels = logits.double().numpy(), truth.numpy().astype(bool)
    predicted = np.clip(calibrate(values, labels).probabilities(values), EDGE, 1 - EDGE)
    return float(-np.mean(np.where(labels, np.log(predicted), np.log1p(-predicted))))


def fit(
    module: nn.Module, samples: int, *, loss: Callable[[np.ndarray, int], Tensor], measure: Callable[[], float], how: Fit, folder: Path, label: str,
    stop_after: int | None = None,
) -> list[dict[str, Any]]:
    """Train the weights of `module` that require gradients; they end as they were after the epoch of the least validation loss.

    Called again after an interruption it goes on after the last whole epoch and ends with the same bits.

    Args:
        samples: how many there are.
        loss: (rows, epoch) -> their loss; a pure function of these, of the weights and of torch's generator, which is seeded for each batch.
        measure: the validation loss, such as `calibrated_loss`.
        folder: where the state is kept after each epoch; the caller removes it.
        stop_after: epochs of this call (tests).

    Returns:
        An entry an epoch: `epoch`, `train`, `val` (nats), `learning_rate`.

    Raises:
        NumericalError: if the loss is not finite.
    """
    parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=how.learning_rate, weight_decay=how.weight_decay)
    best, history = _copy(parameters), list[dict[str, Any]]()
    state = read_state(folder)
    if state is not None:
        history, best = state.history, {name: state.weights[f"best.{name}"].to(value.device) for name, value in parameters.items()}
        _put(parameters, {name: state.weights[f"now.{name}"] for name in parameters})
        optimizer.load_state_dict({"param_groups": optimizer.state_dict()["param_groups"], "state": state.optimizer})
    done = 0
    while len(history) < how.epochs and not _stopped(history, how.patience) and (stop_after is None or done < stop_after):
        epoch = len(history)
        rate = how.learning_rate * (1 - epoch / how.epochs)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batches = list(_batches(samples, how, epoch))
        value = _epoch(module, optimizer, partial(_of_epoch, loss, epoch), batches, seed=how.seed * 1_000_003 + epoch * 10_007,
                       label=f"{label} epoch {epoch + 1}")
        module.eval()
        with torch.inference_mode():
            measured = measure()
        if not np.isfinite(measured):
            raise NumericalError(f"{label}: the validation loss is {measured} after epoch {epoch + 1}; lower the learning rate")
        if not history or measured < min(entry["val"] for entry in history):
            best = _copy(parameters)
        history.append({"epoch": epoch + 1, "train": value, "val": measured, "learning_rate": rate})
        now = {f"now.{name}": parameter.detach() for name, parameter in parameters.items()}
        weights = now | {f"best.{name}": kept for name, kept in best.items()}
        write_state(folder, State(epoch + 1, history, weights, optimizer.state_dict()["state"]))
        done += 1
    _put(parameters, best)
    module.eval()
    return history


def _of_epoch(loss: Callable[[np.ndarray, int], Tensor], epoch: int, rows: np.ndarray) -> Tensor:
    return loss(rows, epoch)


def _epoch(
    module: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[np.ndarray], Tensor], batches: Sequence[np.ndarray], *, seed: int, label: str
) -> float:
    """One pass over all batches; their mean loss."""
    module.train()
    values = []
    with track(batches, total=len(batches), label=label, unit="batches") as bar:
        for number, rows in enumerate(bar):
            torch.manual_seed((seed + number) % 2**63)  # dropout
            value = loss(rows)
            if not torch.isfinite(value):
                raise NumericalError(f"{label}: the loss is {float(value)}; lower the learning rate")
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_([parameter for group in optimizer.param_groups for parameter in group["params"]], 1.0)
            optimizer.step()
            values.append(float(value.detach()))
    return float(np.mean(values))


def _batches(samples: int, how: Fit, epoch: int) -> Iterator[np.ndarray]:
    order = np.random.default_rng((how.seed, 13, epoch)).permutation(samples)
    for start in range(0, samples, how.batch_size):
        yield order[start : start + how.batch_size]


def _stopped(history: Sequence[dict[str, Any]], patience: int) -> bool:
    """Whether the last `patience` epochs brought nothing."""
    return bool(history) and len(history) - 1 - int(np.argmin([entry["val"] for entry in history])) >= patience


def _copy(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in parameters.items()}


def _put(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
