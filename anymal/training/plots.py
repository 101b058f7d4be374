"""Loss curves and grounding controls, as data (JSON lines) and as PNG files; the same bytes for the same history."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anymal.errors import DataError

HISTORY = "history.jsonl"
"""Beside the pictures: one record a step, so that runs can be compared later."""
MAX_HISTORY_BYTES = 256 * 2**20


def draw_history(history: Sequence[dict[str, Any]], folder: Path, *, title: str) -> None:
    """Write `history.jsonl`, `loss.png` (training loss and learning rate) and `grounding.png` (held-out loss under the three controls)."""
    write_history(history, folder / HISTORY)
    draw_loss(history, folder / "loss.png", title=f"{title}: training loss", unit="nats per token")
    lines = {"right": ("right input", "tab:green"), "shuffled": ("shuffled input", "tab:red"), "blank": ("blank input", "tab:gray")}
    draw_validation(history, folder / "grounding.png", lines, title=f"{title}: does the model read its input?",
                    label="held-out loss (nats per token)")


def write_history(history: Sequence[dict[str, Any]], path: Path) -> None:
    """One JSON object a line and step, keys sorted; a figure that is not finite becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        for record in history:
            stream.write(json.dumps(_finite(record), sort_keys=True, allow_nan=False) + "\n")


def _finite(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _finite(child) for name, child in tree.items()}
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def read_history(path: Path) -> list[dict[str, Any]]:
    """The records that `write_history` wrote: `step`, `loss`, and `validation` where held-out loss was measured.

    Raises:
        DataError: if the file is missing, too large, empty or malformed; naming the line.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; run the training stage again, which writes it beside its loss curves")
    if (size := path.stat().st_size) > MAX_HISTORY_BYTES:
        raise DataError(f"{path}: {size} bytes, more than the {MAX_HISTORY_BYTES} that a loss history may have; give the plots of a training stage")
    records: list[dict[str, Any]] = []
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            record = _parsed(line)
            if record is None or (records and record["step"] <= records[-1]["step"]):
                raise DataError(f"{path}, line {number}: is not the next step of a loss history; run the training stage again")
            records.append(record)
    if not records:
        raise DataError(f"{path}: is empty; run the training stage again")
    return records


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A record, or None if the line is none."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int) or not _is_figure(record.get("loss", "")):
        return None
    validation = record.get("validation", {})
    if not isinstance(validation, dict) or not all(_is_figure(value) for value in validation.values()):
        return None
    return record


def _is_figure(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))


def draw_loss(history: Sequence[dict[str, Any]], path: Path, *, title: str, unit: str) -> None:
    """Training loss, each step and smoothed, with the learning rate."""
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    steps = [record["step"] for record in history]
    losses = [record["loss"] for record in history]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="0.8", label="each step")
    axes.plot(steps, _smooth(losses), color="tab:blue", label="moving average")
    axes.set(xlabel="step", ylabel=f"training loss ({unit})", title=title)
    rate = axes.twinx()
    rate.plot(steps, [record["learning_rate"] for record in history], color="tab:orange", linewidth=0.8)
    rate.set_ylabel("learning rate", color="tab:orange")
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=110, metadata={"Software": None})


def draw_validation(history: Sequence[dict[str, Any]], path: Path, lines: Mapping[str, tuple[str, str]], *, title: str, label: str) -> None:
    """Held-out figures over the steps; `lines`: figure -> how it is called, and its colour."""
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    checked = [record for record in history if "validation" in record]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, (called, color) in lines.items():
        values = [record["validation"][name] for record in checked]
        axes.plot([record["step"] for record in checked], values, marker="o", markersize=3, color=color, label=called)
    axes.set(xlabel="step", ylabel=label, title=title)
    axes.legend()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def draw_comparison(histories: Mapping[str, Sequence[dict[str, Any]]], path: Path, *, title: str) -> None:
    """Several runs in one PNG file: smoothed training loss on the left, held-out loss with right and with shuffled inputs on the right.

    Args:
        histories: name of the run -> its history; colours follow the order.
    """
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    training, held_out = figure.subplots(1, 2)
    for number, (name, history) in enumerate(histories.items()):
        color = f"C{number}"
        measured = [record for record in history if record["loss"] is not None]
        training.plot([record["step"] for record in measured], _smooth([record["loss"] for record in measured]), color=color, label=name)
        for condition, style in (("right", "-"), ("shuffled", ":")):
            points = [(record["step"], value) for record in history if (value := record.get("validation", {}).get(condition)) is not None]
            held_out.plot([step for step, _ in points], [value for _, value in points], style, marker="o", markersize=3, color=color,
                          label=name if condition == "right" else None)
    training.set(xlabel="step", ylabel="loss (nats per token)", title="training, moving average")
    held_out.set(xlabel="step", ylabel="loss (nats per token)", title="held out; dotted: shuffled input")
    for axes in (training, held_out):
        axes.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=110, metadata={"Software": None}, format="png")


def _smooth(values: Sequence[float], window: int = 20) -> list[float]:
    return [sum(values[max(0, i + 1 - window) : i + 1]) / len(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]
