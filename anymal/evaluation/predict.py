"""What the model says of held-out samples under each condition; no figure is computed here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from anymal.data.features import FeatureStore
from anymal.errors import DataError, NumericalError
from anymal.evaluation.controls import derangement, draw, draw_stratified, most_similar, pool
from anymal.evaluation.names import canonical
from anymal.evaluation.vqa import normalise_answer
from anymal.model.prompt import Medium, Prompt, Template
from anymal.progress import track

if TYPE_CHECKING:
    import torch

    from anymal.model.anymal import Completion

SIMILAR = "similar"
POOLED_AT_ONCE = 64
"""Media whose features are in memory together while they are pooled."""
BATCHES_AT_ONCE = 16
"""Batches whose features are in memory together; the model sorts them by length."""

Record = dict[str, Any]
Cell = tuple[tuple[int | None, ...], str | None]
"""A row of each modality's features (None: the empty medium), and a question (None: the prompt has none)."""


class Model(Protocol):
    """What prediction needs of `anymal.model.anymal.AnyMAL` or `anymal.evaluation.recorded.RecordedModel`."""

    templates: dict[str, dict[str, Template]]
    metadata: dict[str, dict[str, Any]]

    def complete(self, prompts: Sequence[Prompt], *, max_new_tokens: int, batch_size: int) -> list[Completion]:
        """Greedy answers, each with how it ended."""
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

    def pooled(self, modality: str, rows: Sequence[int]) -> np.ndarray:
        """One unit vector a medium, shape (rows, dim): what tells which media are alike."""
        store = self.stores[modality]
        parts = [pool(store.features(rows[start : start + POOLED_AT_ONCE]).numpy()) for start in range(0, len(rows), POOLED_AT_ONCE)]
        return np.concatenate(parts)

    def answer(self, template: Template, records: Sequence[Record], cells: Sequence[Mapping[str, Cell]], *, max_new_tokens: int, label: str) -> None:
        """Add to each record what the model says under each condition of its cells (`prediction`), and how that ended (`finish`).

        The cells of `similar` come after all others, so that these are in the same batches, and their answers the same to the bit, with and
        without it.
        """
        said: dict[Cell, Completion] = {}
        for later in (False, True):
            new = {cell for by in cells for condition, cell in by.items() if (condition == SIMILAR) == later} - said.keys()
            if new:
                said |= self._answers(template, new, max_new_tokens=max_new_tokens, label=f"{label}, {SIMILAR} input" if later else label)
        for record, by in zip(records, cells, strict=True):
            record["prediction"] = {condition: said[cell].text for condition, cell in by.items()}
            record["finish"] = {condition: said[cell].finish for condition, cell in by.items()}

    def _answers(self, template: Template, cells: Iterable[Cell], *, max_new_tokens: int, label: str) -> dict[Cell, Completion]:
        """Greedy answers to distinct (rows, question) pairs; equal input gives equal output, so that each is generated once."""
        distinct = sorted(cells, key=lambda cell: ([(row is None, row or 0) for row in cell[0]], cell[1] or ""))
        answers: dict[Cell, Completion] = {}
        with track(total=len(distinct), label=label, unit="answers") as bar:
            for chunk in self._chunks(distinct):
                said = self._model.complete(self._prompts(template, chunk), max_new_tokens=max_new_tokens, batch_size=self._batch_size)
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
    predictor: Predictor, *, kinds: Sequence[str] | None, limit: int | None, scored_references: int, max_new_tokens: int,
    conditions: Sequence[str], seed: int,
) -> tuple[list[Record], int]:
    """Captions and reference losses of held-out samples of one modality under each condition.

    Args:
        kinds: kinds of samples to take (`kind` of their metadata; None: all).
        limit: greatest number of samples (None: all that have a caption).
        scored_references: how many of a sample's references have their loss measured, from the first.
        conditions: of `anymal.evaluation.controls.CONDITIONS`, the right input among them.

    Returns:
        One record a sample (`key`, `source`, `group`, `label` or None, `prompt`, `references`; `shuffled_key`, `shuffled_label` and
        `similar_key` where these conditions are asked for; `prediction`, `finish` and `nll` by condition; `nll` is `{nats, tokens}`, summed
        over the scored references), and how many samples could have been taken.

    Raises:
        DataError: if the split has no sample of these kinds, fewer than two with a caption, or none with another one.
    """
    store, template = predictor.store, predictor.template("caption")
    having = [row for row in range(len(store)) if (meta := store.meta(row))["captions"] and (kinds is None or meta["kind"] in kinds)]
    if not having and kinds is not None:
        found = sorted({store.meta(row)["kind"] for row in range(len(store))})
        raise DataError(f"evaluate's caption_kinds = {', '.join(kinds)}: no captioned sample is of these kinds; there are {', '.join(found)}")
    rows = draw(having, limit, seed=seed)
    metas = [store.meta(row) for row in rows]
    others: dict[str, list[int]] = {}
    if "shuffled" in conditions:
        others["shuffled"] = derangement(len(rows), seed=seed)
    if SIMILAR in conditions:
        truths = [{canonical(text) for text in (*meta["captions"], meta.get("label") or "")} - {""} for meta in metas]
        others[SIMILAR] = most_similar(predictor.pooled(predictor.modalities[0], rows), truths, rows=range(len(rows)))
    inputs: dict[str, Sequence[int | None]] = {"right": rows, **{c: [rows[i] for i in places] for c, places in others.items()}}
    inputs["blank"] = [None] * len(rows)
    records: list[Record] = []
    for index, meta in enumerate(metas):
        stand_ins = {condition: metas[places[index]] for condition, places in others.items()}
        records.append({
            "key": meta["key"], "source": meta["source"], "group": group_of(meta), "label": meta.get("label"),
            "prompt": predictor.messages(template), "references": meta["captions"],
            "scored_references": min(scored_references, len(meta["captions"])), **_stand_in_keys(stand_ins), "nll": {},
        })  # fmt: skip
    cells: list[dict[str, Cell]] = [{condition: ((inputs[condition][index],), None) for condition in conditions} for index in range(len(rows))]
    predictor.answer(template, records, cells, max_new_tokens=max_new_tokens, label="captions")
    targets = [(index, text) for index, record in enumerate(records) for text in record["references"][:scored_references]]
    for condition in conditions:
        losses = predictor.losses(template, [(inputs[condition][index], text) for index, text in targets], label=f"nll, {condition} input")
        for record in records:
            record["nll"][condition] = {"nats": 0.0, "tokens": 0}
        for (index, _), (nats, tokens) in zip(targets, losses, strict=True):
            total = records[index]["nll"][condition]
            total["nats"] += nats
            total["tokens"] += tokens
    return records, len(having)


