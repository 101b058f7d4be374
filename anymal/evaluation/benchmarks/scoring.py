"""From predictions folders alone to the figures of each benchmark, by condition, with paired gaps, rates, and what is behind them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from anymal.evaluation import binary, captions, choice
from anymal.evaluation.benchmarks.declaration import declaration_of
from anymal.evaluation.benchmarks.folder import Run, read_runs
from anymal.evaluation.benchmarks.prompts import extract
from anymal.evaluation.bootstrap import Measure, SampleRow, Statistic, by_unit, figures, mean_of
from anymal.evaluation.branches import branch_of, rounded
from anymal.evaluation.protocol import interval_note, llm_note, prompt_text
from anymal.evaluation.rates import rates
from anymal.evaluation.spice import ABSENT, Spice
from anymal.evaluation.vqa import VARIANTS, answer_accuracy

VQA_VARIANTS = {"paper": "vqa_eval", "lmms-eval": "evalai", "model": "vqa_eval"}
"""Protocol -> how VQA answers are normalised: as the official script does, or as lmms-eval does."""
OF_THE_SET = {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor"}
"""Metrics whose figure is no mean over samples; they have none by kind."""
ONE_CLASS = "all samples are of one class, so there is no curve"
EXAMPLES = 5
"""Samples that could not be asked and are named for each reason."""

Record = dict[str, Any]


@dataclass
class Scored:
    """One benchmark's measures, before intervals."""

    conditions: dict[str, dict[str, Measure | Statistic]]
    """Condition -> metric -> measure, its rows one a unit."""
    samples: list[dict[str, float]]
    """What each record scored with the right medium."""
    notes: dict[str, Any] = field(default_factory=dict)
    unparsable: dict[str, int] = field(default_factory=dict)
    """Condition -> answers that could not be told."""


def needs_meteor(folders: Sequence[Path]) -> bool:
    """Whether captions are to be scored, which takes Java.

    Raises:
        DataError: as `score_benchmarks`.
    """
    return any(run.records and declaration_of(name).metric == "captions" for name, run in read_runs(folders).items())


def score_benchmarks(
    folders: Sequence[Path], *, resamples: int, seed: int, meteor: Any, spice: Spice | None = None
) -> tuple[dict[str, dict[str, Any]], list[SampleRow]]:
    """Score what the stage `benchmark` wrote; parts of one run are merged. Neither model nor benchmark files are needed.

    Args:
        meteor: as `open_meteor` gives it; None where no captions are to be scored.
        spice: as `open_spice` gives it; None leaves SPICE and SPIDEr out and says so (`absent`).

    Returns:
        Name -> figures (metrics with the right medium; `controls`, `gap_CONDITION`, `rates`, `by_kind`; how they were made), or
        `{"skipped": reason}`; and one row a sample (`branch`, `id`, `group`, `scores`), sorted.

    Raises:
        DataError: as `read_runs`.
        AnymalError: if the caption metrics cannot be run.
    """
    results: dict[str, dict[str, Any]] = {}
    rows: list[SampleRow] = []
    for name, run in read_runs(folders).items():
        reason = run.described.get("skipped") or _too_few(run)
        if reason is not None:
            results[name] = {"skipped": reason, "paper": declaration_of(name).paper}
            continue
        scored = _score(name, run, meteor, spice)
        results[name] = rounded(_described(name, run, scored, resamples=resamples, seed=seed))
        rows += [{"branch": f"benchmarks.{name}", "id": str(record["id"]), "group": record["group"], "scores": rounded(scores)}
                 for record, scores in zip(run.records, scored.samples, strict=True)]
    return results, sorted(rows, key=lambda row: (row["branch"], row["id"]))


def _too_few(run: Run) -> str | None:
    """Why there is nothing to score; None if there is."""
    files = len({record["group"] for record in run.records})
    if files >= 2:
        return None
    most = ", ".join(f"{reason} {count}" for reason, count in _reasons(run.unusable).items())
    return f"{len(run.records)} samples about {files} files could be asked, at least 2 files are needed" + (f" ({most})" if most else "")


def _score(name: str, run: Run, meteor: Any, spice: Spice | None) -> Scored:
    metric = declaration_of(name).metric
    if metric == "captions":
        return _captions(run, meteor, spice)
    if metric == "vqa":
        return _vqa(run)
    return _choice(run.records) if metric == "choice" else _yes_no(run.records, metric)


