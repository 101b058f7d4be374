"""From predictions folders alone to the figures of `results/evaluate.json`: modality -> task -> figure -> {value, low, high, n}.

Beside the modalities stands `benchmarks`: benchmark -> figure, scored by `anymal.evaluation.benchmarks`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anymal.errors import DataError
from anymal.evaluation import captions, names, vqa
from anymal.evaluation.benchmarks.scoring import needs_meteor, score_benchmarks
from anymal.evaluation.bootstrap import Measure, SampleRow, mean_of, ratio
from anymal.evaluation.branches import branch_of, rounded
from anymal.evaluation.controls import CONDITIONS
from anymal.evaluation.predictions import PROTOCOL, read_predictions
from anymal.evaluation.protocol import interval_note
from anymal.evaluation.rates import rates
from anymal.evaluation.spice import open_spice

BENCHMARKS = "benchmarks"
MAJORITY = "majority"
BASELINE = "baseline"
"""What another model says of the same samples with the right inputs."""
CLASS = "class_accuracy"

Record = dict[str, Any]
Conditions = Mapping[str, Mapping[str, Measure]]


@dataclass(frozen=True)
class Scores:
    """What `score_all` found."""

    results: dict[str, dict[str, Any]]
    """The figures."""
    records: dict[str, dict[str, list[Record]]]
    """Modality -> task -> records with what each of them scored (`scores`: condition -> metric -> number)."""
    samples: list[SampleRow]
    """What each record and each sample of a benchmark scored with the right input: what a paired comparison with another model needs."""


Read = dict[str, tuple[Path, dict[str, Any], dict[str, list[Record]]]]
"""Modality -> its predictions folder, protocol and records by task."""


def score_all(
    folders: Sequence[Path], baselines: Sequence[Path] = (), benchmarks: Sequence[Path] = (), *, resamples: int, seed: int,
    spice: Path | None = None,
) -> tuple[Scores, dict[str, Path]]:
    """Score several predictions folders; also says which modality's predictions are where.

    Args:
        baselines: predictions of another model for the same samples, of any of the modalities; they become the condition `baseline`, so that
            each gap to it is paired.
        benchmarks: folders of the stage benchmark.
        spice: folder with the jars of SPICE, for the captions of benchmarks; None leaves it out.

    Raises:
        AnymalError: as `score_predictions`, `score_benchmarks` and `open_spice`, and if two folders hold the same modality, a baseline does not
            match, or captions are to be scored and Java is missing.
    """
    jars = open_spice(spice)
    read = _read_all(folders)
    for modality, (folder, _, records) in _read_all(baselines).items():
        if modality not in read:
            raise DataError(f"{folder}: is a baseline of {modality}, which --predictions lacks; leave it out")
        _join_baseline(read[modality][2], records, folder)
    options = {"resamples": resamples, "seed": seed}
    results: dict[str, Any] = {}
    captioned = any("caption" in records for _, _, records in read.values()) or needs_meteor(benchmarks)
    with captions.open_meteor() if captioned else nullcontext() as meteor:
        for modality, (_, protocol, records) in sorted(read.items()):
            results[modality] = score_predictions(protocol, records, meteor=meteor, **options)
        measured, samples = score_benchmarks(benchmarks, meteor=meteor, spice=jars, **options)
    if measured:
        results[BENCHMARKS] = measured
    scored = {modality: records for modality, (_, _, records) in sorted(read.items())}
    rows = [row for modality, tasks in scored.items() for task, entries in tasks.items() for row in _rows(f"{modality}.{task}", entries)]
    return Scores(results, scored, [*rows, *samples]), {modality: folder for modality, (folder, _, _) in sorted(read.items())}


def _rows(branch: str, records: Sequence[Record]) -> list[SampleRow]:
    return [{"branch": branch, "id": _name(record), "group": " + ".join(record["groups"].values()) if "groups" in record else record["group"],
             "scores": rounded(record["scores"]["right"])} for record in records]  # fmt: skip


def _read_all(folders: Sequence[Path]) -> Read:
    read: Read = {}
    for folder in folders:
        protocol, records = read_predictions(folder)
        modality = protocol["modality"]
        if modality in read:
            raise DataError(f"{folder}: holds predictions of {modality}, as {read[modality][0]} does; give one predictions folder per modality")
        read[modality] = (folder, protocol, records)
    return read


def _join_baseline(records: Mapping[str, list[Record]], others: Mapping[str, list[Record]], folder: Path) -> None:
    """Add what another model said as one more condition."""
    for task, entries in others.items():
        known = {_name(record): record for record in entries}
        if [_name(record) for record in records.get(task, [])] != list(known):
            raise DataError(f"{folder}: its {task} records are of other samples than the predictions to compare it with; evaluate both models "
                            "with the same knobs")
        for record in records[task]:
            for field in ("prediction", "finish", "nll"):
                if field in record:
                    record[field][BASELINE] = known[_name(record)][field]["right"]


def _name(record: Record) -> str:
    return str(record.get("question_id", record.get("key")))


def score_predictions(
    protocol: Mapping[str, Any], records: Mapping[str, list[Record]], *, meteor: Any, resamples: int, seed: int
) -> dict[str, Any]:
    """Score what `read_predictions` gave: task -> figures. Needs neither model nor features; notes in each record what it scored.

    Args:
        meteor: as `open_meteor` gives it; None where there are no captions.

    Raises:
        AnymalError: if a task has fewer than two samples, or Java cannot be run.
    """
    tasks = {}
    for task, entries in records.items():
        described = protocol["tasks"][task]
        if not entries:
            raise DataError(f"{protocol['modality']}/{task}.jsonl: holds no record, though {PROTOCOL} names the task; run evaluate again")
        if "finish" not in entries[0]:
            raise DataError(f"{protocol['modality']}/{task}.jsonl: does not say how answers ended (`finish`); run evaluate again")
        options = {"resamples": resamples, "seed": seed}
        if task == "caption":
            found = _captions(entries, described["vocabulary"], meteor, **options)
        elif "keys" in entries[0]:
            found = _mixed(entries, described["vocabulary"], **options)
        else:
            found = _answers(entries, **options)
        groups = _group_counts(protocol["modality"], entries)
        samples, together = len(entries), "whole samples"
        if task != "caption" and "key" in entries[0]:
            samples, together = len({record["key"] for record in entries}), "whole samples, each with all questions about it"
        note = interval_note(resamples=resamples, seed=seed, samples=samples, groups=groups, together=together)
        found["rates"] = {c: rates([r["prediction"][c] for r in entries], [r["finish"][c] for r in entries]) for c in _conditions(entries)}
        tasks[task] = {**found, "groups": groups, "prompt": described["prompt"], "protocol": f"{described['protocol']}; {note}"}
    whole: dict[str, Any] = rounded(tasks)
    return whole


def _conditions(records: Sequence[Record]) -> list[str]:
    """Those that all tasks may have in their order, then those that only some have."""
    said = records[0]["prediction"]
    return [*(name for name in CONDITIONS if name in said), *sorted(set(said) - set(CONDITIONS))]


def _group_counts(modality: str, records: Sequence[Record]) -> dict[str, int]:
    if "groups" in records[0]:
        return {name: len({record["groups"][name] for record in records}) for name in records[0]["groups"]}
    return {modality: len({record["group"] for record in records})}


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


def _captions(records: list[Record], vocabulary: Sequence[str] | None, meteor: Any, *, resamples: int, seed: int) -> dict[str, Any]:
    sizes = [len(record["references"]) for record in records]
    asked = _conditions(records)
    texts = [text for record in records for text in record["references"]] + [r["prediction"][c] for c in asked for r in records]
    tokens = iter(captions.tokenize(texts))
    references = [[next(tokens) for _ in range(size)] for size in sizes]
    conditions: dict[str, dict[str, Measure]] = {}
    scorer = captions.CaptionScorer(references, meteor)
    for condition in asked:
        losses = [record["nll"][condition] for record in records]
        loss = captions.loss_measure([entry["nats"] for entry in losses], [entry["tokens"] for entry in losses])
        conditions[condition] = {"nll": loss, **scorer.measures([next(tokens) for _ in records])}
    _note_scores(records, conditions)
    result = branch_of(conditions, n=len(records), resamples=resamples, seed=seed)
    result["normaliser"] = captions.NORMALISER
    result |= _by("source", [record["source"] for record in records], conditions, resamples=resamples, seed=seed)
    return _merged(result, label_figures(records, vocabulary or (), resamples=resamples, seed=seed))


def label_figures(records: list[Record], vocabulary: Sequence[str], *, resamples: int, seed: int) -> dict[str, Any]:
    """Class accuracy of the captions whose samples have a label, in all and by label; nothing if fewer than two have one."""
    known = names.Vocabulary(vocabulary)
    having = [record for record in records if record["label"] is not None]
    if len(having) < 2:
        return {}
    for record in having:
        record["named"] = {condition: sorted(known.named(text)) for condition, text in record["prediction"].items()}
    conditions = {c: {CLASS: mean_of(np.array([r["named"][c] == [names.canonical(r["label"])] for r in having], dtype=float))}
                  for c in _conditions(having)}  # fmt: skip
    _note_scores(having, conditions)
    result = branch_of(conditions, n=len(having), resamples=resamples, seed=seed)
    result |= _by("label", [record["label"] for record in having], conditions, resamples=resamples, seed=seed)
    result["normaliser"] = f"{CLASS}: {names.NORMALISER}"
    if "shuffled_label" in having[0]:
        result["shuffled_of_the_same_label"] = sum(record["label"] == record["shuffled_label"] for record in having)
    return result


def _merged(first: dict[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two branches of one task as one: their figures side by side, at every depth, and their notes after each other."""
    for name, entry in second.items():
        known = first.get(name)
        if isinstance(known, dict):
            first[name] = _merged(known, entry)
        else:
            first[name] = entry if known is None else f"{known}; {entry}"
    return first


