"""Texts that say nearly the same: found by the words that they share, so that paraphrases are never on both sides of a split."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

WORD = re.compile(r"[^\W\d_]{2,}|\d+")
CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
LITTLE_WORDS = """
a an and any are as at be been being but by can could did do does done for from get give given had has have he her him his how i if in into is it
its me my no not of on or our out over own please she should so some tell than that the their them then there these they this to up us was we were
what when where which who whom why will with without would you your people person someone somebody individuals past future previous recent earlier
early late years year times time used way ways possible detailed detail step steps instructions instruction explain explained describe described
provide provided write written create created made make making
"""
COMMON = frozenset(LITTLE_WORDS.split())
"""Words that requests of any content share."""
RAREST = 4
CROWD = 60
"""A word that more texts than this share says too little to look for paraphrases by."""


def stems(text: str) -> frozenset[str]:
    """The words of a text that carry its meaning, without case, number and tense, as far as cutting off endings gives them; single signs of scripts
    without spaces."""
    found = {_stem(word) for word in WORD.findall(CJK.sub(" ", text.lower())) if word not in COMMON}
    return frozenset(found | set(CJK.findall(text)))


def _stem(word: str) -> str:
    for ending in ("ations", "ation", "ingly", "ities", "ments", "ment", "ings", "ing", "ied", "ies", "ers", "ed", "es", "er", "ly", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def similar(first: frozenset[str], second: frozenset[str], least: float) -> bool:
    """Whether two sets of stems share enough: `least` of all that either has."""
    shared = len(first & second)
    return shared > 0 and shared >= least * len(first | second)


def near_pairs(sets: Sequence[frozenset[str]], least: float) -> Iterator[tuple[int, int]]:
    """Pairs of texts that are `similar`, among those that share one of the rarest words of either; in time about linear in the number of texts."""
    counts = Counter(stem for found in sets for stem in found)
    index: dict[str, list[int]] = defaultdict(list)
    for number, found in enumerate(sets):
        for stem in sorted(found, key=lambda stem: (counts[stem], stem))[:RAREST]:
            index[stem].append(number)
    compared: set[tuple[int, int]] = set()
    for stem in sorted(index):
        members = index[stem]
        for position, one in enumerate(members):
            for other in members[position + 1 : position + 1 + CROWD]:
                if (one, other) not in compared:
                    compared.add((one, other))
                    if similar(sets[one], sets[other], least):
                        yield one, other


class Unions:
    """Numbers that belong together, and what their sets are called."""

    def __init__(self, size: int) -> None:
        self.parents = list(range(size))

    def find(self, number: int) -> int:
        """The least number that was joined with this one."""
        root = number
        while self.parents[root] != root:
            root = self.parents[root]
        while self.parents[number] != root:
            self.parents[number], number = root, self.parents[number]
        return root

    def join(self, one: int, other: int) -> None:
        """Put two numbers, and all that belongs to them, together."""
        first, second = sorted((self.find(one), self.find(other)))
        self.parents[second] = first
