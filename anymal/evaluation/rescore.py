"""Figures with intervals from a prediction file of a known layout and references of the official form: no model, no features, no benchmark run."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from anymal.data.manifest import sha256_of
from anymal.errors import DataError
from anymal.evaluation import binary, captions, choice, spice, vqa
from anymal.evaluation.bootstrap import LEVEL, Figure, Measure, SampleRow, by_unit, figures, mean_of
from anymal.evaluation.formats import coco, llava, lmms, questions
from anymal.evaluation.formats import vqa as vqa_files
from anymal.evaluation.formats.documents import read_json

DECIMALS = 6
CAPTIONS, ANSWERS, YES_NO, CHOICE = "captions", "answers", "yes_no", "choice"


class Layout(NamedTuple):
    """A layout of prediction files: its name, the fields that tell it from others, and its reader (lmms-eval's has targets too)."""

    name: str
    fields: frozenset[str]
    read: Callable[[Path], dict[str, str]] | None


LMMS = "lmms-eval samples"
LAYOUTS = (
    Layout(LMMS, frozenset({"doc_id", "filtered_resps"}), None),
    Layout("COCO captions", frozenset({"image_id", "caption"}), coco.read_captions),
    Layout("VQA submission", frozenset({"question_id", "answer"}), vqa_files.read_answers),
    Layout("VizWiz submission", frozenset({"image", "answer"}), vqa_files.read_vizwiz_answers),
    Layout("LLaVA answers", frozenset({"question_id", "text"}), llava.read_answers),
)


@dataclass(frozen=True)
class Predictions:
    """What was said of each sample; `targets` is what lmms-eval wrote down as right, None for other layouts."""

    path: Path
    layout: str
    said: dict[str, str]
    targets: dict[str, str] | None = None


@dataclass(frozen=True)
class References:
    """What is right: `kind` says how it is scored, `truths` has what that needs (captions; answers; whether yes; options and answer), `media`
    the picture that a sample is about, which is resampled whole."""

    layout: str
    kind: str
    truths: dict[str, Any]
    media: dict[str, str]
    path: Path | None = None


@dataclass(frozen=True)
class Rescored:
    """The figures; a document of them and of how they were made; and a row a sample for paired comparison."""

    figures: dict[str, Figure]
    document: dict[str, Any]
    rows: list[SampleRow]


def read_predictions(path: Path, *, id_field: str = "doc_id") -> Predictions:
    """Read a prediction file; its layout is told by the fields of its first entry.

    Args:
        id_field: of lmms-eval's samples, the field that names them as the references do, with dots where it lies deeper (`doc.question_id`).

    Raises:
        DataError: if the layout is none that is known, or an entry is not of it.
    """
    first = _first(read_json(path))
    for layout in LAYOUTS:
        if layout.fields <= first.keys():
            if layout.read is not None:
                return Predictions(path, layout.name, layout.read(path))
            samples = lmms.named_by(lmms.read_samples(path), id_field, path)
            said, targets = ({name: getattr(sample, part) for name, sample in samples.items()} for part in ("said", "target"))
            return Predictions(path, layout.name, said, targets)
    known = "; ".join(f"{layout.name} ({', '.join(sorted(layout.fields))})" for layout in LAYOUTS)
    raise DataError(f"{path}: its first entry has the fields {', '.join(sorted(first)) or 'none'}, which are of no known layout: {known}")


def read_references(path: Path) -> References:
    """Read a reference file of the official form: COCO captions, VQA or VizWiz annotations, POPE questions, ScienceQA's problems.json.

    Raises:
        DataError: if the layout is none of these, or an entry is not of it.
    """
    document = read_json(path)
    if isinstance(document, dict) and isinstance(annotations := document.get("annotations"), list):
        if "caption" in _first(annotations):
            truths = coco.read_references(path)
            return References("COCO captions", CAPTIONS, truths, {name: name for name in truths}, path)
        return _annotated("VQA annotations", vqa_files.read_annotations(path), path)
    first = _first(document)
    if {"image", "answers"} <= first.keys():
        return _annotated("VizWiz annotations", vqa_files.read_vizwiz_annotations(path), path)
    if {"question_id", "label"} <= first.keys():
        asked = questions.read_pope(path)
        return References("POPE questions", YES_NO, {name: one.yes for name, one in asked.items()}, {n: one.medium for n, one in asked.items()}, path)
    if isinstance(document, dict) and "choices" in _first(list(document.values())):
        problems = questions.read_scienceqa(path)
        return References("ScienceQA problems", CHOICE, dict(problems), {name: name for name in problems}, path)
    raise DataError(f"{path}: is of no known layout of references: COCO captions (annotations with caption), VQA annotations (annotations with "
                    "answers), VizWiz (image, answers), POPE (question_id, label), ScienceQA (id: choices, answer)")


def _annotated(layout: str, found: Mapping[str, vqa_files.Annotation], path: Path) -> References:
    return References(layout, ANSWERS, {name: one.answers for name, one in found.items()}, {name: one.medium for name, one in found.items()}, path)


def targets(predictions: Predictions) -> References:
    """The targets that lmms-eval wrote beside the answers, as references: yes or no where all are, else answers (one, or a list).

    Raises:
        DataError: if the predictions are of another layout.
    """
    if predictions.targets is None:
        raise DataError(f"--references: missing; {predictions.path} ({predictions.layout}) holds no references of its own")
    media = {name: name for name in predictions.targets}
    said = {name: text.strip().lower() for name, text in predictions.targets.items()}
    if set(said.values()) <= {"yes", "no"}:
        return References("targets of lmms-eval", YES_NO, {name: text == "yes" for name, text in said.items()}, media)
    return References("targets of lmms-eval", ANSWERS, {name: _listed(text) for name, text in predictions.targets.items()}, media)


def _listed(target: str) -> list[str]:
    """lmms-eval writes a list of answers as Python shows it."""
    if target.startswith("["):
        try:
            found = ast.literal_eval(target)
        except (ValueError, SyntaxError):
            return [target]
        if found and all(isinstance(answer, str) for answer in found):
            return list(found)
    return [target]


def _first(document: Any) -> dict[str, Any]:
    entry = document[0] if isinstance(document, list) and document else document
    return entry if isinstance(entry, dict) else {}


def rescore(
    predictions: Predictions, references: References, *, variant: str | None, subset: bool, spice_folder: Path | None, resamples: int, seed: int
) -> Rescored:
    """Score predictions against references.

    Args:
        variant: how VQA answers are normalised (`vqa.VARIANTS`); None for other references.
        subset: whether references that nothing was said of are left out (and counted), as when they are of more than the split that was run.
        spice_folder: the jars of SPICE, or None.

    Raises:
        DataError: if something was said of a sample that has no reference, or nothing of one that has; or `variant` is missing.
        AnymalError: if there are fewer than two samples, or Java is needed and cannot be run.
    """
    unknown = sorted(predictions.said.keys() - references.truths.keys())
    if unknown:
        raise DataError(f"{predictions.path}: {len(unknown)} of {len(predictions.said)} samples, such as {unknown[0]}, have no reference in "
                        f"{references.path}; give the references of this data set and split (for lmms-eval's samples, see --id-field)")
    unsaid = sorted(references.truths.keys() - predictions.said.keys())
    if unsaid and not subset:
        raise DataError(f"{predictions.path}: nothing was said of {len(unsaid)} of {len(references.truths)} samples of {references.path}, such as "
                        f"{unsaid[0]}; give all predictions, or --subset to score those that are there")
    for option, kind, given in (("--variant", ANSWERS, variant), ("--spice", CAPTIONS, spice_folder)):
        if given is not None and references.kind != kind:
            raise DataError(f"{option} {given}: is for {kind}, and references of this layout ({references.layout}) are scored as {references.kind}; "
                            "leave it out")
    names = sorted(predictions.said)
    said, truths = [predictions.said[name] for name in names], [references.truths[name] for name in names]
    if references.kind == CAPTIONS:
        scored = _captions(said, truths, spice_folder)
    elif references.kind == ANSWERS:
        scored = _answers(said, truths, variant)
    elif references.kind == YES_NO:
        scored = _yes_no(said, truths)
    else:
        scored = _choices(said, truths)
    media = [references.media[name] for name in names]
    whole = {name: by_unit(measure, media) for name, measure in scored.measures.items()}
    exact = figures(whole, {}, n=len(names), resamples=resamples, seed=seed)
    found = {name: Figure(value=_rounded(one["value"]), low=_rounded(one["low"]), high=_rounded(one["high"]), n=one["n"])
             for name, one in exact.items()}
    units = len(set(media))
    together = f"{units} pictures, each with all questions about it" if units < len(names) else f"{units} samples"
    document = {
        **found,
        **scored.notes,
        "kind": references.kind,
        "left_out": len(unsaid),
        "predictions": {"file": predictions.path.name, "layout": predictions.layout, "sha256": sha256_of(predictions.path)},
        "references": {"file": None, "layout": references.layout} if references.path is None else
        {"file": references.path.name, "layout": references.layout, "sha256": sha256_of(references.path)},
        "protocol": f"{LEVEL:.0%} percentile intervals from {resamples} bootstrap resamples (seed {seed}) of {together}",
    }  # fmt: skip
    scores = {name: scored.measures[name].per_sample().tolist() for name in scored.per_sample}
    rows = [SampleRow(branch=references.kind, id=name, group=media[place], scores={metric: values[place] for metric, values in scores.items()})
            for place, name in enumerate(names)]
    return Rescored(found, document, rows)


def _rounded(value: float) -> float:
    return round(value, DECIMALS) + 0.0  # adding 0.0 turns -0.0 into 0.0


def write_lmms(folder: Path, predictions: Predictions, references: References, rescored: Rescored) -> None:
    """Write what lmms-eval would: `samples_KIND.jsonl`, a line a sample in the order of `rescored.rows`, and `results.json`."""
    kind = references.kind
    samples = [lmms.Sample(row["id"], predictions.said[row["id"]], _target(kind, references.truths[row["id"]]), scores=row["scores"])
               for row in rescored.rows]
    lmms.write_samples(folder / f"samples_{kind}.jsonl", samples)
    lmms.write_results(folder / "results.json", {kind: rescored.figures}, model=predictions.path.name, prompts={kind: ""})


def _target(kind: str, truth: Any) -> str:
    if kind == YES_NO:
        return "yes" if truth else "no"
    return choice.LETTERS[truth.answer] if kind == CHOICE else str(list(truth))


class Scored(NamedTuple):
    """Measures with a row a sample, which of them mean something for one sample, and what is said about them."""

    measures: dict[str, Measure]
    per_sample: Sequence[str]
    notes: dict[str, Any]


def _captions(said: Sequence[str], truths: Sequence[Sequence[str]], spice_folder: Path | None) -> Scored:
    jars = spice.open_spice(spice_folder)
    tokens = iter(captions.tokenize([text for group in truths for text in group] + list(said)))
    references = [[next(tokens) for _ in group] for group in truths]
    metrics = captions.ALL_METRICS + (captions.SPICE_METRICS if jars else ())
    with captions.open_meteor() as meteor:
        measures = captions.CaptionScorer(references, meteor, jars).measures(list(tokens), metrics)
    absent = {} if jars else {"absent": dict.fromkeys(captions.SPICE_METRICS, spice.ABSENT)}
    return Scored(measures, metrics, {"normaliser": captions.NORMALISER, **absent})


def _answers(said: Sequence[str], truths: Sequence[Sequence[str]], variant: str | None) -> Scored:
    if variant is None:
        raise DataError(f"--variant: missing; VQA answers are normalised in ways that give different figures: {', '.join(vqa.VARIANTS)}")
    scores = [vqa.answer_accuracy(answer, answers, variant=variant) for answer, answers in zip(said, truths, strict=True)]
    notes = {"variant": variant, "normaliser": vqa.VARIANTS[variant], "empty_answers": sum(not answer.strip() for answer in said)}
    return Scored({"accuracy": mean_of(np.array(scores))}, ["accuracy"], notes)


def _yes_no(said: Sequence[str], truths: Sequence[bool]) -> Scored:
    told = [binary.extract_yes_no(answer) for answer in said]
    notes = {"normaliser": binary.NORMALISER, "unparsable": sum(answer is None for answer in told)}
    return Scored(binary.pope_measures(told, truths), ["accuracy"], notes)


def _choices(said: Sequence[str], truths: Sequence[questions.Problem]) -> Scored:
    found = choice.choice_scores(said, [problem.options for problem in truths], [problem.answer for problem in truths])
    return Scored({"accuracy": mean_of(found.scores)}, ["accuracy"], {"normaliser": choice.NORMALISER, "unparsable": found.unparsable})