def _by(name: str, owners: Sequence[str], conditions: Conditions, *, resamples: int, seed: int) -> dict[str, Any]:
    """`by_NAME`: the figures of the right input of each owner's samples alone, and their gaps to the shuffled one."""
    found, too_few = {}, {}
    for owner, places in _groups(owners).items():
        if len(places) < 2:
            too_few[owner] = len(places)
        else:
            block = branch_of(_select(conditions, places), n=len(places), resamples=resamples, seed=seed)
            found[owner] = {figure: entry for figure, entry in block.items() if figure not in {"controls", "gap_blank"}}
    return {f"by_{name}": found} | ({f"{name}s_of_one_sample": too_few} if too_few else {})


def _answers(records: list[Record], *, resamples: int, seed: int) -> dict[str, Any]:
    kinds = [record["kind"] for record in records]
    usual = vqa.majority_answers(kinds, [record["references"][0] for record in records])
    asked = _conditions(records)
    said = {condition: [record["prediction"][condition] for record in records] for condition in asked}
    said[MAJORITY] = [usual[kind] for kind in kinds]
    scores = {c: np.array([vqa.vqa_accuracy(answer, r["references"]) for answer, r in zip(said[c], records, strict=True)]) for c in said}
    _note_scores(records, {c: {"accuracy": mean_of(s)} for c, s in scores.items()})
    keys = [record["key"] for record in records]
    everything = list(range(len(records)))
    result = branch_of(_by_sample(scores, keys, everything), n=len(records), resamples=resamples, seed=seed)
    known: dict[str, set[str]] = {}
    for record in records:
        known.setdefault(record["kind"], set()).update(map(vqa.normalise_answer, record["references"]))
    for condition in asked:
        target = result if condition == "right" else result["controls"][condition]
        normal = list(map(vqa.normalise_answer, said[condition]))
        target["empty_answers"] = sum(not answer for answer in normal)
        target["off_vocabulary_answers"] = sum(bool(a) and a not in known[kind] for a, kind in zip(normal, kinds, strict=True))
    by_kind, too_few = {}, {}
    for kind, places in _groups(kinds).items():
        if len({keys[place] for place in places}) < 2:
            too_few[kind] = len(places)
        else:
            by_kind[kind] = branch_of(_by_sample(scores, keys, places), n=len(places), resamples=resamples, seed=seed)
    result |= {"normaliser": vqa.NORMALISER, "by_kind": by_kind}
    return result | ({"kinds_of_one_sample": too_few} if too_few else {})


def _mixed(records: list[Record], vocabulary: Mapping[str, Sequence[str]], *, resamples: int, seed: int) -> dict[str, Any]:
    parts = list(records[0]["references"])
    known = names.Vocabulary(answer for part in parts for answer in vocabulary[part])
    usual = {part: vqa.majority_answers([part] * len(records), [record["references"][part] for record in records])[part] for part in parts}
    asked = _conditions(records)
    conditions: dict[str, dict[str, Measure]] = {}
    for condition in [*asked, MAJORITY]:
        right = {part: np.empty(len(records)) for part in parts}
        for place, record in enumerate(records):
            for part, truth in record["references"].items():
                if condition == MAJORITY:
                    right[part][place] = vqa.normalise_answer(truth) == usual[part]
                else:
                    right[part][place] = known.names_only(record["prediction"][condition], truth, among=vocabulary[part])
        every = np.stack([right[part] for part in parts]).min(axis=0)
        conditions[condition] = {"accuracy": mean_of(every), **{f"accuracy_{part}": mean_of(right[part]) for part in parts}}
    _note_scores(records, conditions)
    return branch_of(conditions, n=len(records), resamples=resamples, seed=seed) | {"normaliser": names.NORMALISER}


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

