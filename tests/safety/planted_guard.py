"""Classifiers that find planted words, and misbehave when told to."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from anymal.safety.models import USES

CATEGORIES = ("violence", "hate")
WORDS = {"violence": ("kaboomery", "stabwort"), "hate": ("grumblefolk", "sneerling")}
THRESHOLDS = {use: {"violence": 0.5, "hate": 0.5} for use in USES}
RED, GREEN = (255, 0, 0), (0, 255, 0)


def hits(text: str) -> list[float]:
    """1 for each category of which a planted word stands in a text."""
    words = set(re.findall(r"\w+", text.lower()))
    return [float(bool(words & set(WORDS[category]))) for category in CATEGORIES]


@dataclass
class WordModel:
    """Finds planted words, letter by letter; `fault` is called first with the number of the call. Also finds two halves in one text."""

    fault: Callable[[int], None] | None = None
    calls: int = 0
    seen: list[str] = field(default_factory=list)

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Shape (texts, 2)."""
        self.calls += 1
        self.seen += texts
        if self.fault:
            self.fault(self.calls)
        return np.array([self._row(text) for text in texts])

    @staticmethod
    def _row(text: str) -> list[float]:
        row = hits(text)
        return [max(row[0], float("quuxalph" in text and "quuxbeth" in text)), row[1]]


@dataclass
class ColourModel:
    """A red corner is violence."""

    fault: Callable[[int], None] | None = None
    backbone = "red"

    def features(self, images: Sequence[Image.Image]) -> list[bool]:
        """Whether each has a red corner."""
        if self.fault:
            self.fault(1)
        return [image.getpixel((0, 0)) == RED for image in images]

    def judge(self, seen: Sequence[bool]) -> np.ndarray:
        """Shape (images, 2)."""
        return np.array([[float(red), 0.0] for red in seen])


@dataclass
class GreenModel:
    """A green corner with the word harmless is hate: neither is so alone."""

    looked: int = 0
    """Pictures looked at."""
    backbone = "green"

    def features(self, images: Sequence[Image.Image]) -> list[bool]:
        """Whether each has a green corner."""
        self.looked += len(images)
        return [image.getpixel((0, 0)) == GREEN for image in images]

    def judge(self, seen: Sequence[bool], texts: Sequence[str]) -> np.ndarray:
        """Shape (pictures × texts, 2)."""
        return np.array([[0.0, float(green and "harmless" in text)] for green in seen for text in texts])


@dataclass
class PlantedModels:
    """What a guard is made of."""

    text: WordModel | None = field(default_factory=WordModel)
    image: ColourModel | None = field(default_factory=ColourModel)
    pair: GreenModel | None = field(default_factory=GreenModel)
    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: THRESHOLDS)
    categories: tuple[str, ...] = CATEGORIES


def crash(call: int) -> None:
    """What a broken classifier does, with content in its message."""
    raise RuntimeError("kaboomery: out of memory")


def hang(seconds: float) -> Callable[[int], None]:
    """A classifier that takes its time."""
    return lambda call: time.sleep(seconds)
