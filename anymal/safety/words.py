"""Which strings are English words, so that an undone disguise can be told from chance (frequencies of wordfreq)."""

from __future__ import annotations

import math
import re
from functools import lru_cache

WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")
LEAST = 1e-7
"""Share of all words that a word must have to be known: one in ten million."""
COMMON = 1e-6
UNKNOWN = 1e-10
SHORT = frozenset({"a", "i"})
LONGEST = 20
SAMPLE = 4000
"""Characters of a text that are looked at when it is asked how much of it is words."""


@lru_cache(maxsize=1)
def _frequencies() -> dict[str, float]:
    from wordfreq import get_frequency_dict

    listed: dict[str, float] = get_frequency_dict("en", wordlist="large")
    words = {word: value for word, value in listed.items() if value >= LEAST and word.isalpha() and word.isascii()}
    return {word: value for word, value in words.items() if len(word) > 1 or word in SHORT}


def frequency(word: str) -> float:
    """The share that a word has of all words; 0 if it is none. Case does not matter."""
    return _frequencies().get(word.lower(), 0.0)


def is_word(letters: str) -> bool:
    """Whether letters are a word; short ones must be common, as nearly any three letters are the name of something."""
    return frequency(letters) >= (LEAST if len(letters) > 4 else COMMON if len(letters) > 3 else 1e-5)


def word_share(text: str) -> float:
    """The share of a text's letters that stand in words, 0 to 1; 1 for a text without letters."""
    found = WORD.findall(text[:SAMPLE])
    letters = sum(len(word) for word in found)
    return sum(len(word) for word in found if is_word(word.partition("'")[0])) / letters if letters else 1.0


def cost(words: list[str]) -> float:
    """How unlikely words are beside each other by chance: -log10 of the product of their frequencies."""
    return -sum(math.log10(frequency(word) or UNKNOWN) for word in words)


def segment(letters: str) -> str:
    """Letters without spaces as the most likely words with single spaces; what is no word stays whole. Time grows with the length alone."""
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(letters) + 1):
        choices = [(best[end - 1][0] + 11.0, end - 1)]
        for start in range(max(0, end - LONGEST), end):
            share = frequency(letters[start:end])
            if share:
                choices.append((best[start][0] - math.log10(share) + 0.5, start))
        best.append(min(choices))
    cuts, end = [], len(letters)
    while end:
        cuts.append((best[end][1], end))
        end = best[end][1]
    words: list[str] = []
    lone = False
    for start, stop in reversed(cuts):
        piece = letters[start:stop]
        if frequency(piece) or not lone:
            words.append(piece)
        else:
            words[-1] += piece
        lone = not frequency(piece)
    return " ".join(words)
