"""Loss curves and grounding controls as PNG files, the same bytes for the same history."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def draw_history(history: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write `loss.png` (training loss, smoothed, and learning rate) and `grounding.png` (held-out loss under the three controls)."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    steps = [record["step"] for record in history]
    losses = [record["loss"] for record in history]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="0.8", label="each step")
    axes.plot(steps, _smooth(losses), color="tab:blue", label="moving average")
    axes.set(xlabel="step", ylabel="training loss (nats per token)", title="Alignment: training loss")
    rate = axes.twinx()
    rate.plot(steps, [record["learning_rate"] for record in history], color="tab:orange", linewidth=0.8)
    rate.set_ylabel("learning rate", color="tab:orange")
    axes.legend(loc="upper right")
    figure.savefig(folder / "loss.png", dpi=110, metadata={"Software": None})

    checked = [record for record in history if "validation" in record]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, color in (("right", "tab:green"), ("shuffled", "tab:red"), ("blank", "tab:gray")):
        values = [record["validation"][name] for record in checked]
        axes.plot([record["step"] for record in checked], values, marker="o", markersize=3, color=color, label=f"{name} input")
    axes.set(xlabel="step", ylabel="held-out loss (nats per token)", title="Alignment: does the model read its input?")
    axes.legend()
    figure.savefig(folder / "grounding.png", dpi=110, metadata={"Software": None})


def _smooth(values: Sequence[float], window: int = 20) -> list[float]:
    return [sum(values[max(0, i + 1 - window) : i + 1]) / len(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]