def _captions(run: Run, meteor: Any, spice: Spice | None) -> Scored:
    records, how = run.records, run.described["extract"]
    said = {condition: [extract(how, record["prediction"][condition]) for record in records] for condition in _conditions(records)}
    sizes = [len(record["references"]) for record in records]
    texts = [text for record in records for text in record["references"]] + [text or "" for texts in said.values() for text in texts]
    tokens = iter(captions.tokenize(texts))
    scorer = captions.CaptionScorer([[next(tokens) for _ in range(size)] for size in sizes], meteor, spice)
    metrics = captions.ALL_METRICS + (captions.SPICE_METRICS if spice else ())
    measured = {condition: scorer.measures([next(tokens) for _ in records], metrics) for condition in said}
    absent = {} if spice else {"absent": dict.fromkeys(captions.SPICE_METRICS, ABSENT)}
    single = {metric: measure.per_sample().tolist() for metric, measure in measured["right"].items()}
    units = _units(records)
    return Scored(
        {condition: {metric: by_unit(measure, units) for metric, measure in by.items()} for condition, by in measured.items()},
        [{metric: values[place] for metric, values in single.items()} for place in range(len(records))],
        {"normaliser": captions.NORMALISER, **absent}, _none(said))


def _vqa(run: Run) -> Scored:
    variant = VQA_VARIANTS[run.described["protocol_name"]]
    scores = {condition: np.array([answer_accuracy(record["prediction"][condition], record["references"], variant=variant)
                                   for record in run.records]) for condition in _conditions(run.records)}
    notes = {"normaliser": VARIANTS[variant], "vqa_variant": variant}
    return _means(run.records, {condition: {"accuracy": values} for condition, values in scores.items()}, notes, {})


def _choice(records: Sequence[Record]) -> Scored:
    options, answers = [record["options"] for record in records], [record["answer"] for record in records]
    scores: dict[str, dict[str, np.ndarray]] = {}
    unparsable = {}
    for condition in _conditions(records):
        found = choice.choice_scores([record["prediction"][condition] for record in records], options, answers)
        likeliest = [choice.likeliest([option["nats"] for option in record["likelihoods"][condition]]) for record in records]
        right = np.array([float(place == answer) for place, answer in zip(likeliest, answers, strict=True)])
        scores[condition], unparsable[condition] = {"accuracy": found.scores, "accuracy_likelihood": right}, found.unparsable
    note = f"{choice.NORMALISER}; accuracy_likelihood: of the letters, {choice.LIKELIHOOD}"
    return _means(records, scores, {"normaliser": note}, unparsable)


def _yes_no(records: Sequence[Record], metric: str) -> Scored:
    truth, units = [record["answer"] == 0 for record in records], _units(records)
    one_class = metric == "roc" and len(set(truth)) < 2
    conditions: dict[str, dict[str, Measure | Statistic]] = {}
    unparsable = {}
    samples: list[dict[str, float]] = []
    for condition in _conditions(records):
        said = [binary.extract_yes_no(record["prediction"][condition]) for record in records]
        likely = [binary.yes_probability(*(option["nats"] for option in record["likelihoods"][condition])) for record in records]
        right = np.array([float(answer is real) for answer, real in zip(said, truth, strict=True)])
        unparsable[condition] = sum(answer is None for answer in said)
        if metric == "pope":
            conditions[condition] = {name: by_unit(measure, units) for name, measure in binary.pope_measures(said, truth).items()}
        else:
            conditions[condition] = {"auroc": binary.auc_statistic(truth, likely, units), "accuracy": by_unit(mean_of(right), units)}
            if one_class:
                del conditions[condition]["auroc"]
        if condition == "right":
            # The probability of the right answer: what a paired comparison by samples can take in place of an AUC.
            samples = [{"accuracy": score, "likelihood": probability if real else 1 - probability}
                       for score, probability, real in zip(right.tolist(), likely, truth, strict=True)]
    note = f"{binary.NORMALISER}; auroc: {binary.SCORE}" if metric == "roc" else binary.NORMALISER
    notes = {"normaliser": note} | ({"absent": {"auroc": ONE_CLASS}} if one_class else {})
    return Scored(conditions, samples, notes, unparsable)


