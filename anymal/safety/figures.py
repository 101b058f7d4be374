"""What the guard's classifiers do on held-out data: `results/safety.json`. Every figure has a 95% interval from resamples of whole groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anymal.evaluation.binary import auc_statistic
from anymal.evaluation.bootstrap import Figure, Measure, Statistic, by_unit, figures, ratio
from anymal.media.image import open_image
from anymal.safety.lists import PairRecord, PictureRecord, truth_of
from anymal.safety.models import GuardModels
from anymal.safety.pair_training import halves
from anymal.safety.taxonomy import CODES
from anymal.safety.texts import TextRecord
from anymal.safety.thresholds import hits, margins

ANSWERS = ("answer", "sentence")
"""Kinds of texts that a model says; all others are asked."""
LEAST = 5
"""Positive samples from which a category has figures of its own."""


def harmful(truth: np.ndarray) -> np.ndarray:
    """Whether any category applies to each sample, (samples,), of (samples, categories)."""
    return np.logical_or.reduce(np.asarray(truth, dtype=bool), axis=1)


def recall_at(labels: Sequence[bool], scores: Sequence[float], units: Sequence[str], rate: float) -> Statistic:
    """The share of positive samples that score above all but `rate` of the negative ones; the threshold moves with each resample."""
    positive, order = np.asarray(labels, dtype=bool), np.argsort(-np.asarray(scores), kind="stable")
    levels = np.asarray(scores)[order]
    last = np.append(levels[1:] != levels[:-1], True)  # samples of one score pass together
    owners = np.unique(np.asarray(units, dtype=object).astype(str), return_inverse=True)[1]

    def close(drawn: np.ndarray) -> float:
        weights = drawn[owners].astype(np.float64)[order]
        above, below = np.cumsum(weights * positive[order])[last], np.cumsum(weights * ~positive[order])[last]
        if above[-1] == 0 or below[-1] == 0:
            return math.nan
        allowed = above[below <= rate * below[-1] + 1e-9]
        return float(allowed[-1] / above[-1]) if len(allowed) else 0.0

    return Statistic(int(owners.max()) + 1 if len(owners) else 0, close)


def share(hit: np.ndarray, among: np.ndarray, units: Sequence[str]) -> Measure:
    """The share of the samples in `among` that are hit."""
    return by_unit(Measure(np.stack([hit & among, among], axis=1).astype(np.float64), ratio), units)


def judged(
    truth: np.ndarray, scores: np.ndarray, units: Sequence[str], *, rate: float, resamples: int, seed: int
) -> dict[str, Figure]:
    """`auroc`, `recall_at_fpr` (at the rate), and, at the thresholds (a score from 0 on is a hit), `recall` and `false_positive_rate`.

    Args:
        truth: whether each sample is harmful.
        scores: see `margins`.
        units: what is resampled whole.
    """
    hit = scores >= 0
    measures: dict[str, Measure | Statistic] = {
        "auroc": auc_statistic(truth.tolist(), scores.tolist(), units), "recall_at_fpr": recall_at(truth.tolist(), scores.tolist(), units, rate),
        "recall": share(hit, truth, units), "false_positive_rate": share(hit, ~truth, units)}
    with np.errstate(invalid="ignore", divide="ignore"):
        return figures(measures, {}, n=len(truth), resamples=resamples, seed=seed)


def one_share(hit: np.ndarray, units: Sequence[str], *, resamples: int, seed: int) -> Figure | None:
    """The share of samples that are hit; None for fewer than two groups, which say nothing about others."""
    if len(set(units)) < 2:
        return None
    return figures({"share": share(hit, np.ones(len(hit), dtype=bool), units)}, {}, n=len(hit), resamples=resamples, seed=seed)["share"]


def per_category(
    probabilities: np.ndarray, truth: np.ndarray, units: Sequence[str], thresholds: Mapping[str, float], *, resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Category -> `recall` (any category hit: it is rejected), `named` (this category hit) and `auroc` against harmless samples."""
    found: dict[str, dict[str, Any]] = {}
    hit, harmless = hits(probabilities, CODES, thresholds), ~harmful(truth)
    for column, code in enumerate(CODES):
        rows = np.flatnonzero(truth[:, column]).tolist()
        groups = [units[row] for row in rows]
        if len(rows) < LEAST or len(set(groups)) < 2:
            continue
        both = np.flatnonzero(truth[:, column] | harmless).tolist()
        curve = auc_statistic(truth[both, column].tolist(), probabilities[both, column].tolist(), [units[row] for row in both])
        found[code] = {"recall": one_share(harmful(hit[rows]), groups, resamples=resamples, seed=seed),
                       "named": one_share(hit[rows, column], groups, resamples=resamples, seed=seed),
                       **figures({"auroc": curve}, {}, n=len(both), resamples=resamples, seed=seed)}
    return found


