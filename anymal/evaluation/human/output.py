"""The results of human evaluations as JSON, as a Markdown page and as a picture of stacked bars."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anymal.errors import ConfigError
from anymal.evaluation.human.form import CRITERIA, SIDES
from anymal.evaluation.human.judgements import REASONS
from anymal.evaluation.human.scoring import OUTCOMES

RESULTS, TABLE, FIGURE = "human.json", "human.md", "human.png"
COLOURS = {"win": "#0b6e99", "tie": "#c9c9c9", "lose": "#c2571a"}
LISTED = 50
"""Of what was left out, in the Markdown page; the JSON has all."""


def write_scores(comparisons: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Write `human.json`, `human.md` and `human.png`, all or none; those of an earlier run are replaced. The same figures give the same bytes.

    Args:
        comparisons: name -> figures, as `score_study` gives them.

    Raises:
        ConfigError: if the folder holds anything else.
    """
    names = {RESULTS, TABLE, FIGURE}
    if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - names):
        raise ConfigError(f"--out {folder}: holds other files than {', '.join(sorted(names))}, and would be replaced; name a folder of its own")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        (partial / RESULTS).write_text(json.dumps({"comparisons": comparisons}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (partial / TABLE).write_text(markdown(comparisons), encoding="utf-8")
        (partial / FIGURE).write_bytes(draw_preferences(comparisons))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def markdown(comparisons: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures as tables, what they are about, and what was left out."""
    page = ["# Human evaluation", "", "Shares in percent with 95% intervals over samples. Win: the first system was preferred.", ""]
    page += _table(["comparison", *OUTCOMES, "win − lose", "samples", "annotators", "alpha"], [
        [_title(found), *(_percent(found["preference"][name]) for name in (*OUTCOMES, "margin")), f"{found['judged']} of {found['samples']}",
         str(found["annotators"]), _alpha(found["agreement"]["preference"])] for found in comparisons.values()])  # fmt: skip
    page += ["", "## Criteria", "", "Points in percent of the most possible.", ""]
    rows = []
    for found in comparisons.values():
        for system in (found["first"], found["second"], "difference"):
            label = system if system != "difference" else f"{found['first']} − {found['second']}"
            rows.append([label, *(_percent(found["criteria"][system][name]) for name in CRITERIA)])
        rows.append(["alpha", *(_alpha(found["agreement"][name]) for name in CRITERIA)])
    page += _table(["", *CRITERIA], rows)
    page += ["", "## By branch", ""]
    page += _table(["comparison", "branch", *OUTCOMES, "samples"], [
        [_title(found), branch, *(_percent(part[name]) if name in part else "–" for name in OUTCOMES), str(part["judged"])]
        for found in comparisons.values() for branch, part in found["by_branch"].items()])  # fmt: skip
    page += ["", "## Sides", "", "How often left and right were preferred; in the study each system stands on each side equally often.", ""]
    page += _table(["comparison", *SIDES], [[_title(found), *(_percent(found["side"][side]) for side in SIDES)] for found in comparisons.values()])
    page += ["", "## Left out", ""]
    for found in comparisons.values():
        counts, entries = found["left_out"]["counts"], found["left_out"]["list"]
        page += [f"{_title(found)}: {sum(counts.values())} left out, {found['judgements']} judgements counted.", ""]
        page += [f"- {count} {reason}: {REASONS[reason]}" for reason, count in counts.items()]
        if entries:
            page += ["", *_table(["sample", "annotation", "reason", "detail"], [
                [entry["sample"], entry["annotation"] or "–", entry["reason"], entry["detail"].replace("|", "\\|") or "–"]
                for entry in entries[:LISTED]])]  # fmt: skip
        if len(entries) > LISTED:
            page += ["", f"{len(entries) - LISTED} more are in {RESULTS}."]
        page.append("")
    return "\n".join(page).rstrip("\n") + "\n"


def _title(found: Mapping[str, Any]) -> str:
    return f"{found['first']} against {found['second']}"


def _percent(figure: Mapping[str, float]) -> str:
    return f"{100 * figure['value']:.1f} [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"


def _alpha(found: Mapping[str, Any]) -> str:
    """Krippendorff's alpha, or why there is none, and the share of equal judgements."""
    if found["same"] is None:
        return "one annotator a sample"
    return f"{'undefined' if found['alpha'] is None else format(found['alpha'], '.2f')} ({100 * found['same']:.0f}% the same)"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    shown = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines]
    return [shown[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *shown[1:]]


def draw_preferences(comparisons: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Win, tie and lose of each comparison as one bar, as a PNG; the same figures give the same bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.3 + 0.6 * len(comparisons)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, found in enumerate(comparisons.values()):
        start = 0.0
        for outcome in OUTCOMES:
            share = 100 * found["preference"][outcome]["value"]
            axes.barh(place, share, left=start, color=COLOURS[outcome], height=0.62, edgecolor="white", label=outcome if place == 0 else None)
            if share >= 5:
                axes.text(start + share / 2, place, f"{share:.1f}%", ha="center", va="center", fontsize=9,
                          color="black" if outcome == "tie" else "white")
            start += share
    axes.set_yticks(range(len(comparisons)), [f"{_title(found)}\n{found['judged']} samples" for found in comparisons.values()], fontsize=9)
    axes.set_xlim(0, 100)
    axes.set_ylim(len(comparisons) - 0.5, -0.5)
    axes.set_xlabel("share of samples (%)", fontsize=9)
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=len(OUTCOMES), frameon=False, fontsize=9)
    stream = io.BytesIO()
    # Matplotlib's own version in the file would change its bytes with every upgrade.
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
