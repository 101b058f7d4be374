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
ALONE = 7.0
"""What a letter that stands alone counts in `strangeness` at least."""
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


def strangeness(text: str) -> float:
    """How little a text looks like English: -log10 of the frequency of the word that a letter stands in, averaged over letters.

    English has 3 to 5, other languages 5 to 9, and what is no language or has no letters comes close to 10. Letters that stand alone say little.
    """
    found = WORD.findall(text[:SAMPLE])
    letters = sum(len(word) for word in found)
    if not letters:
        return -math.log10(UNKNOWN)
    return sum(len(word) * max(ALONE if len(word) == 1 else 0.0, cost([word.partition("'")[0]])) for word in found) / letters


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
