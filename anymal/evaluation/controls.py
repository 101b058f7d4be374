"""Which held-out samples and questions are asked, and which other sample's input stands in for each under the shuffled control."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from anymal.errors import DataError

Name = TypeVar("Name", bound=Hashable)

CONDITIONS = ("right", "shuffled", "blank", "similar")
"""The sample's own input, another sample's, an empty one, and that of the most alike sample with another answer.

A model that ignores its input does equally well on all; one that sees no more than the rough kind of scene does as well on `similar` as on `right`.
"""
BLOCK = 256
"""Media compared with all others at once."""
DECIMALS = 5
"""Of a cosine: copies of a medium are then equally alike, and the first one stands in."""


def derangement(count: int, *, seed: int) -> list[int]:
    """A fixed permutation of 0 … count - 1 without a fixed point: one random cycle through all (Sattolo's algorithm).

    Raises:
        DataError: if there are fewer than two samples, for nothing else could stand in.
    """
    if count < 2:
        raise DataError(f"the shuffled control needs at least 2 held-out samples, found {count}; evaluate on more, or curate more data")
    generator = np.random.default_rng((seed, 1))
    order = list(range(count))
    for last in range(count - 1, 0, -1):
        other = int(generator.integers(last))
        order[last], order[other] = order[other], order[last]
    return order


def stand_ins(answers: Sequence[str], wanted: Sequence[str], *, seed: int, salt: int) -> list[int]:
    """For each wanted answer a place in `answers` that holds another one: media that would make the answer false.

    Args:
        salt: parts the draws of one seed.

    Raises:
        DataError: if all answers are the same.
    """
    generator = np.random.default_rng((seed, 6, salt))
    others = {answer: [place for place, other in enumerate(answers) if other != answer] for answer in sorted(set(wanted))}
    for answer, places in others.items():
        if not places:
            raise DataError(f"the shuffled control needs samples with another answer than {answer!r}; every sample has it, evaluate on more")
    return [others[answer][int(generator.integers(len(others[answer])))] for answer in wanted]


def even_sequence(answers: Sequence[str], count: int, *, seed: int, salt: int) -> list[int]:
    """`count` places in `answers`, each answer as often as the others; places come again only when all with their answer were used.

    Args:
        salt: parts the draws of one seed, so that two sequences are independent of each other.
    """
    generator = np.random.default_rng((seed, 5, salt))
    by_answer = {answer: [place for place, other in enumerate(answers) if other == answer] for answer in sorted(set(answers))}
    waiting: dict[str, list[int]] = {answer: [] for answer in by_answer}
    order = sorted(by_answer)
    chosen: list[int] = []
    while len(chosen) < count:
        for answer in (order[i] for i in generator.permutation(len(order))):
            if not waiting[answer]:
                waiting[answer] = [by_answer[answer][i] for i in generator.permutation(len(by_answer[answer]))]
            chosen.append(waiting[answer].pop())
    return [chosen[i] for i in generator.permutation(count)]


def draw(rows: Sequence[int], limit: int | None, *, seed: int) -> list[int]:
    """At most `limit` of the rows (None: all), drawn without replacement, in their order."""
    if limit is None or len(rows) <= limit:
        return list(rows)
    chosen = np.random.default_rng((seed, 2)).choice(len(rows), size=limit, replace=False)
    return [rows[i] for i in sorted(chosen.tolist())]


def draw_stratified(kinds: Mapping[str, Sequence[int]], limit: int | None, *, seed: int) -> list[int]:
    """At most `limit` items (None: all), as evenly over the kinds as their numbers allow, in ascending order.

    Args:
        kinds: kind -> its items.
    """
    generator = np.random.default_rng((seed, 3))
    waiting = {kind: [kinds[kind][i] for i in generator.permutation(len(kinds[kind]))] for kind in sorted(kinds)}
    total = sum(map(len, waiting.values()))
    chosen: list[int] = []
    while len(chosen) < (total if limit is None else min(limit, total)):
        for items in waiting.values():
            if items and (limit is None or len(chosen) < limit):
                chosen.append(items.pop())
    return sorted(chosen)


def pool(features: np.ndarray) -> np.ndarray:
    """Features of media, shape (media, tokens, dim), as one unit vector each, shape (media, dim) float32; an empty medium's may be zero."""
    mean = np.asarray(features, dtype=np.float32).mean(axis=1)
    return np.asarray(mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12), dtype=np.float32)


def most_similar(
    pooled: np.ndarray, truths: Sequence[Collection[str]], *, rows: Sequence[int], kinds: Sequence[str] | None = None
) -> list[int]:
    """For each item (a caption, a question) the place of the one whose medium is most alike, though what is true of it is not true there.

    Args:
        pooled: one unit vector a medium, shape (media, dim), as `pool` gives.
        truths: what is true of each item's medium (answers, label, references), in one form.
        rows: the row of `pooled` that each item is about.
        kinds: kind of each item; stand-ins are of the same kind where one of the same kind is left.

    Returns:
        Places of items about another medium that share no truth with the item, by greatest cosine; of equal ones the first.

    Raises:
        DataError: if no such item is left for one.
    """
    medium_of = np.asarray(rows, dtype=np.int64)
    sharing, about = _places(truths), _places([(row,) for row in rows])
    of_kind = None if kinds is None else _places([(kind,) for kind in kinds])
    found = [0] * len(truths)
    wanted = sorted(about)
    for start in range(0, len(wanted), BLOCK):
        block = wanted[start : start + BLOCK]
        for medium, alike in zip(block, np.round(pooled[block] @ pooled.T, DECIMALS), strict=True):
            for item in about[medium].tolist():
                line = alike[medium_of]
                for taken in (about[medium], *(sharing[truth] for truth in truths[item])):
                    line[taken] = -np.inf
                best = None if kinds is None or of_kind is None else _best(line, of_kind[kinds[item]])
                best = _best(line, np.arange(len(line))) if best is None else best
                if best is None:
                    raise DataError(f"the condition similar needs a sample that shares nothing with {min(truths[item], default='')!r}; every sample "
                                    "does, evaluate on more or leave similar out of conditions")
                found[item] = best
    return found


def _places(names: Sequence[Collection[Name]]) -> dict[Name, np.ndarray]:
    """Name -> places of those that have it, ascending."""
    found: dict[Name, list[int]] = {}
    for place, own in enumerate(names):
        for name in set(own):
            found.setdefault(name, []).append(place)
    return {name: np.array(places) for name, places in found.items()}


def _best(line: np.ndarray, among: np.ndarray) -> int | None:
    """The first of the greatest; None if none is left."""
    place = int(among[int(np.argmax(line[among]))])
    return None if np.isneginf(line[place]) else place
