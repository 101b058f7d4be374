"""From scores to decisions: calibration on validation data, and thresholds for a stated false-positive rate.

A classifier gives a logit per category. `calibrate` makes probabilities of them (Platt, 1999); `choose_thresholds` says from which probability on a
category is hit, so that of harmless samples no more than the stated share is hit by any category at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anymal.errors import DataError

STRENGTH = 5.0
"""How much the fit of all categories together weighs against a category's own samples: a category with a handful of them keeps the common fit."""
STEPS = 100
ANY = "any"
"""The threshold of all categories together: of the probability that at least one of them applies, were they independent."""
OF_LABELS = 0.3
"""The share of the false positives that the categories' own thresholds may cause; the rest is for that of all together, which tells harmful from
harmless better: recall of the demo's validation prompts at 5% false positives 0.85, by the categories' own thresholds alone 0.81."""
EDGE = 1e-6
"""Probabilities are kept this far from 0 and 1, so that their log-odds are finite."""
ABOVE = 0.25
"""How far, in log-odds, a threshold that no harmless sample may reach lies above the highest of them."""


@dataclass(frozen=True)
class Calibration:
    """A slope and an offset per category: probability = sigmoid(slope × logit + offset)."""

    slopes: tuple[float, ...]
    offsets: tuple[float, ...]

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Logits to calibrated probabilities, both (samples, categories)."""
        return sigmoid(np.asarray(logits, dtype=np.float64) * np.array(self.slopes) + np.array(self.offsets))

    def document(self) -> dict[str, list[float]]:
        """What `read` reads, for JSON."""
        return {"slopes": list(self.slopes), "offsets": list(self.offsets)}

    @classmethod
    def read(cls, document: Mapping[str, Any], name: str) -> Calibration:
        """The calibration of a JSON document.

        Raises:
            DataError: naming the file, if it is not one.
        """
        try:
            slopes, offsets = (tuple(float(value) for value in document[key]) for key in ("slopes", "offsets"))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{name}: holds no calibration (slopes and offsets); train the classifiers again") from error
        if len(slopes) != len(offsets):
            raise DataError(f"{name}: {len(slopes)} slopes but {len(offsets)} offsets; train the classifiers again")
        return cls(slopes, offsets)


def sigmoid(values: np.ndarray) -> np.ndarray:
    """Log-odds to probabilities, without overflow."""
    result: np.ndarray = 0.5 * (1.0 + np.tanh(0.5 * values))
    return result


def log_odds(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities to log-odds, kept finite."""
    inside = np.clip(np.asarray(probabilities, dtype=np.float64), EDGE, 1 - EDGE)
    result: np.ndarray = np.log(inside) - np.log1p(-inside)
    return result


def calibrate(logits: np.ndarray, truth: np.ndarray) -> Calibration:
    """Fit slopes and offsets on validation data.

    All categories are first fitted together; each is then fitted on its own samples, drawn towards the common fit by `STRENGTH`.

    Args:
        logits: (samples, categories).
        truth: (samples, categories), whether each category applies.
    """
    logits, truth = np.asarray(logits, dtype=np.float64), np.asarray(truth, dtype=bool)
    assert logits.shape == truth.shape, (logits.shape, truth.shape)
    common = _fit(logits.ravel(), truth.ravel(), np.array([1.0, 0.0]), EDGE)
    fits = [_fit(logits[:, column], truth[:, column], common, STRENGTH) for column in range(logits.shape[1])]
    return Calibration(tuple(float(fit[0]) for fit in fits), tuple(float(fit[1]) for fit in fits))


def _fit(logits: np.ndarray, truth: np.ndarray, start: np.ndarray, strength: float) -> np.ndarray:
    """Slope and offset of least cross-entropy plus strength / 2 × squared distance from `start`, by damped Newton steps; the slope stays positive."""
    positives = int(truth.sum())
    # Platt's targets: not 0 and 1, so that separable samples do not ask for an infinite slope.
    targets = np.where(truth, (positives + 1) / (positives + 2), 1 / (len(truth) - positives + 2))
    inputs = np.stack([logits, np.ones_like(logits)], axis=1)

    def loss(fit: np.ndarray) -> float:
        scores = inputs @ fit
        return float(np.sum(np.logaddexp(0, scores) - targets * scores) + strength / 2 * np.sum((fit - start) ** 2))

    fit = start.copy()
    for _ in range(STEPS):
        predicted = sigmoid(inputs @ fit)
        gradient = inputs.T @ (predicted - targets) + strength * (fit - start)
        hessian = (inputs * (predicted * (1 - predicted))[:, None]).T @ inputs + (strength + EDGE) * np.eye(2)
        step, length = np.linalg.solve(hessian, gradient), 1.0
        while loss(fit - length * step) > loss(fit) and length > EDGE:
            length /= 2
        fit = fit - length * step
        if np.abs(length * step).max() < EDGE:
            break
    fit[0] = max(fit[0], 0.05 * abs(start[0]))
    return fit


