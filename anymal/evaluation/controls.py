"""Which held-out samples and questions are asked, and which other sample's input stands in for each under the shuffled control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from anymal.errors import DataError

CONDITIONS = ("right", "shuffled", "blank")
"""The sample's own input, another sample's, and an empty one: a model that ignores its input does equally well on all three."""


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