def _stand_in_keys(stand_ins: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The samples whose media stand in, as records name them; of the shuffled one also the label, which may be the right one's."""
    found = {f"{condition}_key": meta["key"] for condition, meta in stand_ins.items()}
    return found | ({"shuffled_label": stand_ins["shuffled"].get("label")} if "shuffled" in stand_ins else {})


def label_vocabulary(store: FeatureStore) -> list[str]:
    """All labels of the samples of a split, sorted; empty where samples have none."""
    return sorted({label for row in range(len(store)) if (label := store.meta(row).get("label")) is not None})


def predict_answers(
    predictor: Predictor, *, limit: int | None, max_new_tokens: int, conditions: Sequence[str], seed: int
) -> tuple[list[Record], int]:
    """Answers to questions about held-out samples of one modality under each condition.

    Args:
        limit: greatest number of questions (None: all), drawn as evenly over the kinds as their numbers allow.
        conditions: of `anymal.evaluation.controls.CONDITIONS`, the right input among them.

    Returns:
        One record a question (`question_id`, `key`, `source`, `group`, `kind`, `question`, `prompt`, `references`; `shuffled_key` and
        `similar_key` where these conditions are asked for; `prediction` and `finish` by condition), and how many questions could have been
        taken.

    Raises:
        DataError: if the split holds no questions, the questions drawn are about one sample only, or all have one answer.
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
    entries = [store.meta(row)["questions"][number] for row, number in chosen]
    rows = sorted({row for row, _ in chosen})
    others: dict[str, list[int]] = {}
    if "shuffled" in conditions:
        other = {rows[i]: rows[j] for i, j in enumerate(derangement(len(rows), seed=seed))}
        others["shuffled"] = [other[row] for row, _ in chosen]
    if SIMILAR in conditions:
        place_of = {row: place for place, row in enumerate(rows)}
        alike = most_similar(predictor.pooled(predictor.modalities[0], rows), [{normalise_answer(entry["answer"])} for entry in entries],
                             rows=[place_of[row] for row, _ in chosen], kinds=[entry["kind"] for entry in entries])
        others[SIMILAR] = [chosen[item][0] for item in alike]
    records: list[Record] = []
    cells: list[dict[str, Cell]] = []
    for index, ((row, number), entry) in enumerate(zip(chosen, entries, strict=True)):
        meta, question = store.meta(row), entry["question"]
        inputs: dict[str, int | None] = {"right": row, "blank": None, **{condition: found[index] for condition, found in others.items()}}
        cells.append({condition: ((inputs[condition],), question) for condition in conditions})
        records.append({
            "question_id": f"{meta['key']}-{number}", "key": meta["key"], "source": meta["source"], "group": group_of(meta),
            "kind": entry["kind"], "question": question, "prompt": predictor.messages(template, question), "references": [entry["answer"]],
            **{f"{condition}_key": store.meta(found[index])["key"] for condition, found in others.items()},
        })  # fmt: skip
    predictor.answer(template, records, cells, max_new_tokens=max_new_tokens, label="answers")
    return records, len(places)