def _means(records: Sequence[Record], scores: Mapping[str, Mapping[str, np.ndarray]], notes: dict[str, Any], unparsable: dict[str, int]) -> Scored:
    """Plain means of scores by condition and metric."""
    units = _units(records)
    return Scored(
        {condition: {metric: by_unit(mean_of(values), units) for metric, values in by.items()} for condition, by in scores.items()},
        [{metric: float(values[place]) for metric, values in scores["right"].items()} for place in range(len(records))], notes, unparsable)


def _described(name: str, run: Run, scored: Scored, *, resamples: int, seed: int) -> dict[str, Any]:
    """The branch of the results: figures, controls, gaps, rates, kinds, and how all was made."""
    declaration, described, records = declaration_of(name), run.described, run.records
    made = described["run"]
    branch = branch_of(scored.conditions, n=len(records), resamples=resamples, seed=seed)
    for condition in _conditions(records):
        target = branch if condition == "right" else branch["controls"][condition]
        if condition in scored.unparsable:
            target["unparsable"] = scored.unparsable[condition]
    branch["rates"] = {condition: rates([record["prediction"][condition] for record in records], [record["finish"][condition] for record in records])
                       for condition in _conditions(records)}
    branch |= _by_kind(records, scored.samples, resamples=resamples, seed=seed)
    groups = len({record["group"] for record in records})
    modality = "+".join(sorted({record["modality"] for record in records}))
    note = interval_note(resamples=resamples, seed=seed, samples=groups, groups={modality: groups}, together="whole files, each with all about it")
    return branch | scored.notes | {
        # The first figure is the benchmark's own: CIDEr-D, accuracy, AUC.
        "main": next(iter(scored.conditions["right"])),
        "modality": modality, "paper": declaration.paper, "title": declaration.title, "variant": described["split"],
        "prompt": prompt_text(described["prompt"]), "prompt_protocol": described["protocol_name"],
        "protocol": f"{llm_note(made['llm'], made['dtype'], made['quantization'])}; {described['protocol']}; {note}",
        "unusable": _listed(run.unusable),
        "data": {**described["data"], "samples": len(records), "available": described["available"], "source": declaration.source},
    }  # fmt: skip


def _by_kind(records: Sequence[Record], samples: Sequence[Mapping[str, float]], *, resamples: int, seed: int) -> dict[str, Any]:
    """Means of what samples of each kind scored; kinds whose samples are about one file only are counted."""
    kinds: dict[str, list[int]] = {}
    for place, record in enumerate(records):
        if record["kind"] is not None:
            kinds.setdefault(record["kind"], []).append(place)
    if len(kinds) < 2:
        return {}
    found, too_few = {}, {}
    for kind, places in sorted(kinds.items()):
        units = [records[place]["group"] for place in places]
        if len(set(units)) < 2:
            too_few[kind] = len(places)
            continue
        measures = {metric: by_unit(mean_of(np.array([samples[place][metric] for place in places])), units)
                    for metric in samples[places[0]] if metric not in OF_THE_SET}
        found[kind] = figures(measures, {}, n=len(places), resamples=resamples, seed=seed)
    return {"by_kind": found} | ({"kinds_of_one_sample": too_few} if too_few else {})


def _listed(unusable: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """How many samples could not be asked, by reason, and the first of each."""
    first: dict[str, list[str]] = {}
    for name, reason in sorted(unusable):
        entries = first.setdefault(reason.partition(":")[0], [])
        if len(entries) < EXAMPLES:
            entries.append(f"{name}: {reason.partition(': ')[2]}")
    return {"counts": _reasons(unusable), "first": first}


def _reasons(unusable: Sequence[tuple[str, str]]) -> dict[str, int]:
    return dict(sorted(Counter(reason.partition(":")[0] for _, reason in unusable).items()))


def _conditions(records: Sequence[Record]) -> Iterator[str]:
    return iter(records[0]["prediction"])


def _units(records: Sequence[Record]) -> list[str]:
    """What is resampled whole: the file that a sample is about."""
    return [record["group"] for record in records]


def _none(said: Mapping[str, Sequence[str | None]]) -> dict[str, int]:
    return {condition: sum(text is None for text in texts) for condition, texts in said.items()}
