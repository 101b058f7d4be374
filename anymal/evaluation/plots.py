"""Figures with their intervals, drawn: the same figures give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from anymal.evaluation.grounding import LOWER
from anymal.evaluation.labels import condition_title, in_order, metrics_of

COLOURS = {"right": ("#0b6e99", "o"), "shuffled": ("#c2571a", "s"), "similar": ("#a3305f", "P"), "blank": ("#6f6f6f", "D"),
           "majority": ("#7a4fa3", "^"), "baseline": ("#3d7a3d", "<")}  # fmt: skip
PARTLY = ("#b98a00", "v")
"""Of controls in which only some of the media are another sample's."""
MOST_PANELS = 16
COLUMNS = 2


def plot_task(body: Mapping[str, Any], title: str) -> bytes:
    """A PNG with a panel for each figure of a task and, where controls were scored by kind of question, for each kind: conditions with intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = {kind: branch for kind, branch in body.get("by_kind", {}).items() if "controls" in branch}
    branches = [("all questions", body), *kinds.items()] if kinds else [("", body)]
    panels = [(metric, _title(label, name, body), branch) for label, branch in branches for metric, (name, _) in metrics_of(branch).items()]
    left_out, panels = len(panels[MOST_PANELS:]), panels[:MOST_PANELS]
    bars = max(1 + len(branch["controls"]) for _, _, branch in panels)
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(2.9 * columns, 0.5 + rows * (0.45 + 0.2 * bars)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title + (f" ({left_out} more not drawn)" if left_out else ""), fontsize=11)
    for place, (metric, label, branch) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        controls = branch["controls"]
        conditions = {"right": branch[metric], **{name: controls[name][metric] for name in in_order(controls) if metric in controls[name]}}
        for height, (name, entry) in enumerate(conditions.items()):
            colour, marker = COLOURS.get(name, PARTLY)
            axes.plot([entry["low"], entry["high"]], [height, height], color=colour, linewidth=2)
            axes.plot([entry["value"]], [height], color=colour, marker=marker, markersize=6, clip_on=False)
        axes.set_yticks(range(len(conditions)), [condition_title(name) for name in conditions], fontsize=8)
        axes.set_ylim(len(conditions) - 0.5, -0.5)
        axes.set_title(f"{label} (lower is better)" if metric in LOWER else label, fontsize=9)
        axes.set_xlim(left=0)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    # Matplotlib's own version in the file would change its bytes with every upgrade.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _title(branch: str, metric: str, body: Mapping[str, Any]) -> str:
    """Of a panel: the kind where all panels show one figure, the figure where there are no kinds, else both."""
    return metric if not branch else branch if len(metrics_of(body)) == 1 else f"{branch}: {metric}"
