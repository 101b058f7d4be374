"""From a predictions folder alone to the figures of `results/evaluate.json`: modality -> task -> figure -> {value, low, high, n}."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anymal.evaluation import captions, vqa
from anymal.evaluation.bootstrap import Measure, figures, ratio
from anymal.evaluation.controls import CONDITIONS
from anymal.evaluation.predictions import read_predictions

DECIMALS = 6
MAJORITY = "majority"

Record = dict[str, Any]
Conditions = Mapping[str, Mapping[str, Measure]]


@dataclass(frozen=True)
class Scores:
    """The figures, and the records with what each of them scored (`scores`: condition -> metric -> number)."""

    results: dict[str, Any]
    records: dict[str, list[Record]]


def score_predictions(folder: Path) -> Scores:
    """Score a predictions folder; needs neither model nor features, and gives the same figures each time.

    Raises:
        AnymalError: if the folder was changed, a task has fewer than two samples, or Java cannot be run.
    """
    protocol, records = read_predictions(folder)
    options = {"resamples": protocol["resamples"], "seed": protocol["seed"]}
    score = {"caption": _captions, "vqa": _answers}
    tasks = {}
    for task, entries in records.items():
        tasks[task] = {**score[task](entries, **options), **protocol["tasks"][task]}
    return Scores(_rounded({protocol["modality"]: tasks}), records)


def dump(results: Mapping[str, Any]) -> str:
    """The results as the text of `results/evaluate.json`: sorted keys, no NaN."""
    return json.dumps(results, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def headline(results: Mapping[str, Any]) -> dict[str, float]:
    """The figures of the right input and their gaps to the controls, by dotted name, for a tracker: `image.caption.nll` -> value."""
    found = {}
    for modality, tasks in results.items():
        for task, entries in tasks.items():
            for name, entry in entries.items():
                group = {name: entry} if _is_figure(entry) else entry if name.startswith("gap_") else {}
                prefix = f"{modality}.{task}" + (f".{name}" if name.startswith("gap_") else "")
                found.update({f"{prefix}.{figure}": float(value["value"]) for figure, value in group.items()})
    return found


def _is_figure(entry: object) -> bool:
    return isinstance(entry, dict) and entry.keys() == {"value", "low", "high", "n"}


def _captions(records: list[Record], *, resamples: int, seed: int) -> dict[str, Any]:
    sizes = [len(record["references"]) for record in records]
    texts = [text for record in records for text in record["references"]] + [r["prediction"][c] for c in CONDITIONS for r in records]
    tokens = iter(captions.tokenize(texts))
    references = [[next(tokens) for _ in range(size)] for size in sizes]
    conditions: dict[str, dict[str, Measure]] = {}
    with captions.CaptionScorer(references) as scorer:
        for condition in CONDITIONS:
            losses = [record["nll"][condition] for record in records]
            loss = captions.loss_measure([entry["nats"] for entry in losses], [entry["tokens"] for entry in losses])
            conditions[condition] = {"nll": loss, **scorer.measures([next(tokens) for _ in records])}
    _note_scores(records, conditions)
    result = _block(conditions, n=len(records), resamples=resamples, seed=seed)
    result["normaliser"] = captions.NORMALISER
    by_source, too_few = {}, {}
    for source, places in _groups([record["source"] for record in records]).items():
        if len(places) < 2:
            too_few[source] = len(places)
        else:
            block = _block(_select(conditions, places), n=len(places), resamples=resamples, seed=seed)
            by_source[source] = {name: entry for name, entry in block.items() if name not in {"controls", "gap_blank"}}
    return result | {"by_source": by_source} | ({"sources_of_one_sample": too_few} if too_few else {})


def _answers(records: list[Record], *, resamples: int, seed: int) -> dict[str, Any]:
    kinds = [record["kind"] for record in records]
    usual = vqa.majority_answers(kinds, [record["references"][0] for record in records])
    said = {condition: [record["prediction"][condition] for record in records] for condition in CONDITIONS}
    said[MAJORITY] = [usual[kind] for kind in kinds]
    scores = {c: np.array([vqa.vqa_accuracy(answer, r["references"]) for answer, r in zip(said[c], records, strict=True)]) for c in said}
    _note_scores(records, {c: {"accuracy": Measure(np.stack([s, np.ones(len(s))], axis=1), ratio)} for c, s in scores.items()})
    keys = [record["key"] for record in records]
    everything = list(range(len(records)))
    result = _block(_by_sample(scores, keys, everything), n=len(records), resamples=resamples, seed=seed)
    known: dict[str, set[str]] = {}
    for record in records:
        known.setdefault(record["kind"], set()).update(map(vqa.normalise_answer, record["references"]))
    for condition in CONDITIONS:
        target = result if condition == "right" else result["controls"][condition]
        normal = list(map(vqa.normalise_answer, said[condition]))
        target["empty_answers"] = sum(not answer for answer in normal)
        target["off_vocabulary_answers"] = sum(bool(a) and a not in known[kind] for a, kind in zip(normal, kinds, strict=True))
    by_kind, too_few = {}, {}
    for kind, places in _groups(kinds).items():
        if len({keys[place] for place in places}) < 2:
            too_few[kind] = len(places)
        else:
            by_kind[kind] = _block(_by_sample(scores, keys, places), n=len(places), resamples=resamples, seed=seed)
    result |= {"normaliser": vqa.NORMALISER, "by_kind": by_kind}
    return result | ({"kinds_of_one_sample": too_few} if too_few else {})


def _block(conditions: Conditions, *, n: int, resamples: int, seed: int) -> dict[str, Any]:
    """Figures of the right input, of the controls, and the paired gaps between them, as one branch of the results."""
    measures = {(condition, metric): measure for condition, by_metric in conditions.items() for metric, measure in by_metric.items()}
    controls = [condition for condition in conditions if condition != "right"]
    metrics = list(conditions["right"])
    gaps = {(f"gap_{control}", metric): (("right", metric), (control, metric)) for control in controls for metric in metrics}
    found = figures(measures, gaps, n=n, resamples=resamples, seed=seed)
    branch: dict[str, Any] = {metric: found["right", metric] for metric in metrics}
    branch["controls"] = {control: {metric: found[control, metric] for metric in metrics} for control in controls}
    for control in controls:
        branch[f"gap_{control}"] = {metric: found[f"gap_{control}", metric] for metric in metrics}
    return branch


def _by_sample(scores: Mapping[str, np.ndarray], keys: Sequence[str], places: Sequence[int]) -> Conditions:
    """Accuracies with one row a sample: questions about one picture are not independent, so they are resampled together."""
    names, inverse = np.unique([keys[place] for place in places], return_inverse=True)
    chosen = np.asarray(places)
    count = np.bincount(inverse, minlength=len(names)).astype(float)
    sums = {c: np.bincount(inverse, weights=s[chosen], minlength=len(names)) for c, s in scores.items()}
    return {c: {"accuracy": Measure(np.stack([total, count], axis=1), ratio)} for c, total in sums.items()}


def _select(conditions: Conditions, places: Sequence[int]) -> Conditions:
    return {c: {name: Measure(m.rows[list(places)], m.close) for name, m in by.items()} for c, by in conditions.items()}


def _groups(labels: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for place, label in enumerate(labels):
        groups.setdefault(label, []).append(place)
    return dict(sorted(groups.items()))


def _note_scores(records: list[Record], conditions: Conditions) -> None:
    for condition, by_metric in conditions.items():
        for metric, measure in by_metric.items():
            for record, value in zip(records, measure.per_sample().tolist(), strict=True):
                record.setdefault("scores", {}).setdefault(condition, {})[metric] = value


def _rounded(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _rounded(child) for name, child in tree.items()}
    return round(tree, DECIMALS) + 0.0 if isinstance(tree, float) else tree  # adding 0.0 turns -0.0 into 0.0
