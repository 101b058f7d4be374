"""The guard's classifiers as filters of training data (paper section 4): what curation, imports and synthesis leave out, and for which category."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anymal.progress import track
from anymal.safety.limits import SafetyLimits

if TYPE_CHECKING:
    from anymal.safety.models import GuardModels

AT_ONCE = 64
"""Samples whose pictures are in memory together."""


class Screen:
    """Asks the classifiers about training data; they are loaded when something is asked.

    Args:
        folder: of the guard.
        limits: from which probability a sample is left out.
    """

    def __init__(self, folder: Path, limits: SafetyLimits) -> None:
        self._folder, self._limits = folder, limits
        self._models: GuardModels | None = None

    def texts(self, texts: Sequence[str]) -> list[str | None]:
        """The category for which each text is left out; None for those that stay."""
        return self._judge("text", [texts], lambda models, given: models.text.probabilities(given[0]), unit="texts")

    def pictures(self, paths: Sequence[Path]) -> list[str | None]:
        """The category for which each picture is left out; None for those that stay."""
        return self._judge("image", [paths], lambda models, given: models.image.probabilities(list(_opened(given[0]))), unit="pictures")

    def pairs(self, paths: Sequence[Path], texts: Sequence[str]) -> list[str | None]:
        """The category for which each picture with its text is left out; None for those that stay."""
        return self._judge("pair", [paths, texts], lambda models, given: models.pair.probabilities(list(_opened(given[0])), given[1]), unit="pairs")

    def _judge(self, check: str, columns: Sequence[Sequence[Any]], ask: Callable[[GuardModels, list[Sequence[Any]]], np.ndarray], *,
               unit: str) -> list[str | None]:
        least = getattr(self._limits, check)
        if least is None or not columns[0]:
            return [None] * len(columns[0])
        if self._models is None:
            from anymal.safety.models import load_guard

            self._models = load_guard(self._folder)
        found: list[str | None] = []
        with track(total=len(columns[0]), label=f"safety, {unit}", unit=unit) as bar:
            for start in range(0, len(columns[0]), AT_ONCE):
                given = [column[start : start + AT_ONCE] for column in columns]
                probabilities = np.asarray(ask(self._models, given))
                greatest = probabilities.argmax(axis=1)
                found += [self._models.categories[place] if row[place] >= least else None
                          for row, place in zip(probabilities, greatest.tolist(), strict=True)]
                bar.update(len(given[0]))
        return found


def open_screen(folder: Path, limits: SafetyLimits | None) -> Screen | None:
    """The filter of a guard; None if there are no limits, and the folder is not looked into then."""
    return None if limits is None else Screen(folder, limits)


def _opened(paths: Sequence[Path]) -> Iterator[Any]:
    from PIL import Image

    for path in paths:
        with Image.open(path) as image:
            yield image.convert("RGB")
