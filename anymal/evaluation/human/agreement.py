"""How far annotators agree beyond chance: Krippendorff's alpha (Krippendorff 2011, Computing Krippendorff's Alpha-Reliability)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal, TypedDict

import numpy as np


class Agreement(TypedDict):
    """How far annotators agree."""

    alpha: float | None
    """1: always, 0: as by chance, below: less than that; None where it is undefined, for lack of judgements or of variety."""
    same: float | None
    """Share of the pairs of judgements of one unit that are the same; None without a pair."""
    units: int
    """Units with two judgements or more; the others say nothing."""


def agreement(ratings: Sequence[Mapping[str, int]], *, level: Literal["nominal", "ordinal"]) -> Agreement:
    """Agreement on what was judged.

    Args:
        ratings: of each unit, annotator -> value; not every annotator must have judged every unit.
        level: ordinal values are the further apart the more lies between them.
    """
    shared = [unit for unit in ratings if len(unit) > 1]
    pairs = [first == second for unit in shared for first, second in combinations(unit.values(), 2)]
    same = sum(pairs) / len(pairs) if pairs else None
    values = sorted({value for unit in shared for value in unit.values()})
    alpha = None if len(values) < 2 else _alpha([[values.index(value) for value in unit.values()] for unit in shared], len(values), level)
    return Agreement(alpha=alpha, same=same, units=len(shared))


def _alpha(units: Sequence[Sequence[int]], values: int, level: Literal["nominal", "ordinal"]) -> float:
    """One minus observed over expected disagreement, from the matrix of coincidences: each unit of m values has m (m - 1) ordered pairs, each worth
    1 / (m - 1)."""
    coincidences = np.zeros((values, values))
    for unit in units:
        counts = np.bincount(unit, minlength=values)
        coincidences += (np.outer(counts, counts) - np.diag(counts)) / (len(unit) - 1)
    totals = coincidences.sum(axis=0)
    if level == "nominal":
        distance = 1 - np.eye(values)
    else:
        # How many judgements lie between two values, those of the two themselves by half.
        middle = np.cumsum(totals) - totals / 2
        distance = (middle[:, None] - middle[None, :]) ** 2
    expected = (np.outer(totals, totals) * distance).sum() / (totals.sum() - 1)
    return float(1 - (coincidences * distance).sum() / expected)
