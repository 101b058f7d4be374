"""Figures of a human evaluation: how often one system was preferred, and how many of the points each got."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from anymal.errors import DataError
from anymal.evaluation.bootstrap import Figure, figures, mean_of
from anymal.evaluation.human.agreement import agreement
from anymal.evaluation.human.form import CRITERIA, SIDES
from anymal.evaluation.human.judgements import REASONS, Judgement, LeftOut
from anymal.evaluation.human.study import Key

OUTCOMES = ("win", "tie", "lose")
"""For the first system."""


def score_study(key: Key, judgements: Sequence[Judgement], left_out: Sequence[LeftOut], *, resamples: int, seed: int) -> dict[str, Any]:
    """All figures of a study, as parts of 1, with 95% intervals over samples.

    A sample counts once however many annotators judged it: each of its figures is their mean.

    Returns:
        `first`, `second`; `samples` (in the study), `judged`, `judgements`, `annotators`; `preference` (`win`, `tie`, `lose` of the first system, and
        `margin`, win minus lose), the same per branch in `by_branch`; `criteria` (system -> criterion -> share of the points, and `difference`, first
        minus second); `side` (how often left and right were preferred); `agreement`; `left_out` (counts by reason, and the list).

    Raises:
        DataError: if fewer than two samples were judged.
    """
    by_sample: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        by_sample.setdefault(judgement.sample, []).append(judgement)
    if len(by_sample) < 2:
        counts = ", ".join(f"{reason}: {count}" for reason, count in _counted(left_out).items())
        raise DataError(f"the study of {' and '.join(key.systems)}: {len(by_sample)} of its {len(key.samples)} samples have a judgement that counts "
                        f"({counts or 'nothing was left out'}); at least 2 are needed, annotate more and export again")
    samples = sorted(by_sample)
    lefts = {number: _sides(key, number) for number in samples}
    tables = {number: [_row(judgement, lefts[number]) for judgement in by_sample[number]] for number in samples}
    columns = {name: np.array([np.mean([row[name] for row in tables[number]]) for number in samples]) for name in tables[samples[0]][0]}
    all_figures = _figures(columns, resamples=resamples, seed=seed)
    branches = sorted({key.samples[number]["branch"] for number in samples})
    return {
        "first": key.systems[0], "second": key.systems[1], "samples": len(key.samples), "judged": len(samples), "judgements": len(judgements),
        "annotators": len({judgement.annotator for judgement in judgements}),
        "preference": {name: all_figures[name] for name in (*OUTCOMES, "margin")},
        "by_branch": {branch: _of_branch(key, branch, samples, columns, resamples=resamples, seed=seed) for branch in branches},
        "criteria": {**{system: {name: all_figures[f"{place}.{name}"] for name in CRITERIA} for place, system in enumerate(key.systems)},
                     "difference": {name: all_figures[f"difference.{name}"] for name in CRITERIA}},
        "side": {side: all_figures[side] for side in SIDES},
        "agreement": _agreement([by_sample[number] for number in samples]),
        "left_out": {"counts": _counted(left_out), "list": [asdict(entry) for entry in left_out]},
    }  # fmt: skip


def _counted(left_out: Iterable[LeftOut]) -> dict[str, int]:
    counts = Counter(entry.reason for entry in left_out)
    return {reason: counts[reason] for reason in REASONS if counts[reason]}


def _sides(key: Key, number: str) -> tuple[str, str]:
    """The sides on which the first and the second system stand."""
    return ("left", "right") if key.samples[number]["left"] == key.systems[0] else ("right", "left")


def _row(judgement: Judgement, sides: tuple[str, str]) -> dict[str, float]:
    """One judgement as numbers from 0 to 1, seen from the first system."""
    first, second = sides
    row = {"win": judgement.preferred == first, "tie": judgement.preferred == "tie", "lose": judgement.preferred == second}
    row |= {side: judgement.preferred == side for side in SIDES}
    points = {f"{place}.{name}": judgement.points[side][name] / criterion.most
              for place, side in enumerate(sides) for name, criterion in CRITERIA.items()}
    return {name: float(value) for name, value in row.items()} | points


def _figures(columns: Mapping[str, np.ndarray], *, resamples: int, seed: int) -> dict[str, Figure]:
    differences = {"margin": ("win", "lose")} | {f"difference.{name}": (f"0.{name}", f"1.{name}") for name in CRITERIA}
    measures = {name: mean_of(values) for name, values in columns.items()}
    return figures(measures, differences, n=len(columns["win"]), resamples=resamples, seed=seed)


def _of_branch(
    key: Key, branch: str, samples: Sequence[str], columns: Mapping[str, np.ndarray], *, resamples: int, seed: int
) -> dict[str, Any]:
    """The preference in one branch; without intervals, which a single sample does not give, just its number of samples."""
    rows = [place for place, number in enumerate(samples) if key.samples[number]["branch"] == branch]
    if len(rows) < 2:
        return {"judged": len(rows)}
    found = _figures({name: values[rows] for name, values in columns.items()}, resamples=resamples, seed=seed)
    return {"judged": len(rows), **{name: found[name] for name in (*OUTCOMES, "margin")}}


def _agreement(judged: Sequence[Sequence[Judgement]]) -> dict[str, Any]:
    """Agreement on the preference, and on each criterion over the answers of both sides."""
    order = {"left": 0, "tie": 1, "right": 2}
    found: dict[str, Any] = {"preference": agreement([{j.annotator: order[j.preferred] for j in unit} for unit in judged], level="nominal")}
    for name, criterion in CRITERIA.items():
        units = [{j.annotator: j.points[side][name] for j in unit} for unit in judged for side in SIDES]
        found[name] = agreement(units, level="ordinal" if len(criterion.points) > 2 else "nominal")
    return found
