"""Fine-tuning of the text classifier: weighted classes, early stop on validation texts, calibration, and a state from which it goes on exactly."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from anymal.errors import ConfigError, DataError
from anymal.progress import track
from anymal.safety.taxonomy import CODES
from anymal.safety.text_classifier import TextClassifier, TextNetwork, load_encoder, padded
from anymal.safety.texts import TextRecord
from anymal.safety.thresholds import EDGE, calibrate
from anymal.training.checkpoint import State, read_state, write_state

MOST_WEIGHT = 8.0
"""A rare category's positives count at most this often."""


def truth_of(records: Sequence[TextRecord], categories: Sequence[str] = CODES) -> np.ndarray:
    """Which category applies to which text, (texts, categories)."""
    return np.array([[code in record.labels for code in categories] for record in records], dtype=bool).reshape(len(records), len(categories))


def train_text(
    *, encoder: Path, train: Sequence[TextRecord], val: Sequence[TextRecord], output: Path, work: Path, epochs: int, batch_size: int,
    learning_rate: float, head_learning_rate: float, warmup: float, weight_decay: float, layers: int | None, max_tokens: int, patience: int,
    dropout: float, seed: int, stop_after: int | None = None,
) -> dict[str, Any]:
    """Fine-tune an encoder and a head on labelled texts, keep the epoch of the least calibrated validation loss, and write it to `output`.

    The loss is the cross-entropy of each category, rare ones weighted, plus that of "harmful at all", whose logit is the log of the categories'
    summed odds; harmful and harmless texts weigh the same. Called again after an interruption it goes on after the last whole epoch and ends with
    the same bytes.

    Args:
        encoder: folder of a pre-trained encoder in transformers' layout.
        work: folder of the training state; the caller removes it when the stage is done.
        warmup: share of all steps in which the learning rates rise; then they fall linearly.
        layers: upper layers of the encoder that are trained (the rest, embeddings included, stays as it is); None trains all, 0 the head alone.
        patience: epochs without a lower validation loss after which it stops.
        stop_after: stop after this many epochs of this call (tests).

    Returns:
        `history` (epoch, train and val loss, learning rate), `best` (epoch), `texts`, `trained` and `weights` (numbers of parameters).

    Raises:
        DataError: if the encoder cannot be read or a split lacks a class.
        ConfigError: if `layers` does not fit the encoder.
    """
    for name, records in (("train", train), ("val", val)):
        if not {bool(record.labels) for record in records} == {True, False}:
            raise DataError(f"texts/{name}.jsonl: needs harmful and harmless texts; run curate_safety with other fractions")
    tokenizer, model = load_encoder(encoder)
    torch.manual_seed(seed)
    network = TextNetwork(model, len(CODES), dropout=dropout)
    trained = _freeze(network, layers)
    classifier = TextClassifier(network, tokenizer, categories=CODES, max_tokens=max_tokens, calibration=None)
    batches = _Batches(train, tokenizer, batch_size=batch_size, max_tokens=max_tokens, seed=seed)
    loss = _Loss(train).to(classifier.device)
    held_out = truth_of(val)
    optimizer = _optimizer(network, learning_rate, head_learning_rate, weight_decay)
    bases = [group["lr"] for group in optimizer.param_groups]
    whole = epochs * batches.per_epoch
    best, history, done = _snapshot(network), list[dict[str, Any]](), 0
    state = read_state(work)
    if state is not None:
        best, history, done = _restore(state, network, optimizer)
    this_call = 0
    while done < epochs and not _stopped(history, patience) and (stop_after is None or this_call < stop_after):
        total = 0.0
        _train_mode(network, trained)
        with track(batches.of_epoch(done), total=batches.per_epoch, label=f"text epoch {done + 1}", unit="batches") as bar:
            for number, (tokens, mask, truth) in enumerate(bar):
                step = done * batches.per_epoch + number
                for group, base in zip(optimizer.param_groups, bases, strict=True):
                    group["lr"] = base * _schedule(step, whole, warmup)
                torch.manual_seed((seed * 1_000_003 + step) % 2**63)  # dropout
                value = loss(network(tokens.to(classifier.device), mask.to(classifier.device)), truth.to(classifier.device))
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                nn.utils.clip_grad_norm_([p for p in network.parameters() if p.requires_grad], 1.0)
                optimizer.step()
                total += float(value.detach())
        network.eval()
        measured = _calibrated_loss(classifier.logits([record.text for record in val]), held_out)
        done += 1
        this_call += 1
        better = not history or measured < min(entry["val"] for entry in history)
        history.append({"epoch": done, "train": total / batches.per_epoch, "val": measured, "learning_rate": optimizer.param_groups[0]["lr"]})
        best = _snapshot(network) if better else best
        write_state(work, _state(done, history, network, best, optimizer))
    if stop_after is None:
        network.load_state_dict(best, strict=False)
        network.eval()
        classifier.calibration = calibrate(classifier.logits([record.text for record in val]), held_out)
        shutil.rmtree(output, ignore_errors=True)
        classifier.save(output)
    return {"history": history, "best": 1 + int(np.argmin([entry["val"] for entry in history])), "texts": len(train),
            "trained": sum(p.numel() for p in network.parameters() if p.requires_grad), "weights": sum(p.numel() for p in network.parameters())}


