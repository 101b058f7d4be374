"""One benchmark asked: which samples, with which media under which condition, and what the model said."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from anymal.errors import DataError
from anymal.evaluation.benchmarks.declaration import Declaration, Wording
from anymal.evaluation.benchmarks.items import Item, Medium, Reading
from anymal.evaluation.benchmarks.media import Encoded, Library, MediumRow, distinct
from anymal.evaluation.benchmarks.prompts import candidates, messages
from anymal.evaluation.controls import derangement, draw, most_similar, pool
from anymal.evaluation.recorded import Batched, RecordedModel
from anymal.evaluation.vqa import normalise_answer
from anymal.model.prompt import Medium as PromptMedium
from anymal.model.prompt import Prompt
from anymal.progress import track

BATCHES_AT_ONCE = 16
"""Batches whose features are in memory together; the model sorts them by length."""

Record = dict[str, Any]
Pool = list[Item]


@dataclass
class Ran:
    """What one part of one benchmark gave."""

    records: list[Record] = field(default_factory=list)
    unusable: list[tuple[str, str]] = field(default_factory=list)
    media: list[MediumRow] = field(default_factory=list)


@dataclass(frozen=True)
class Asking:
    """How a benchmark is asked."""

    name: str
    declaration: Declaration
    wording: Wording
    conditions: tuple[str, ...]
    max_new_tokens: int
    batch_size: int
    seed: int


def pools(items: Sequence[Item], *, limit: int | None, size: int, seed: int) -> list[Pool]:
    """The samples that are asked, in pools: stand-ins come from a sample's own pool, so any part of the pools can be run alone.

    Args:
        limit: greatest number of samples (None: all), drawn by the seed.
        size: media of a pool, roughly.

    Returns:
        Pools of files in a random order; samples about one file are in one pool, and no pool is of one file if there are two.
    """
    by_file: dict[str, list[Item]] = {}
    for item in (items[place] for place in draw(range(len(items)), limit, seed=seed)):
        by_file.setdefault(item.medium.path.as_posix(), []).append(item)
    files = list(by_file.values())
    media = len({item.medium.name for entries in files for item in entries})
    count = max(1, min(media // size, len(files) // 2))
    found: list[Pool] = [[] for _ in range(count)]
    for turn, place in enumerate(np.random.default_rng((seed, 8)).permutation(len(files)).tolist()):
        found[turn * count // len(files)] += files[place]
    return found


def run(reading: Reading, asking: Asking, model: Batched, library: Library, *, limit: int | None, size: int, index: int, of: int) -> Ran:
    """Ask every `of`-th pool of a benchmark, from number `index`; the first part also lists what could not be asked from the start.

    A pool that was finished before is read from the library's folder; one that was begun goes on after its last whole batch.

    Raises:
        DataError: if a condition needs a stand-in and none is left.
    """
    ran = Ran(unusable=list(reading.unusable) if index == 0 else [])
    for number, entries in enumerate(pools(reading.items, limit=limit, size=size, seed=asking.seed)):
        if number % of != index:
            continue
        label = f"{asking.name}-{number:05d}"
        done = library.folder / f"{label}.done"
        if not done.is_file():
            try:
                found = _run_pool(label, entries, asking, model, library)
            except DataError as error:
                raise DataError(f"benchmarks.{asking.name}: {error}") from error
            temporary = done.with_suffix(".partial")
            temporary.write_text(json.dumps(asdict(found)), encoding="utf-8")
            temporary.replace(done)
        library.forget(label)
        found = Ran(**json.loads(done.read_text(encoding="utf-8")))
        ran.records += found.records
        ran.unusable += [(name, reason) for name, reason in found.unusable]
        ran.media += found.media
    ran.records.sort(key=lambda record: str(record["id"]))
    return ran


def _run_pool(label: str, entries: Pool, asking: Asking, model: Batched, library: Library) -> Ran:
    ran = Ran()
    encoded, usable = _encode(ran, label, entries, model, library)
    if "similar" in asking.conditions:
        usable = _with_similar(ran, usable, asking.declaration)
    if not usable:
        return ran
    recorded = RecordedModel(model, library.folder / f"{label}.answers")
    ran.media += library.rows(asking.name, [item.medium for item in usable])
    stand_ins = _stand_ins(usable, encoded, asking)
    prompts = _Prompts(usable, encoded, asking, recorded)
    cells = [prompts.cell(place, medium) for condition in asking.conditions for place, medium in enumerate(stand_ins[condition])]
    said = prompts.complete(cells)
    likelihoods = prompts.score(cells) if asking.declaration.options else None
    for place, item in enumerate(usable):
        asked = {condition: prompts.cell(place, stand_ins[condition][place]) for condition in asking.conditions}
        record: Record = {
            "id": item.id, "group": item.medium.name.partition("#")[0], "medium": item.medium.name, "modality": item.medium.modality,
            "kind": item.kind, "question": item.question or None, "options": list(item.options) or None, "answer": item.answer,
            "references": list(item.references), "prompt": prompts.messages[place],
            "stand_ins": {condition: stand_ins[condition][place] for condition in asking.conditions if condition in ("shuffled", "similar")},
            "prediction": {condition: said[cell].text for condition, cell in asked.items()},
            "finish": {condition: said[cell].finish for condition, cell in asked.items()},
        }  # fmt: skip
        if likelihoods is not None:
            record["likelihoods"] = {condition: [{"nats": nats, "tokens": tokens} for nats, tokens in likelihoods[cell]]
                                     for condition, cell in asked.items()}  # fmt: skip
        ran.records.append(record)
    return ran


def _encode(ran: Ran, label: str, entries: Pool, model: Batched, library: Library) -> tuple[dict[str, Encoded], Pool]:
    """Features by modality, and the samples that can be asked; the others are listed."""
    encoded: dict[str, Encoded] = {}
    reasons: dict[str, str] = {}
    by_modality: dict[str, list[Medium]] = {}
    for medium in distinct([item.medium for item in entries]):
        by_modality.setdefault(medium.modality, []).append(medium)
    for modality, media in sorted(by_modality.items()):
        if modality not in model.templates:
            reasons |= {medium.name: f"no_projector: the model reads no {modality}" for medium in media}
            continue
        found, failed = library.encode(label, media, modality)
        reasons |= {name: f"medium_unreadable: {reason}" for name, reason in failed.items()}
        if found is None:
            continue
        encoded[modality] = found
        if len(found.places) < 2:
            reasons |= {name: f"no_stand_in: it is the only {modality} of its pool" for name in found.places}
    usable = [item for item in entries if item.medium.name not in reasons]
    ran.unusable += [(str(item.id), reasons[item.medium.name]) for item in entries if item.medium.name in reasons]
    return encoded, usable


def _with_similar(ran: Ran, items: Pool, declaration: Declaration) -> Pool:
    """The samples for which there is another medium of their modality of which something else is true; the others are listed."""
    while True:
        known = [(item.medium.modality, item.medium.name, _truth(item, declaration)) for item in items]
        alone = [item for item, (modality, name, truth) in zip(items, known, strict=True)
                 if not any(modality == other and name != another and truth.isdisjoint(false) for other, another, false in known)]
        if not alone:
            return items
        ran.unusable += [(str(item.id), "no_stand_in: nothing in its pool is another medium of which something else is true") for item in alone]
        left = {id(item) for item in alone}
        items = [item for item in items if id(item) not in left]


def _stand_ins(items: Pool, encoded: dict[str, Encoded], asking: Asking) -> dict[str, list[str | None]]:
    """Condition -> for each item the name of the medium that is shown (None: the empty one)."""
    names: dict[str, list[str | None]] = {"right": [item.medium.name for item in items], "blank": [None] * len(items)}
    for condition in ("shuffled", "similar"):
        if condition in asking.conditions:
            names[condition] = [None] * len(items)
    for modality, found in encoded.items():
        places = [place for place, item in enumerate(items) if item.medium.modality == modality]
        if not places:
            continue
        own = list(found.places)
        if "shuffled" in asking.conditions:
            other = {own[place]: own[next_] for place, next_ in enumerate(derangement(len(own), seed=asking.seed))}
            for place in places:
                names["shuffled"][place] = other[items[place].medium.name]
        if "similar" in asking.conditions:
            alike = most_similar(
                _pooled(found.features), [_truth(items[place], asking.declaration) for place in places],
                rows=[found.places[items[place].medium.name] for place in places], kinds=[items[place].kind or "" for place in places])
            for place, nearest in zip(places, alike, strict=True):
                names["similar"][place] = items[places[nearest]].medium.name
    return names


def _pooled(features: np.ndarray) -> np.ndarray:
    """One unit vector a medium, from blocks of features that lie on disk."""
    return np.concatenate([pool(features[start : start + 64]) for start in range(0, len(features), 64)])


def _truth(item: Item, declaration: Declaration) -> set[str]:
    """What must not be true of a similar stand-in: the commonest answer, the right option, or the references."""
    if declaration.metric == "vqa":
        answers = [normalise_answer(answer) for answer in item.references]
        return {max(sorted(set(answers)), key=answers.count)}
    return {" ".join(reference.lower().split()) for reference in item.references}


Cell = tuple[str | None, int]
"""The medium that is shown, and which of the distinct prompts is asked."""


class _Prompts:
    """The prompts of a pool; equal ones about equal media are asked once."""

    def __init__(self, items: Pool, encoded: dict[str, Encoded], asking: Asking, model: RecordedModel) -> None:
        self._items, self._encoded, self._asking, self._model = items, encoded, asking, model
        self.messages = [messages(asking.wording, item, model.templates[item.medium.modality], asking.name) for item in items]
        numbers: dict[str, int] = {}
        self._number = [numbers.setdefault(repr((asked, item.medium.modality, item.options)), len(numbers))
                        for asked, item in zip(self.messages, items, strict=True)]
        self._first = {number: place for place, number in reversed(list(enumerate(self._number)))}

    def cell(self, place: int, medium: str | None) -> Cell:
        """What an item is asked about a medium."""
        return medium, self._number[place]

    def _prompt(self, cell: Cell) -> Prompt:
        place = self._first[cell[1]]
        modality = self._items[place].medium.modality
        return Prompt(self.messages[place], [PromptMedium(modality, self._encoded[modality].tensor(cell[0]))])

    def complete(self, cells: Sequence[Cell]) -> dict[Cell, Any]:
        """Each distinct cell's answer and how it ended."""
        options = {"max_new_tokens": self._asking.max_new_tokens, "batch_size": self._asking.batch_size}
        return self._chunked(cells, "answers", lambda chunk: self._model.complete([self._prompt(cell) for cell in chunk], **options))

    def score(self, cells: Sequence[Cell]) -> dict[Cell, list[tuple[float, int]]]:
        """Nats and tokens of each option of each distinct cell."""

        def ask(chunk: Sequence[Cell]) -> list[list[tuple[float, int]]]:
            pairs = [(place, cell, target) for place, cell in enumerate(chunk)
                     for target in candidates(self._items[self._first[cell[1]]], self._asking.declaration.metric)]
            asked = {cell: self._prompt(cell) for cell in chunk}
            scores = self._model.score([asked[cell] for _, cell, _ in pairs], [target for *_, target in pairs], batch_size=self._asking.batch_size)
            grouped = groupby(zip(pairs, scores, strict=True), key=lambda entry: entry[0][0])
            return [[score for _, score in entries] for _, entries in grouped]

        return self._chunked(cells, "options", ask)

    def _chunked(self, cells: Sequence[Cell], unit: str, ask: Callable[[list[Cell]], Sequence[Any]]) -> dict[Cell, Any]:
        distinct_cells = sorted(set(cells), key=lambda cell: (cell[1], cell[0] is None, cell[0] or ""))
        found: dict[Cell, Any] = {}
        with track(total=len(distinct_cells), label=f"{self._asking.name} {unit}", unit=unit) as bar:
            for chunk in _chunks(distinct_cells, self._asking.batch_size * BATCHES_AT_ONCE):
                found.update(zip(chunk, ask(chunk), strict=True))
                bar.update(len(chunk))
        return found


def _chunks(cells: list[Cell], size: int) -> Iterator[list[Cell]]:
    return (cells[start : start + size] for start in range(0, len(cells), size))
