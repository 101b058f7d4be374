"""The paper's tables with what was measured here beside its columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from anymal.evaluation.labels import is_figure

FILE = "paper.yaml"
POINTS = 100
"""The paper's figures are percentages; CIDEr and SPICE too, as their tools give them times 100."""

MADE = {"variant": "split", "prompt_protocol": "prompt", "vqa_variant": "answers normalised as"}
"""What a measurement says of itself -> how that is introduced."""


@dataclass(frozen=True)
class Measured:
    """One measurement of a row's figure, on the benchmark's real data."""

    name: str
    """Of the benchmark as it was declared; a row may have several, such as one with OCR tokens and one without."""
    points: str
    made: str
    """With what prompt and on how much of the data."""


@dataclass(frozen=True)
class Row:
    """A row of a table of the paper."""

    title: str
    metric: str
    cells: list[str | None]
    measured: list[Measured]
    missing: str | None
    """Why there is no measurement."""


@dataclass(frozen=True)
class Table:
    """A table of the paper."""

    name: str
    note: str
    columns: list[str]
    rows: list[Row]


@cache
def read_paper() -> dict[str, Any]:
    """paper.yaml: `tables` and `human`."""
    from ruamel.yaml import YAML

    document: dict[str, Any] = YAML(typ="safe", pure=True).load(files("anymal.evaluation").joinpath(FILE).read_text(encoding="utf-8"))
    return document


def is_real(figures: Mapping[str, Any]) -> bool:
    """Whether a benchmark's figures are of its own data: those of sample data in its file layout are not, nor those that do not say."""
    return bool(figures.get("data", {}).get("real"))


def paper_tables(benchmarks: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """All tables, filled in.

    Args:
        benchmarks: name -> figures or `{"skipped": reason}`, as `results/evaluate.json` has them. The row of a benchmark is `paper` or else its name.
    """
    tables = read_paper()["tables"]
    return [Table(table["name"], table["note"], table["columns"], [_row(row, benchmarks) for row in table["rows"]]) for table in tables]


def _row(row: Mapping[str, Any], benchmarks: Mapping[str, Mapping[str, Any]]) -> Row:
    found = {name: body for name, body in sorted(benchmarks.items()) if (body.get("paper") or name) == row["benchmark"]}
    measured = [_measured(name, body, row["figure"]) for name, body in found.items() if is_real(body) and is_figure(body.get(row["figure"]))]
    reasons = dict.fromkeys(_why(body, row["figure"]) for body in found.values())
    missing = None if measured else "; ".join(reasons) or "not measured: not among this run's benchmarks"
    return Row(row["title"], row["metric"], row["cells"], measured, missing)


def _measured(name: str, body: Mapping[str, Any], figure: str) -> Measured:
    entry = body[figure]
    points = f"{POINTS * entry['value']:.1f} [{POINTS * entry['low']:.1f}, {POINTS * entry['high']:.1f}]"
    notes = [f"n = {entry['n']}", *(f"{label}: {body[key]}" for key, label in MADE.items() if body.get(key))]
    return Measured(name, points, "; ".join(notes))


def _why(body: Mapping[str, Any], figure: str) -> str:
    if "skipped" in body:
        return f"not measured: {body['skipped']}"
    if not is_real(body):
        return "not measured: what was run is sample data in its file layout, shown below"
    return f"not measured: {body.get('absent', {}).get(figure, 'the benchmark was run without this figure')}"
