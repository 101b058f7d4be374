"""How answers end and begin: what shows a model that talks on, says nothing, or says the same whatever it is given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypedDict

PREFIX_WORDS = 3


class Rates(TypedDict):
    """Shares of all answers, 0 to 1."""

    eos: float
    """The model ended them."""
    max_length: float
    """The limit of new tokens ended them."""
    empty: float
    prefix: float
    """They begin with `prefix_words`, of all first three words (fewer in shorter answers) the most frequent."""
    prefix_words: str


def rates(answers: Sequence[str], finishes: Sequence[str]) -> Rates:
    """The rates of a set of answers, at least one.

    Args:
        finishes: "stop" or "length" of each (see `anymal.model.anymal.Completion`).

    Returns:
        The rates; of prefixes that are as frequent, the first in the alphabet. Words are told apart by white space, not by case.
    """
    begun = Counter(" ".join(answer.lower().split()[:PREFIX_WORDS]) for answer in answers if answer.strip())
    words, count = min(begun.items(), key=lambda entry: (-entry[1], entry[0]), default=("", 0))
    total = len(answers)
    stopped = sum(finish == "stop" for finish in finishes)
    return {"eos": stopped / total, "max_length": (len(finishes) - stopped) / total, "empty": sum(not answer.strip() for answer in answers) / total,
            "prefix": count / total, "prefix_words": words}  # fmt: skip
