"""Which labels or answers a text names: class accuracy of captions, and answers that have several parts."""

from __future__ import annotations

import re
from collections.abc import Iterable

from anymal.evaluation.vqa import NUMBERS

NORMALISER = (
    "lower case; words are runs of letters and digits, so a hyphen parts words; number words zero to ten as digits; a plural in -s, -es or -ies "
    "counts as its singular; phrases match whole words, the longest first, and each word counts once"
)
CLASS_RULE = "class accuracy: the caption names its sample's label and no other label of the split"
WORD = re.compile(r"[^\W_]+")
SHORTEST_PLURAL = 3
"""A word is taken for a plural only if it is longer: `bus` is none of `bu`."""


def words(text: str) -> list[str]:
    """The words of a text in the form in which they are compared: `"Two Hi-Hats."` -> `["2", "hi", "hat"]`."""
    return [_singular(NUMBERS.get(word, word)) for word in WORD.findall(text.lower())]


def _singular(word: str) -> str:
    """One form for a word and its plural. It need not be a word itself (`axe` gives `ax`), for both sides of a comparison are brought into it."""
    if len(word) > SHORTEST_PLURAL and word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    if word.endswith("ie"):
        return word[:-2] + "y"
    return word[:-1] if word.endswith(("xe", "che", "she", "sse")) else word


def canonical(phrase: str) -> str:
    """What two phrases have in common that count as the same: `"Hi-Hats"` -> `"hi hat"`; "" if no letter or digit is in it."""
    return " ".join(words(phrase))


class Vocabulary:
    """Phrases to look for in texts, such as all labels of a split."""

    def __init__(self, phrases: Iterable[str]) -> None:
        """Take the phrases; those that hold no letter or digit can never be named."""
        forms = {tuple(words(phrase)) for phrase in phrases} - {()}
        self._forms = sorted(forms, key=lambda form: (-len(form), form))

    def named(self, text: str) -> set[str]:
        """The phrases that a text names, in canonical form. `snare drum` does not name `drum`: its words are taken by the longer phrase."""
        said: list[str | None] = list(words(text))
        found = set()
        for form in self._forms:
            for start in range(len(said) - len(form) + 1):
                if tuple(said[start : start + len(form)]) == form:
                    said[start : start + len(form)] = [None] * len(form)
                    found.add(" ".join(form))
        return found

    def names_only(self, text: str, phrase: str, *, among: Iterable[str] | None = None) -> bool:
        """Whether a text names this phrase and no other one (of `among`, where the vocabulary holds other things as well)."""
        named = self.named(text)
        return (named if among is None else named & set(map(canonical, among))) == {canonical(phrase)}
