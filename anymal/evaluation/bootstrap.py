"""Bootstrap intervals of figures, paired across conditions and across models.

Most figures (a mean, a token-weighted loss, corpus BLEU, corpus METEOR, F1) are functions of per-sample rows added up: a `Measure`.
Resampling the rows and applying the same function gives its distribution without scoring anything twice, and using the same resamples
for two conditions gives the distribution of their difference. A rank statistic is no function of sums: a `Statistic` takes how often each
sample was drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar

import numpy as np

from anymal.errors import AnymalError, DataError
from anymal.evaluation.formats import documents

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


@dataclass(frozen=True)
class Statistic:
    """A figure that no sum over samples gives: `close` takes how often each of the `samples` was drawn, shape (samples,), and gives its value,
    or NaN where a resample leaves it undefined (an AUC of one class); such resamples do not count towards its interval."""

    samples: int
    close: Callable[[np.ndarray], float]


def ratio(sums: np.ndarray) -> np.ndarray:
    """Closing function of means and weighted means: column 0 over column 1."""
    quotient: np.ndarray = sums[..., 0] / sums[..., 1]
    return quotient


def mean_of(scores: np.ndarray) -> Measure:
    """The plain mean of per-sample scores, shape (samples,)."""
    return Measure(np.stack([scores, np.ones(len(scores))], axis=1), ratio)


def by_unit(measure: Measure, units: Sequence[str]) -> Measure:
    """The same figure with the rows of one unit (a picture, a video, a group) added up, so that units are resampled whole.

    Args:
        units: the unit of each row.
    """
    names, inverse = np.unique(np.asarray(units, dtype=object).astype(str), return_inverse=True)
    rows = np.zeros((len(names), measure.rows.shape[1]))
    np.add.at(rows, inverse, measure.rows)
    return Measure(rows, measure.close)


def draws(samples: int, *, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each sample is drawn, shape (samples,), resample after resample: the same for the same seed and number of samples."""
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(generator.integers(samples, size=samples), minlength=samples)


