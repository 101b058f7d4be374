"""Samples that safety classifiers leave out: a harmful caption, a harmful picture, or both together; the whole pair goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from anymal.curation.drops import Drop

REASONS: dict[str, str] = {
    "harmful_text": "a safety classifier finds the text harmful",
    "harmful_picture": "a safety classifier finds the picture harmful",
    "harmful_together": "a safety classifier finds picture and text harmful together",
}
"""The detail of such a drop is the category."""


class Screen(Protocol):
    """What is asked of `anymal.safety.filters.Screen`: the category for which a sample is left out, or None."""

    def texts(self, texts: Sequence[str]) -> list[str | None]:
        """Of texts."""
        ...

    def pictures(self, paths: Sequence[Path]) -> list[str | None]:
        """Of picture files."""
        ...

    def pairs(self, paths: Sequence[Path], texts: Sequence[str]) -> list[str | None]:
        """Of picture files, each with its text."""
        ...


def drop_harmful(members: Sequence[Any], screen: Screen | None) -> None:
    """Drop candidates with a caption and a picture for what a classifier finds in either or in both."""
    if screen is None:
        return
    asked: dict[str, Callable[[Sequence[Path], Sequence[str]], list[str | None]]] = {
        "harmful_text": lambda _, texts: screen.texts(texts), "harmful_picture": lambda paths, _: screen.pictures(paths),
        "harmful_together": screen.pairs}  # fmt: skip
    for reason in REASONS:
        left = [member for member in members if member.drop is None]
        found = asked[reason]([member.picture.jpeg for member in left], [member.caption.text for member in left])
        for member, category in zip(left, found, strict=True):
            if category is not None:
                member.drop = Drop(reason, category)


def count_harmful(drops: Iterable[Drop | None]) -> dict[str, dict[str, int]]:
    """Reason -> category -> how many were left out for it; reasons of none are absent."""
    counts = Counter((drop.reason, drop.detail) for drop in drops if drop is not None and drop.reason in REASONS)
    return {reason: {category: counts[reason, category] for known, category in sorted(counts) if known == reason}
            for reason in REASONS if any(known == reason for known, _ in counts)}
