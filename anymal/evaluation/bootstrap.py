"""Bootstrap intervals of figures that are functions of sums over samples, paired across conditions.

Every figure here (a mean, a token-weighted loss, corpus BLEU, corpus METEOR) is a function of per-sample rows added up. Resampling the
rows and applying the same function gives its distribution without scoring anything twice, and using the same resamples for two
conditions gives the distribution of their difference.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypedDict, TypeVar

import numpy as np

from anymal.errors import AnymalError

Name = TypeVar("Name", bound=Hashable)
LEVEL = 0.95


class Figure(TypedDict):
    """A figure with its 95% interval and the number of items behind it."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Measure:
    """A figure as a function of sums: `rows` has shape (samples, k); `close` turns sums of shape (..., k) into values of shape (...)."""

    rows: np.ndarray
    close: Callable[[np.ndarray], np.ndarray]

    def per_sample(self) -> np.ndarray:
        """The figure of each sample taken alone, shape (samples,)."""
        return self.close(self.rows)


def ratio(sums: np.ndarray) -> np.ndarray:
    """Closing function of means and weighted means: column 0 over column 1."""
    quotient: np.ndarray = sums[..., 0] / sums[..., 1]
    return quotient


def mean_of(scores: np.ndarray) -> Measure:
    """The plain mean of per-sample scores, shape (samples,)."""
    return Measure(np.stack([scores, np.ones(len(scores))], axis=1), ratio)


def resampled_sums(rows: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Column sums of bootstrap resamples of the rows.

    Args:
        rows: shape (samples, k).

    Returns:
        Shape (resamples, k). The same seed and number of samples give the same resamples, so that figures can be compared in pairs.
    """
    generator = np.random.default_rng(seed)
    samples = len(rows)
    sums = np.empty((resamples, rows.shape[1]))
    for index in range(resamples):
        sums[index] = np.bincount(generator.integers(samples, size=samples), minlength=samples) @ rows
    return sums


def figures(
    measures: Mapping[Name, Measure], differences: Mapping[Name, tuple[Name, Name]], *, n: int, resamples: int, seed: int
) -> dict[Name, Figure]:
    """Values and 95% percentile intervals of measures, and of differences (first minus second) on the same resamples.

    Args:
        measures: all with the same number of rows, in the same order of samples.
        differences: name -> the two measures to subtract.
        n: number of items to report (samples, or questions when a row gathers several).

    Raises:
        AnymalError: if there are fewer than two samples: one sample says nothing about how others would come out.
    """
    samples = {len(measure.rows) for measure in measures.values()}
    assert len(samples) == 1, f"measures of different samples: {samples}"
    if samples.pop() < 2:
        raise AnymalError("bootstrap: an interval needs at least 2 samples, got fewer; evaluate on more held-out samples")
    columns = np.cumsum([0, *(measure.rows.shape[1] for measure in measures.values())])
    sums = resampled_sums(np.concatenate([m.rows for m in measures.values()], axis=1), resamples=resamples, seed=seed)
    values = {name: float(measure.close(measure.rows.sum(axis=0))) for name, measure in measures.items()}
    spread = {name: m.close(sums[:, columns[i] : columns[i + 1]]) for i, (name, m) in enumerate(measures.items())}
    result = {name: _figure(values[name], spread[name], n) for name in measures}
    for name, (first, second) in differences.items():
        result[name] = _figure(values[first] - values[second], spread[first] - spread[second], n)
    return result


def _figure(value: float, resampled: np.ndarray, n: int) -> Figure:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Figure(value=value, low=float(low), high=float(high), n=n)
