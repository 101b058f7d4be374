"""Multiple choice: which option an answer names, and which one a model finds likeliest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anymal.evaluation.names import Vocabulary, canonical, words
from anymal.evaluation.vqa import ARTICLES

NORMALISER = (
    "option named by an answer, by the first rule that finds a letter or text: the whole answer is a letter (B, (b), B.); a letter is announced by "
    "answer, option or choice (The answer is B); the answer begins with a letter and a mark (B. a dog, (b) a dog); one capital letter stands in "
    "brackets; the answer is one option's text; one option's text and no other's is in it (lower case, singular, number words as digits, no "
    "articles). A letter beyond the options, two different letters by one rule, and anything else: unparsable, counted and wrong"
)
LIKELIHOOD = "the option with the highest likelihood given the prompt (ties: the first)"
NORMALISED_LIKELIHOOD = "the option with the highest likelihood per token given the prompt (ties: the first)"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

WHOLE = re.compile(r"[(\[{\"'\s]*([A-Za-z])[)\]}\"'\s.,:;!]*")
ALONE = r"(?![)\]}\"']*\s*(?:or|and|/|,)\s*(?:or\s+|and\s+)?[(\[\"']?[A-Z](?![\w']))"
"""No other letter is named in the same breath: `B or C`."""
# `A` and `I` are words too: announced without brackets, they must end the sentence.
ANNOUNCED = re.compile(
    r"(?i:\b(?:answer|option|choice)\b(?:\s+(?:is|would\s+be|should\s+be|must\s+be))?\s*[:=-]?\s*(?:(?:option|choice|letter)\s+)?)"
    r"(?:[(\[{\"']([A-Za-z])[)\]}\"']|([B-HJ-Z])(?![\w'])|([AI])(?=\s*(?:$|[.,:;!\n]))|([a-z])(?=[.!]?\s*$))" + ALONE
)
LEADING = re.compile(r"\A\s*(?:[(\[]([A-Za-z])[)\]]|([A-Z])\s*(?:[.):\]](?![A-Za-z]\.)|\n))" + ALONE)
BRACKETED = re.compile(r"[(\[]([A-Z])[)\]]")


@dataclass(frozen=True)
class Choices:
    """What answers to multiple-choice questions came to: 1 or 0 an answer, shape (n,); the option that each names; how many name none."""

    scores: np.ndarray
    chosen: list[int | None]
    unparsable: int


def extract_choice(said: str, options: Sequence[str]) -> int | None:
    """The option that an answer names, by the rules of `NORMALISER`; None if it cannot be told.

    Args:
        options: texts of the options A, B, C…, at most 26.
    """
    assert 1 < len(options) <= len(LETTERS), f"{len(options)} options"
    plain = said.replace("*", "")  # Markdown's bold
    if whole := WHOLE.fullmatch(plain):
        return _place({whole[1].upper()}, options)
    for pattern in (ANNOUNCED, LEADING, BRACKETED):
        letters = {next(group for group in match.groups() if group).upper() for match in pattern.finditer(plain)}
        if letters:
            return _place(letters, options)
    return _named(said, options)


def _place(letters: set[str], options: Sequence[str]) -> int | None:
    """The place of the one letter that is an option's; None if there are two letters or the option does not exist."""
    places = [LETTERS.index(letter) for letter in letters]
    return places[0] if len(places) == 1 and places[0] < len(options) else None


def _named(said: str, options: Sequence[str]) -> int | None:
    texts, answer = [_bare(option) for option in options], _bare(said)
    same = [place for place, text in enumerate(texts) if text and text == answer]
    if len(same) == 1:
        return same[0]
    named = Vocabulary(texts).named(answer)
    places = [place for place, text in enumerate(texts) if canonical(text) in named]
    return places[0] if len(places) == 1 else None


def _bare(text: str) -> str:
    return " ".join(word for word in words(text) if word not in ARTICLES)


def choice_scores(said: Sequence[str], options: Sequence[Sequence[str]], answers: Sequence[int]) -> Choices:
    """Score answers by letter or text: 1 where an answer names its question's right option, else 0.

    Args:
        options: the texts of each question's options.
        answers: the place of each question's right option.
    """
    chosen = [extract_choice(answer, texts) for answer, texts in zip(said, options, strict=True)]
    scores = np.array([float(place == right) for place, right in zip(chosen, answers, strict=True)])
    return Choices(scores, chosen, sum(place is None for place in chosen))


def likeliest(nats: Sequence[float], lengths: Sequence[int] | None = None) -> int:
    """The place of the likeliest option (ties: the first).

    Args:
        nats: each option's negative log-likelihood, summed over its tokens.
        lengths: what to divide by (tokens of each option); None for the sum.
    """
    values = np.asarray(nats, dtype=np.float64)
    return int(np.argmin(values if lengths is None else values / np.asarray(lengths, dtype=np.float64)))