class _Loss(nn.Module):
    """Cross-entropy per category and of harmful at all, mean over texts."""

    def __init__(self, train: Sequence[TextRecord]) -> None:
        super().__init__()
        truth = truth_of(train)
        positives = truth.sum(0)
        weights = np.sqrt((len(truth) - positives) / np.maximum(positives, 1)).clip(1.0, MOST_WEIGHT)
        harmful = truth.any(1).mean()
        self.weights = nn.Buffer(torch.from_numpy(weights).float())
        self.sides = nn.Buffer(torch.tensor([0.5 / (1 - harmful), 0.5 / harmful]).float())

    def forward(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Logits and truth, (texts, categories), to nats."""
        harmful = truth.amax(1)
        each = functional.binary_cross_entropy_with_logits(logits, truth, pos_weight=self.weights, reduction="none").mean(1)
        anything = functional.binary_cross_entropy_with_logits(logits.logsumexp(1), harmful, reduction="none")
        sides = self.sides[harmful.long()]
        result: Tensor = (sides * (each + anything)).mean()
        return result


class _Batches:
    """Texts as tokens, in batches of like length; an epoch's order is a function of seed and epoch."""

    def __init__(self, records: Sequence[TextRecord], tokenizer: Any, *, batch_size: int, max_tokens: int, seed: int) -> None:
        self._rows = tokenizer([record.text for record in records], truncation=True, max_length=max_tokens)["input_ids"]
        self._truth = torch.from_numpy(truth_of(records)).float()
        self._fill, self._size, self._seed = tokenizer.pad_token_id, batch_size, seed
        self.per_epoch = math.ceil(len(records) / batch_size)

    def of_epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Tokens, mask and truth of each batch."""
        rng = np.random.default_rng((self._seed, 11, epoch))
        order = rng.permutation(len(self._rows))
        pool = 8 * self._size
        batches: list[np.ndarray] = []
        for start in range(0, len(order), pool):
            near = sorted(order[start : start + pool], key=lambda row: (len(self._rows[row]), row))
            batches += [np.array(near[first : first + self._size]) for first in range(0, len(near), self._size)]
        for number in rng.permutation(len(batches)):
            rows = batches[number]
            yield *padded([self._rows[row] for row in rows], self._fill), self._truth[rows]


def _calibrated_loss(logits: np.ndarray, truth: np.ndarray) -> float:
    """Cross-entropy per category of what calibration makes of the logits, harmful and harmless texts weighing the same, in nats: it judges the order
    of the texts, and not how sure the network is of it."""
    inside = np.clip(calibrate(logits, truth).probabilities(logits), EDGE, 1 - EDGE)
    each = -np.where(truth, np.log(inside), np.log1p(-inside)).sum(1)
    harmful = truth.any(1)
    return float((each[harmful].mean() + each[~harmful].mean()) / 2)


def _freeze(network: TextNetwork, layers: int | None) -> list[nn.Module]:
    """Switch off gradients below the upper `layers`; the modules that stay in training (for their dropout)."""
    if layers is None:
        return [network]
    for parameter in network.encoder.parameters():
        parameter.requires_grad_(False)
    stack = max((module for module in network.encoder.modules() if isinstance(module, nn.ModuleList)), key=len, default=nn.ModuleList())
    if layers > len(stack):
        raise ConfigError(f"layers = {layers}: the encoder has {len(stack)}; give fewer, or null for all of it with its embeddings")
    upper = [*stack][len(stack) - layers :]
    for module in upper:
        for parameter in module.parameters():
            parameter.requires_grad_(True)
    return [network.dropout, network.head, *upper]


def _train_mode(network: nn.Module, trained: Sequence[nn.Module]) -> None:
    network.eval()
    for module in trained:
        module.train()


def _optimizer(network: TextNetwork, learning_rate: float, head_learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    groups: list[dict[str, Any]] = []
    for parameters, rate in ((network.encoder.named_parameters(), learning_rate), (network.head.named_parameters(), head_learning_rate)):
        named = [(name, p) for name, p in parameters if p.requires_grad]
        for decays in (True, False):
            chosen = [p for _, p in named if (p.ndim > 1) == decays]
            if chosen:
                groups.append({"params": chosen, "lr": rate, "weight_decay": weight_decay if decays else 0.0})
    return torch.optim.AdamW(groups)


def _schedule(step: int, whole: int, warmup: float) -> float:
    rising = warmup * whole
    return (step + 1) / rising if step + 1 < rising else min(1.0, (whole - step) / max(1.0, whole - rising))


def _stopped(history: Sequence[dict[str, Any]], patience: int) -> bool:
    losses = [entry["val"] for entry in history]
    return bool(losses) and len(losses) - 1 - int(np.argmin(losses)) >= patience


def _snapshot(network: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().cpu().clone() for name, parameter in network.named_parameters() if parameter.requires_grad}


def _state(epoch: int, history: list[dict[str, Any]], network: nn.Module, best: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> State:
    weights = {f"now.{name}": value for name, value in _snapshot(network).items()} | {f"best.{name}": value for name, value in best.items()}
    return State(epoch, history, weights, copy.copy(optimizer.state_dict()["state"]))


def _restore(state: State, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]], int]:
    now = {name.removeprefix("now."): value for name, value in state.weights.items() if name.startswith("now.")}
    if now.keys() != _snapshot(network).keys():
        raise ConfigError("train_safety.text: the interrupted run trained other parts of the encoder; remove its partial output to start anew")
    network.load_state_dict(now, strict=False)
    document = optimizer.state_dict()
    optimizer.load_state_dict({**document, "state": state.optimizer})
    return {name.removeprefix("best."): value for name, value in state.weights.items() if name.startswith("best.")}, state.history, state.step
