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
Cell = tuple[tuple[int | None, ...], str | None]
"""A row of each modality's features (None: the empty medium), and a question (None: the prompt has none)."""


class Model(Protocol):
    """What prediction needs of `anymal.model.anymal.AnyMAL`."""

    templates: dict[str, dict[str, Template]]
    metadata: dict[str, dict[str, Any]]

    def generate(self, prompts: Sequence[Prompt], *, max_new_tokens: int, batch_size: int) -> list[str]:
        """Greedy answers."""
        ...

    def score(self, prompts: Sequence[Prompt], targets: Sequence[str], *, batch_size: int) -> list[tuple[float, int]]:
        """Summed nats and number of tokens of each target, end of turn included."""
        ...


class Predictor:
    """Asks a model about rows of feature stores, one store a modality, in the order in which a prompt holds their media.

    Raises:
        DataError: if features were made by another encoder than the one the model's projector was trained on.
    """

    def __init__(self, model: Model, stores: Mapping[str, FeatureStore], *, batch_size: int) -> None:
        for modality, store in stores.items():
            trained_on = model.metadata[modality]["encoder"]
            for field, found in {**store.info["encoder"], "tokens": store.tokens, "dim": store.dim}.items():
                if trained_on.get(field) != found:
                    raise DataError(f"features of {modality}: made by an encoder with {field} = {found}, but the checkpoint's projector was "
                                    f"trained on {field} = {trained_on.get(field)}; run encode with the encoder that align saw")
        self._model, self._batch_size = model, batch_size
        self.stores = dict(stores)

    @property
    def modalities(self) -> list[str]:
        """In the order of the media of a prompt."""
        return list(self.stores)

    @property
    def store(self) -> FeatureStore:
        """The held-out features of the first modality."""
        return next(iter(self.stores.values()))

    def template(self, *names: str) -> Template:
        """The first modality's prompt of the first of these names that it has.

        Raises:
            DataError: if it has none of them.
        """
        known = self._model.templates[self.modalities[0]]
        for name in names:
            if name in known:
                return known[name]
        raise DataError(f"checkpoint of {self.modalities[0]}: has no prompt template '{names[-1]}', only {', '.join(sorted(known))}; "
                        "add it to align's knobs and train again, or leave its task out of evaluate's tasks")

    def messages(self, template: Template, question: str | None = None) -> list[dict[str, str]]:
        """The chat messages of a prompt with one medium of each modality."""
        return template.messages(self.modalities, question)

    def _prompts(self, template: Template, cells: Sequence[Cell]) -> list[Prompt]:
        return [Prompt(self.messages(template, question), [
            Medium(modality, self._features(modality, row)) for modality, row in zip(self.stores, rows, strict=True)]) for rows, question in cells]

    def _features(self, modality: str, row: int | None) -> torch.Tensor:
        store = self.stores[modality]
        return store.blank() if row is None else store.features([row])[0]

    def answers(self, template: Template, cells: Iterable[Cell], *, max_new_tokens: int, label: str) -> dict[Cell, str]:
        """Greedy answers to (rows, question) pairs; each distinct pair is generated once, for equal input gives equal output."""
        distinct = sorted(set(cells), key=lambda cell: ([(row is None, row or 0) for row in cell[0]], cell[1] or ""))
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
                prompts = self._prompts(template, [((row,), None) for row, _ in chunk])
                scores += self._model.score(prompts, [text for _, text in chunk], batch_size=self._batch_size)
                bar.update(len(chunk))
        for (row, _), (nats, _) in zip(cells, scores, strict=True):
            if not math.isfinite(nats):
                key = "the empty input" if row is None else self.store.meta(row)["key"]
                raise NumericalError(f"evaluate: the loss of sample {key} is {nats}; check the checkpoint, or use dtype float32")
        return scores

    def _chunks(self, items: Sequence[Any]) -> Iterable[Sequence[Any]]:
        size = self._batch_size * BATCHES_AT_ONCE
        return (items[start : start + size] for start in range(0, len(items), size))


def group_of(meta: Mapping[str, Any]) -> str:
    """What a sample belongs to and is not independent of (a kit, a subject, a video); a sample without a group is one by itself."""
    return str(meta.get("group", meta["key"]))