def choose_thresholds(
    probabilities: np.ndarray, truth: np.ndarray, categories: Sequence[str], *, rate: float, floor: float, least: int
) -> dict[str, float]:
    """Least probabilities that are hits, such that of the harmless samples at most `rate` are hit.

    The categories' own thresholds take `OF_LABELS` of that, each the same share; that of all together (`ANY`) takes what is left.
    Categories with fewer than `least` positive samples share one threshold, and one share: there is too little to tell them apart by.

    Args:
        probabilities, truth: (samples, categories) of validation data; a sample without any category is harmless.
        categories: the names of the columns.
        rate: the greatest share of harmless samples that are hit.
        floor: no threshold is below it: a category that no harmless sample comes near would else be hit by whatever is new.
        least: see above.

    Returns:
        Category, and `ANY`, -> threshold.

    Raises:
        DataError: if no sample is harmless.
    """
    truth = np.asarray(truth, dtype=bool)
    harmless = log_odds(np.asarray(probabilities)[~truth.any(axis=1)])
    if len(harmless) == 0:
        raise DataError("thresholds: no harmless validation sample, so no false-positive rate can be kept; add harmless ones to that split")
    few = [column for column in range(len(categories)) if truth[:, column].sum() < least]
    groups = [[column] for column in range(len(categories)) if column not in few] + ([few] if few else [])
    highest = np.stack([harmless[:, group].max(axis=1) for group in groups], axis=1)
    ordered = np.sort(highest, axis=0)[::-1]
    lowest = float(log_odds(np.array(floor)))

    def limits(share: int) -> np.ndarray:
        """Log-odds that exactly `share` harmless samples of each group exceed, if no two are equal."""
        after = ordered[share] if share < len(ordered) else ordered[-1] - 1
        before = ordered[share - 1] if share else after + 2 * ABOVE
        return np.maximum(np.where(before > after, (before + after) / 2, after + EDGE), lowest)

    allowed = int(OF_LABELS * rate * len(harmless) + EDGE)
    low, high = 0, len(harmless)
    while low < high:
        middle = (low + high + 1) // 2
        if (highest >= limits(middle)).any(axis=1).sum() <= allowed:
            low = middle
        else:
            high = middle - 1
    chosen = sigmoid(limits(low))
    table = {column: float(chosen[place]) for place, group in enumerate(groups) for column in group}
    hit = (highest >= limits(low)).any(axis=1)
    rest = np.sort(log_odds(together(sigmoid(harmless[~hit]))))[::-1]
    more = int(rate * len(harmless) + EDGE) - int(hit.sum())
    after = rest[more] if more < len(rest) else lowest
    before = rest[more - 1] if 0 < more <= len(rest) else after + 2 * ABOVE
    overall = max((before + after) / 2 if before > after else after + EDGE, lowest)
    return {**{name: table[column] for column, name in enumerate(categories)}, ANY: float(sigmoid(np.array(overall)))}


def together(probabilities: np.ndarray) -> np.ndarray:
    """The probability that at least one category applies, were they independent: (samples, categories) to (samples,)."""
    result: np.ndarray = -np.expm1(np.log1p(-np.clip(np.asarray(probabilities, dtype=np.float64), 0, 1 - EDGE)).sum(axis=1))
    return result


def margins(probabilities: np.ndarray, categories: Sequence[str], thresholds: Mapping[str, float]) -> np.ndarray:
    """How far above its threshold each sample's category that is furthest above is, or all together, in log-odds, (samples,): from 0 on it is a hit.

    One number a sample that orders the samples as the thresholds decide; categories without a threshold do not count.
    """
    columns = [column for column, name in enumerate(categories) if name in thresholds]
    assert columns, f"no threshold for any of {categories}"
    least = log_odds(np.array([thresholds[categories[column]] for column in columns]))
    own = np.asarray(probabilities)[:, columns]
    result: np.ndarray = (log_odds(own) - least).max(axis=1)
    return result if ANY not in thresholds else np.maximum(result, log_odds(together(own)) - log_odds(np.array(thresholds[ANY])))


def hits(probabilities: np.ndarray, categories: Sequence[str], thresholds: Mapping[str, float]) -> np.ndarray:
    """Which categories are hit, (samples, categories) of bool; one without a threshold never is.

    Where all together are and none alone is, the likeliest is.
    """
    found = np.asarray(probabilities)
    least = np.array([thresholds.get(name, np.inf) for name in categories])
    result: np.ndarray = found >= least
    if ANY in thresholds:
        counted = np.isfinite(least)
        only = (together(found[:, counted]) >= thresholds[ANY]) & ~result.any(axis=1)
        result[only, np.where(counted, found, -1.0)[only].argmax(axis=1)] = True
    return result