def text_figures(
    models: GuardModels, test: Sequence[TextRecord], unseen: Sequence[TextRecord], *, baseline: Callable[[Sequence[str]], np.ndarray],
    rates: Mapping[str, float], resamples: int, seed: int,
) -> dict[str, Any]:
    """The branch `text`: prompts of the trained sources, answers, hard negatives, sources never trained on, and a word list beside them.

    Args:
        baseline: texts -> scores (texts, categories) of the word list.
        rates: use -> the false-positive rate asked for.
    """
    asked = [record for record in test if record.kind not in ANSWERS]
    said = [record for record in test if record.kind in ANSWERS]
    again = {"resamples": resamples, "seed": seed}
    found = _texts(models, asked, "request", rates["request"], **again)
    found["rate"] = rates["request"]
    found["hard_negatives"] = {"false_positive_rate": _false_hits(models, asked, "hard_negative", **again)}
    if any(record.labels for record in said) and any(not record.labels for record in said):
        found["answers"] = {**_texts(models, said, "answer", rates["answer"], **again), "rate": rates["answer"]}
    if unseen:
        found["unseen_sources"] = _texts(models, unseen, "request", rates["request"], **again)
    found["baseline"] = {}
    for name, records in (("trained_sources", asked), ("unseen_sources", unseen)):
        if records:
            scores = baseline([record.text for record in records]).max(axis=1)
            truth, units = harmful(truth_of(records)), [record.group for record in records]
            measures = {"auroc": auc_statistic(truth.tolist(), scores.tolist(), units),
                        "recall_at_fpr": recall_at(truth.tolist(), scores.tolist(), units, rates["request"])}
            found["baseline"][name] = figures(measures, {}, n=len(records), **again)
    innocent = [record for record in asked if record.kind == "hard_negative" and not record.labels]
    if innocent:
        any_word = baseline([record.text for record in innocent]).max(axis=1) > 0
        found["baseline"]["hard_negatives"] = {"false_positive_rate": one_share(any_word, [record.group for record in innocent], **again)}
    return found


def _texts(models: GuardModels, records: Sequence[TextRecord], use: str, rate: float, *, resamples: int, seed: int) -> dict[str, Any]:
    probabilities = models.text.probabilities([record.text for record in records])
    truth, units = truth_of(records), [record.group for record in records]
    scores = margins(probabilities, CODES, models.thresholds[use])
    return {**judged(harmful(truth), scores, units, rate=rate, resamples=resamples, seed=seed),
            "categories": per_category(probabilities, truth, units, models.thresholds[use], resamples=resamples, seed=seed)}


def _false_hits(models: GuardModels, records: Sequence[TextRecord], kind: str, *, resamples: int, seed: int) -> Figure | None:
    chosen = [record for record in records if record.kind == kind and not record.labels]
    if not chosen:
        return None
    scores = margins(models.text.probabilities([record.text for record in chosen]), CODES, models.thresholds["request"])
    return one_share(scores >= 0, [record.group for record in chosen], resamples=resamples, seed=seed)