def predict_captions(
    predictor: Predictor, *, kinds: Sequence[str] | None, limit: int | None, scored_references: int, max_new_tokens: int, seed: int
) -> tuple[list[Record], int]:
    """Captions and reference losses of held-out samples of one modality under each condition.

    Args:
        kinds: kinds of samples to take (`kind` of their metadata; None: all).
        limit: greatest number of samples (None: all that have a caption).
        scored_references: how many of a sample's references have their loss measured, from the first.

    Returns:
        One record a sample (`key`, `source`, `group`, `label` or None, `prompt`, `references`, `shuffled_key`, `shuffled_label`,
        `prediction` and `nll` by condition; `nll` is `{nats, tokens}`, summed over the scored references), and how many samples could
        have been taken.

    Raises:
        DataError: if the split has no sample of these kinds, or fewer than two with a caption.
    """
    store, template = predictor.store, predictor.template("caption")
    having = [row for row in range(len(store)) if (meta := store.meta(row))["captions"] and (kinds is None or meta["kind"] in kinds)]
    if not having and kinds is not None:
        found = sorted({store.meta(row)["kind"] for row in range(len(store))})
        raise DataError(f"evaluate's caption_kinds = {', '.join(kinds)}: no captioned sample is of these kinds; there are {', '.join(found)}")
    rows = draw(having, limit, seed=seed)
    others = [rows[i] for i in derangement(len(rows), seed=seed)]
    inputs: dict[str, Sequence[int | None]] = {"right": rows, "shuffled": others, "blank": [None] * len(rows)}
    said = predictor.answers(template, [((row,), None) for row in [*rows, None]], max_new_tokens=max_new_tokens, label="captions")
    records: list[Record] = []
    for index, (row, other) in enumerate(zip(rows, others, strict=True)):
        meta, stand_in = store.meta(row), store.meta(other)
        records.append({
            "key": meta["key"], "source": meta["source"], "group": group_of(meta), "label": meta.get("label"),
            "prompt": predictor.messages(template), "references": meta["captions"],
            "scored_references": min(scored_references, len(meta["captions"])), "shuffled_key": stand_in["key"],
            "shuffled_label": stand_in.get("label"),
            "prediction": {condition: said[(inputs[condition][index],), None] for condition in CONDITIONS}, "nll": {},
        })  # fmt: skip
    targets = [(index, text) for index, record in enumerate(records) for text in record["references"][:scored_references]]
    for condition in CONDITIONS:
        losses = predictor.losses(template, [(inputs[condition][index], text) for index, text in targets], label=f"nll, {condition} input")
        for record in records:
            record["nll"][condition] = {"nats": 0.0, "tokens": 0}
        for (index, _), (nats, tokens) in zip(targets, losses, strict=True):
            total = records[index]["nll"][condition]
            total["nats"] += nats
            total["tokens"] += tokens
    return records, len(having)


def label_vocabulary(store: FeatureStore) -> list[str]:
    """All labels of the samples of a split, sorted; empty where samples have none."""
    return sorted({label for row in range(len(store)) if (label := store.meta(row).get("label")) is not None})


def predict_answers(predictor: Predictor, *, limit: int | None, max_new_tokens: int, seed: int) -> tuple[list[Record], int]:
    """Answers to questions about held-out samples of one modality under each condition.

    Args:
        limit: greatest number of questions (None: all), drawn as evenly over the kinds as their numbers allow.

    Returns:
        One record a question (`question_id`, `key`, `source`, `group`, `kind`, `question`, `prompt`, `references`, `shuffled_key`,
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
        raise DataError(f"features of {predictor.modalities[0]}: the split holds no sample with questions; let curate make some, or leave the "
                        "task out of evaluate's tasks")
    chosen = [places[i] for i in draw_stratified(kinds, limit, seed=seed)]
    rows = sorted({row for row, _ in chosen})
    other = {rows[i]: rows[j] for i, j in enumerate(derangement(len(rows), seed=seed))}
    records: list[Record] = []
    cells: list[dict[str, Cell]] = []
    for row, number in chosen:
        meta = store.meta(row)
        entry = meta["questions"][number]
        question = entry["question"]
        cells.append({"right": ((row,), question), "shuffled": ((other[row],), question), "blank": ((None,), question)})
        records.append({
            "question_id": f"{meta['key']}-{number}", "key": meta["key"], "source": meta["source"], "group": group_of(meta),
            "kind": entry["kind"], "question": question, "prompt": predictor.messages(template, question), "references": [entry["answer"]],
            "shuffled_key": store.meta(other[row])["key"],
        })  # fmt: skip
    said = predictor.answers(template, [cell for by in cells for cell in by.values()], max_new_tokens=max_new_tokens, label="answers")
    for record, by in zip(records, cells, strict=True):
        record["prediction"] = {condition: said[by[condition]] for condition in CONDITIONS}
    return records, len(places)
