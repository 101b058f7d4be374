"""A text as classifiers are shown it: every reading of it, in windows that are short enough for one bad sentence among many good ones to be seen."""

from __future__ import annotations

from anymal.safety.normalize import readings
from anymal.safety.sentences import sentences

WINDOW = 400
"""Characters."""


def views(text: str, window: int = WINDOW) -> tuple[str, ...]:
    """The texts to ask a classifier about, each once; the text is as harmful as the worst of them. An empty text has none."""
    found: dict[str, None] = {}
    for reading in readings(text):
        for part in windows(reading, window):
            found[part] = None
    return tuple(found)


def windows(text: str, window: int = WINDOW) -> list[str]:
    """The text in windows of whole sentences, at most `window` characters each; neighbours share a sentence, so that what is said in two is seen
    together."""
    text = text.strip()
    if len(text) <= window:
        return [text] if text else []
    parts = sentences(text, window)
    found: list[str] = []
    start = 0
    while start < len(parts):
        end, size = start + 1, len(parts[start])
        while end < len(parts) and size + len(parts[end]) <= window:
            size += len(parts[end])
            end += 1
        shown = "".join(parts[start:end]).strip()
        if shown:
            found.append(shown)
        if end == len(parts):
            break
        start = end - 1 if end - start > 1 else end
    return found