def image_figures(
    models: GuardModels, safety: Path, test: Sequence[PictureRecord], *, rate: float, resamples: int, seed: int
) -> dict[str, Any]:
    """The branch `image`: all pictures, per category, per source, and look-alikes alone."""
    parts = []
    for start in range(0, len(test), 64):
        images = [open_image(safety / record.file, record.file) for record in test[start : start + 64]]
        parts.append(models.image.probabilities(images))
    probabilities, truth, units = np.concatenate(parts), truth_of(test), [record.group for record in test]
    scores = margins(probabilities, CODES, models.thresholds["image"])
    again = {"resamples": resamples, "seed": seed}
    found: dict[str, Any] = {**judged(harmful(truth), scores, units, rate=rate, **again), "rate": rate,
                             "categories": per_category(probabilities, truth, units, models.thresholds["image"], **again), "sources": {}}
    for source in sorted({record.source for record in test}):
        rows = [row for row, record in enumerate(test) if record.source == source]
        if LEAST <= harmful(truth[rows]).sum() <= len(rows) - LEAST:
            curve = auc_statistic(harmful(truth[rows]).tolist(), scores[rows].tolist(), [units[row] for row in rows])
            found["sources"][source] = figures({"auroc": curve}, {}, n=len(rows), **again)
    alike = [row for row, record in enumerate(test) if record.kind == "hard_negative" and not record.labels]
    found["hard_negatives"] = {"false_positive_rate": one_share(scores[alike] >= 0, [units[row] for row in alike], **again)}
    return found


def pair_figures(
    models: GuardModels, safety: Path, test: Sequence[PairRecord], controls: Mapping[str, np.ndarray], *, rates: Mapping[str, float], resamples: int,
    seed: int,
) -> dict[str, Any]:
    """The branch `image_text`: pairs of which neither half decides, and how far each half gets alone; harmless texts with any picture apart.

    Args:
        controls: name -> scores (pairs,) of a classifier that is given one half.
        rates: use -> the false-positive rate asked for.
    """
    classifier = models.pair
    data = halves(test, safety, classifier.backbone, classifier.sentences, None)
    with torch.inference_mode():
        probabilities = classifier.of_features(*data.of(slice(None)))
    scores, truth = margins(probabilities, CODES, models.thresholds["pair"]), truth_of(test)
    again = {"resamples": resamples, "seed": seed}
    rows = [row for row, record in enumerate(test) if record.kind != "neutral"]
    wrong, units = harmful(truth[rows]), [test[row].group for row in rows]
    found: dict[str, Any] = {
        **judged(wrong, scores[rows], units, rate=rates["pair"], **again), "rate": rates["pair"],
        "categories": per_category(probabilities[rows], truth[rows], units, models.thresholds["pair"], **again), "families": {}, "controls": {}}
    beside_answers = margins(probabilities, CODES, models.thresholds["pair_answer"])[rows]
    found["answers"] = {**judged(wrong, beside_answers, units, rate=rates["pair_answer"], **again), "rate": rates["pair_answer"]}
    for family in sorted({test[row].family for row in rows}):
        members = [row for row in rows if test[row].family == family]
        curve = auc_statistic(harmful(truth[members]).tolist(), scores[members].tolist(), [test[row].group for row in members])
        found["families"][family] = figures({"auroc": curve}, {}, n=len(members), **again)
    for name, alone in controls.items():
        curve = auc_statistic(wrong.tolist(), alone[rows].tolist(), units)
        found["controls"][name] = figures({"auroc": curve}, {}, n=len(rows), **again)
    neutral = [row for row, record in enumerate(test) if record.kind == "neutral"]
    if neutral:
        found["neutral"] = {"false_positive_rate": one_share(scores[neutral] >= 0, [test[row].group for row in neutral], **again)}
    return found