def resampled_sums(rows: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Column sums of bootstrap resamples of the rows.

    Args:
        rows: shape (samples, k).

    Returns:
        Shape (resamples, k). The same seed and number of samples give the same resamples, so that figures can be compared in pairs.
    """
    sums = np.empty((resamples, rows.shape[1]))
    for index, counts in enumerate(draws(len(rows), resamples=resamples, seed=seed)):
        sums[index] = counts @ rows
    return sums


def figures(
    measures: Mapping[Name, Measure | Statistic], differences: Mapping[Name, tuple[Name, Name]], *, n: int, resamples: int, seed: int
) -> dict[Name, Figure]:
    """Values and 95% percentile intervals of measures, and of differences (first minus second) on the same resamples.

    Args:
        measures: all of the same number of samples, in the same order.
        differences: name -> the two measures to subtract.
        n: number of items to report (samples, or questions when a row gathers several).

    Raises:
        AnymalError: if there are fewer than two samples: one sample says nothing about how others would come out; or if no resample defines
            a statistic.
    """
    sizes = {len(measure.rows) if isinstance(measure, Measure) else measure.samples for measure in measures.values()}
    assert len(sizes) == 1, f"measures of different samples: {sizes}"
    samples = sizes.pop()
    if samples < 2:
        raise AnymalError("bootstrap: an interval needs at least 2 samples, got fewer; evaluate on more held-out samples")
    summed = {name: measure for name, measure in measures.items() if isinstance(measure, Measure)}
    ranked = {name: measure for name, measure in measures.items() if isinstance(measure, Statistic)}
    values: dict[Name, float] = {}
    spread: dict[Name, np.ndarray] = {}
    if summed:
        columns = np.cumsum([0, *(measure.rows.shape[1] for measure in summed.values())])
        sums = resampled_sums(np.concatenate([m.rows for m in summed.values()], axis=1), resamples=resamples, seed=seed)
        values |= {name: float(measure.close(measure.rows.sum(axis=0))) for name, measure in summed.items()}
        spread |= {name: m.close(sums[:, columns[i] : columns[i + 1]]) for i, (name, m) in enumerate(summed.items())}
    if ranked:
        values |= {name: statistic.close(np.ones(samples, dtype=int)) for name, statistic in ranked.items()}
        found = [[statistic.close(counts) for statistic in ranked.values()] for counts in draws(samples, resamples=resamples, seed=seed)]
        spread |= dict(zip(ranked, np.array(found).T, strict=True))
    result = {name: _figure(values[name], spread[name], n) for name in measures}
    for name, (first, second) in differences.items():
        result[name] = _figure(values[first] - values[second], spread[first] - spread[second], n)
    return result


def _figure(value: float, resampled: np.ndarray, n: int) -> Figure:
    defined = resampled[~np.isnan(resampled)]
    if len(defined) == 0:
        raise AnymalError(f"bootstrap: none of {len(resampled)} resamples defines the figure; evaluate on more samples of every class")
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Figure(value=value, low=float(low), high=float(high), n=n)


class SampleRow(TypedDict):
    """What one sample scored: the branch of the results that it counts in, what the split keeps together with it, metric -> number."""

    branch: str
    id: str
    group: str
    scores: dict[str, float]


def write_samples(path: Path, rows: Iterable[SampleRow]) -> None:
    """Write a file of samples, a line each, sorted by branch and id.

    Raises:
        DataError: if a sample stands twice in a branch.
    """
    ordered = sorted(rows, key=lambda row: (row["branch"], row["id"]))
    twice = [row for row, other in pairwise(ordered) if (row["branch"], row["id"]) == (other["branch"], other["id"])]
    if twice:
        raise DataError(f"{path}: sample '{twice[0]['id']}' stands twice in {twice[0]['branch']}; give every sample an id of its own")
    documents.write_lines(path, ({"branch": row["branch"], "id": row["id"], "group": row["group"], "scores": dict(sorted(row["scores"].items()))}
                                 for row in ordered))


def read_samples(path: Path) -> dict[str, list[SampleRow]]:
    """Branch -> its rows, of a file that `write_samples` wrote; an empty file has none.

    Raises:
        DataError: if the file is missing or of another layout.
    """
    found: dict[str, list[SampleRow]] = {}
    if path.is_file() and path.stat().st_size == 0:
        return found
    document = documents.read_json(path)
    for where, entry in documents.entries(path, [document] if isinstance(document, dict) else document):
        branch, name, group = (documents.field(entry, field, where, (str,)) for field in ("branch", "id", "group"))
        scores = documents.field(entry, "scores", where, (dict,))
        for metric in scores:
            documents.field(scores, metric, f"{where}: scores", (int, float))
        found.setdefault(branch, []).append(SampleRow(branch=branch, id=name, group=group, scores=scores))
    return found


class Difference(Figure):
    """How much more the first of two models has than the second, on the same samples: `n` samples in `units` units, resampled `by` group or
    sample; `first` and `second` are the two means."""

    units: int
    by: str
    first: float
    second: float


def paired_difference(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], *, metric: str, by: Literal["group", "sample"], resamples: int,
    seed: int,
) -> Difference:
    """The mean of a metric for one model minus that for another, with a 95% interval from resamples that both share.

    It is a difference of means of per-sample scores. For a figure of the whole set (BLEU, METEOR, nll) that says which model is better
    sample by sample; it is not the difference of the two figures of the set.

    Args:
        first, second: sample rows of one branch, `{"id", "group", "scores": {metric: number}}`, in any order.
        by: what is resampled: whole groups (what the split keeps together, so that the interval says how other groups would come out) or samples.

    Raises:
        DataError: if the two are not of the same samples and groups, a sample stands twice, or one has no such score.
        AnymalError: if there are fewer than two units.
    """
    ours, theirs = _by_id(first, metric, "first"), _by_id(second, metric, "second")
    odd = sorted(ours.keys() ^ theirs.keys())
    if odd:
        raise DataError(f"samples: {len(odd)} ids, such as '{odd[0]}', are in one of the two models' samples only ({len(ours)} and {len(theirs)}); "
                        "compare models that were evaluated on the same samples")
    names = sorted(ours)
    moved = [name for name in names if ours[name][0] != theirs[name][0]]
    if moved:
        raise DataError(f"samples: '{moved[0]}' is of group '{ours[moved[0]][0]}' for one model and '{theirs[moved[0]][0]}' for the other; evaluate "
                        "both on the same split")
    units = names if by == "sample" else [ours[name][0] for name in names]
    measures = {key: by_unit(mean_of(np.array([rows[name][1] for name in names])), units) for key, rows in (("first", ours), ("second", theirs))}
    found = figures(measures, {"difference": ("first", "second")}, n=len(names), resamples=resamples, seed=seed)
    return Difference(**found["difference"], units=len(set(units)), by=by, first=found["first"]["value"], second=found["second"]["value"])


def _by_id(rows: Sequence[Mapping[str, Any]], metric: str, which: str) -> dict[str, tuple[str, float]]:
    found: dict[str, tuple[str, float]] = {}
    for row in rows:
        if row["id"] in found:
            raise DataError(f"samples: '{row['id']}' stands twice among the {which} model's samples; score its predictions again")
        if metric not in row["scores"]:
            known = ", ".join(sorted(row["scores"])) or "none"
            raise DataError(f"samples: '{row['id']}' of the {which} model has no score '{metric}' (it has {known}); score its predictions again")
        found[row["id"]] = (row["group"], float(row["scores"][metric]))
    return found
