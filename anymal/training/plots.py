"""Loss curves and grounding controls as PNG files, the same bytes for the same history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def draw_history(history: Sequence[dict[str, Any]], folder: Path, *, title: str) -> None:
    """Write `loss.png` (training loss, smoothed, and learning rate) and `grounding.png` (held-out loss under the three controls)."""
    draw_loss(history, folder / "loss.png", title=f"{title}: training loss", unit="nats per token")
    lines = {"right": ("right input", "tab:green"), "shuffled": ("shuffled input", "tab:red"), "blank": ("blank input", "tab:gray")}
    draw_validation(history, folder / "grounding.png", lines, title=f"{title}: does the model read its input?",
                    label="held-out loss (nats per token)")


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


def _smooth(values: Sequence[float], window: int = 20) -> list[float]:
    return [sum(values[max(0, i + 1 - window) : i + 1]) / len(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]
