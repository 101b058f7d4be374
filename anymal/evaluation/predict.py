"""What the model says of held-out samples under the three conditions; no figure is computed here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from anymal.data.features import FeatureStore
from anymal.errors import DataError, NumericalError
from anymal.evaluation.controls import CONDITIONS, derangement, draw, draw_stratified
from anymal.model.prompt import Medium, Prompt, Template
from anymal.progress import track

if TYPE_CHECKING:
    import torch

BATCHES_AT_ONCE = 16
"""Batches whose features are in memory together; the model sorts them by length."""

Record = dict[str, Any]
Cell = tuple[int | None, str | None]
"""A row of the features (None: the empty medium) and a question (None: the prompt has none)."""


class Model(Protocol):
    """What prediction needs of `anymal.model.anymal.AnyMAL`."""

    templates: dict[str, Template]

    def generate(self, prompts: Sequence[Prompt], *, max_new_tokens: int, batch_size: int) -> list[str]:
        """Greedy answers."""
        ...

    def score(self, prompts: Sequence[Prompt], targets: Sequence[str], *, batch_size: int) -> list[tuple[float, int]]:
        """Summed nats and number of tokens of each target, end of turn included."""
        ...


class Predictor:
    """Asks a model about rows of a feature store; `None` for a row means the empty medium.

    Raises:
        DataError: if the features were made by another encoder than the one the model's projector was trained on.
    """

    def __init__(self, model: Model, store: FeatureStore, *, modality: str, trained_on: Mapping[str, Any], batch_size: int) -> None:
        for field, found in {**store.info["encoder"], "tokens": store.tokens, "dim": store.dim}.items():
            if trained_on.get(field) != found:
                raise DataError(f"features: made by an encoder with {field} = {found}, but the checkpoint's projector was trained on "
                                f"{field} = {trained_on.get(field)}; run encode with the encoder that align saw")
        self._model, self._store, self._modality, self._batch_size = model, store, modality, batch_size

    @property
    def store(self) -> FeatureStore:
        """The held-out features."""
        return self._store

    def template(self, name: str) -> Template:
        """A prompt of the model by name.

        Raises:
            DataError: if the model has none of that name.
        """
        if name not in self._model.templates:
            raise DataError(f"checkpoint: has no prompt template '{name}', only {', '.join(sorted(self._model.templates))}; "
                            "add it to align's knobs and train again, or leave its task out of evaluate.tasks")
        return self._model.templates[name]

    def _prompts(self, template: Template, cells: Sequence[Cell]) -> list[Prompt]:
        return [Prompt(template.messages(question), [Medium(self._modality, self._features(row))]) for row, question in cells]

    def _features(self, row: int | None) -> torch.Tensor:
        return self._store.blank() if row is None else self._store.features([row])[0]

    def answers(self, template: Template, cells: Iterable[Cell], *, max_new_tokens: int, label: str) -> dict[Cell, str]:
        """Greedy answers to (row, question) pairs; each distinct pair is generated once, for equal input gives equal output."""
        distinct = sorted(set(cells), key=lambda cell: (cell[0] is None, cell[0] or 0, cell[1] or ""))
        answers: dict[Cell, str] = {}
        with track(total=len(distinct), label=label, unit="answers") as bar:
            for chunk in self._chunks(distinct):
                said = self._model.generate(self._prompts(template, chunk), max_new_tokens=max_new_tokens, batch_size=self._batch_size)
                answers.update(zip(chunk, said, strict=True))
                bar.update(len(chunk))
        return answers

    def losses(self, template: Template, cells: Sequence[tuple[int | None, str]], *, label: str) -> list[tuple[float, int]]:
        """Summed nats and number of tokens of each (row, target text) pair.

        Raises:
            NumericalError: if a value is not finite.
        """
        scores: list[tuple[float, int]] = []
        with track(total=len(cells), label=label, unit="captions") as bar:
            for chunk in self._chunks(cells):
                prompts = self._prompts(template, [(row, None) for row, _ in chunk])
                scores += self._model.score(prompts, [text for _, text in chunk], batch_size=self._batch_size)
                bar.update(len(chunk))
        for (row, _), (nats, _) in zip(cells, scores, strict=True):
            if not math.isfinite(nats):
                key = "the empty input" if row is None else self._store.meta(row)["key"]
                raise NumericalError(f"evaluate: the loss of sample {key} is {nats}; check the checkpoint, or use dtype float32")
        return scores

    def _chunks(self, items: Sequence[Any]) -> Iterable[Sequence[Any]]:
        size = self._batch_size * BATCHES_AT_ONCE
        return (items[start : start + size] for start in range(0, len(items), size))


def predict_captions(
    predictor: Predictor, *, kinds: Sequence[str], limit: int | None, scored_references: int, max_new_tokens: int, seed: int
) -> tuple[list[Record], int]:
    """Captions and reference losses of held-out samples under each condition.

    Args:
        kinds: kinds of samples to take (`kind` of their metadata).
        limit: greatest number of samples (None: all that have a caption).
        scored_references: how many of a sample's references have their loss measured, from the first.

    Returns:
        One record a sample (`key`, `source`, `prompt`, `references`, `shuffled_key`, `prediction` and `nll` by condition; `nll` is
        `{nats, tokens}`, summed over the scored references), and how many samples could have been taken.

    Raises:
        DataError: if fewer than two samples have a caption.
    """
    store, template = predictor.store, predictor.template("caption")
    having = [row for row in range(len(store)) if (meta := store.meta(row))["captions"] and meta["kind"] in kinds]
    rows = draw(having, limit, seed=seed)
    others = [rows[i] for i in derangement(len(rows), seed=seed)]
    inputs: dict[str, Sequence[int | None]] = {"right": rows, "shuffled": others, "blank": [None] * len(rows)}
    said = predictor.answers(template, [(row, None) for row in [*rows, None]], max_new_tokens=max_new_tokens, label="captions")
    metas = [store.meta(row) for row in rows]
    records: list[Record] = []
    for index, meta in enumerate(metas):
        records.append({
            "key": meta["key"], "source": meta["source"], "prompt": template.messages(), "references": meta["captions"],
            "scored_references": min(scored_references, len(meta["captions"])), "shuffled_key": store.meta(others[index])["key"],
            "prediction": {condition: said[inputs[condition][index], None] for condition in CONDITIONS}, "nll": {},
        })  # fmt: skip
    targets = [(index, text) for index, meta in enumerate(metas) for text in meta["captions"][:scored_references]]
    for condition in CONDITIONS:
        losses = predictor.losses(template, [(inputs[condition][index], text) for index, text in targets], label=f"nll, {condition} input")
        for record in records:
            record["nll"][condition] = {"nats": 0.0, "tokens": 0}
        for (index, _), (nats, tokens) in zip(targets, losses, strict=True):
            total = records[index]["nll"][condition]
            total["nats"] += nats
            total["tokens"] += tokens
    return records, len(having)


def predict_answers(predictor: Predictor, *, limit: int | None, max_new_tokens: int, seed: int) -> tuple[list[Record], int]:
    """Answers to questions about held-out samples under each condition.

    Args:
        limit: greatest number of questions (None: all), drawn as evenly over the kinds as their numbers allow.

    Returns:
        One record a question (`question_id`, `key`, `source`, `kind`, `question`, `prompt`, `references`, `shuffled_key`,
        `prediction` by condition), and how many questions could have been taken.

    Raises:
        DataError: if the split holds no questions, or the questions drawn are about one sample only.
    """
    store, template = predictor.store, predictor.template("question")
    places: list[tuple[int, int]] = []
    kinds: dict[str, list[int]] = {}
    for row in range(len(store)):
        for number, question in enumerate(store.meta(row)["questions"]):
            kinds.setdefault(question["kind"], []).append(len(places))
            places.append((row, number))
    if not places:
        raise DataError("features: the split holds no sample with questions; let curate compose scenes, or leave vqa out of evaluate.tasks")
    chosen = [places[i] for i in draw_stratified(kinds, limit, seed=seed)]
    rows = sorted({row for row, _ in chosen})
    other = {rows[i]: rows[j] for i, j in enumerate(derangement(len(rows), seed=seed))}
    records: list[Record] = []
    cells: list[dict[str, tuple[int | None, str]]] = []
    for row, number in chosen:
        meta = store.meta(row)
        entry = meta["questions"][number]
        question = entry["question"]
        cells.append({"right": (row, question), "shuffled": (other[row], question), "blank": (None, question)})
        records.append({
            "question_id": f"{meta['key']}-{number}", "key": meta["key"], "source": meta["source"], "kind": entry["kind"], "question": question,
            "prompt": template.messages(question), "references": [entry["answer"]], "shuffled_key": store.meta(other[row])["key"],
        })  # fmt: skip
    said = predictor.answers(template, [cell for by in cells for cell in by.values()], max_new_tokens=max_new_tokens, label="answers")
    for record, by in zip(records, cells, strict=True):
        record["prediction"] = {condition: said[by[condition]] for condition in CONDITIONS}
    return records, len(places)
