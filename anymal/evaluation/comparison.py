"""The same figures of several runs side by side: looked up in their results, shown as one Markdown table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anymal.errors import DataError

MAX_RESULT_BYTES = 64 * 2**20
ABSENT = "–"


@dataclass(frozen=True)
class Comparison:
    """Run -> title of a figure -> what was measured: `{value}`, or `{value, low, high, n}`; what a run lacks is in `absent`."""

    measured: dict[str, dict[str, dict[str, float]]]
    absent: dict[str, list[str]]


def read_results(path: Path) -> dict[str, Any]:
    """The JSON object that a stage wrote as its metrics.

    Raises:
        DataError: if the file is too large or not a JSON object.
    """
    if (size := path.stat().st_size) > MAX_RESULT_BYTES:
        raise DataError(f"{path}: {size} bytes, more than the {MAX_RESULT_BYTES} that results may have; give the metrics of a stage")
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); run the stage again that writes it") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: must be a JSON object, found {type(found).__name__}; give the metrics of a stage")
    return found


def compare_figures(runs: Mapping[str, Mapping[str, Any]], figures: Mapping[str, str]) -> Comparison:
    """Look up figures in each run's results.

    Args:
        runs: name -> results.
        figures: title -> dotted name in the results, such as `image.vqa.accuracy`.

    Raises:
        DataError: if no run has any of them.
    """
    measured: dict[str, dict[str, dict[str, float]]] = {}
    for run, results in runs.items():
        found = {title: _figure(results, name) for title, name in figures.items()}
        measured[run] = {title: figure for title, figure in found.items() if figure is not None}
    if not any(measured.values()):
        raise DataError(f"figures: none of {', '.join(figures.values())} is in the results of {', '.join(runs)}; correct the names")
    absent = {run: [title for title in figures if title not in found] for run, found in measured.items()}
    return Comparison(measured, {run: titles for run, titles in absent.items() if titles})


def _figure(results: Mapping[str, Any], name: str) -> dict[str, float] | None:
    """A number or a figure with its interval; None where there is neither."""
    node: Any = results
    for part in name.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    if _is_number(node):
        return {"value": node}
    if isinstance(node, Mapping) and all(_is_number(node.get(part)) for part in ("value", "low", "high", "n")):
        return {part: node[part] for part in ("value", "low", "high", "n")}
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def markdown(comparison: Comparison, figures: Sequence[str], *, title: str) -> str:
    """A Markdown page: title, table with a line per run, and what was not measured."""
    lines = [["", *figures]]
    lines += [[run, *(shown(found.get(figure)) for figure in figures)] for run, found in comparison.measured.items()]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rows = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines]
    rows.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    page = [f"# {title}", "", *rows]
    if comparison.absent:
        count = sum(len(titles) for titles in comparison.absent.values())
        page += ["", f"Not measured ({count}): " + "; ".join(f"{run}: {', '.join(titles)}" for run, titles in comparison.absent.items()) + "."]
    return "\n".join(page) + "\n"


def shown(figure: Mapping[str, float] | None) -> str:
    """`0.750 [0.700, 0.800]`; counts as they are."""
    if figure is None:
        return ABSENT
    value = figure["value"]
    text = f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
    return f"{text} [{figure['low']:.3f}, {figure['high']:.3f}]" if "low" in figure else text
