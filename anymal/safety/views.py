"""A text as classifiers are shown it: every reading of it, in windows and in sentences, so that one bad sentence among many good ones is seen."""

from __future__ import annotations

import re

from anymal.safety.normalize import readings
from anymal.safety.sentences import sentences
from anymal.safety.words import frequency

WINDOW = 400
"""Characters."""
LEAST_WORDS = 4
"""Words that a part must have to be looked at alone."""
INNER = re.compile(r"[:;]\s|[\"“”„»«\n]")
"""Where a request starts or ends within a sentence that frames it."""
UNMARKED = re.compile(r"(?<=[a-z\d]) (?=([A-Z][a-z]+|A) )")
"""Where a sentence may have ended without a mark."""
BEGINS = 2e-4
"""Share of all words from which a word with a capital letter is taken for a beginning and not for a name."""


def views(text: str, window: int = WINDOW) -> tuple[str, ...]:
    """The texts to ask a classifier about, each once; the text is as harmful as the worst of them. An empty text has none."""
    found: dict[str, None] = {}
    for reading in readings(text):
        for part in (*windows(reading, window), *parts(reading, window)):
            found[part] = None
    return tuple(found)


def windows(text: str, window: int = WINDOW) -> list[str]:
    """The text in windows of whole sentences, at most `window` characters each; neighbours share a sentence, so that what is said in two is seen
    together."""
    text = text.strip()
    if len(text) <= window:
        return [text] if text else []
    split = sentences(text, window)
    found: list[str] = []
    start = 0
    while start < len(split):
        end, size = start + 1, len(split[start])
        while end < len(split) and size + len(split[end]) <= window:
            size += len(split[end])
            end += 1
        shown = "".join(split[start:end]).strip()
        if shown:
            found.append(shown)
        if end == len(split):
            break
        start = end - 1 if end - start > 1 else end
    return found


def parts(text: str, window: int = WINDOW) -> list[str]:
    """Sentences of a text that has several, what stands in them after a colon or in quotation marks, and what a sentence that ended without a mark
    was run together with, of some words each."""
    split = sentences(text, window)
    found = [sentence.strip() for sentence in split] if len(split) > 1 else []
    for sentence in split:
        for inner in (INNER.split(sentence), _unmarked(sentence)):
            found += [part.strip() for part in inner] if len(inner) > 1 else []
    return [part for part in found if len(part.split()) >= LEAST_WORDS]


def _unmarked(sentence: str) -> list[str]:
    """The sentence cut before each common word that has a capital letter."""
    places = [match.start() for match in UNMARKED.finditer(sentence) if frequency(match[1]) >= BEGINS]
    return [sentence[start:end] for start, end in zip([0, *places], [*places, len(sentence)], strict=True)]
