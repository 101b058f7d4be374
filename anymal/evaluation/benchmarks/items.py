"""What every reader makes of a benchmark's files: samples, and those that cannot be asked with the reason why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from anymal.evaluation.benchmarks.rows import Row


@dataclass(frozen=True)
class Medium:
    """A file, or a part of one, in the asset's folder."""

    modality: str
    name: str
    """Its path below the asset's folder, and the part: `videos/a.mp4#t=7.2,18.0`. What it is known by."""
    path: Path
    start: float | None = None
    """Seconds; None: the whole file."""
    end: float | None = None


@dataclass(frozen=True)
class Item:
    """One sample."""

    id: str | int
    """As the official files have it, for they are what results are compared by."""
    medium: Medium
    question: str = ""
    references: tuple[str, ...] = ()
    """Reference captions, the annotators' answers, or the right option."""
    options: tuple[str, ...] = ()
    answer: int | None = None
    """Place of the right option."""
    kind: str | None = None
    context: str = ""
    text: str = ""
    """Words on the picture, as the benchmark gives them."""
    ocr: tuple[str, ...] = ()


@dataclass
class Reading:
    """All samples of a split."""

    items: list[Item] = field(default_factory=list)
    unusable: list[tuple[str, str]] = field(default_factory=list)
    """(id, reason) of each sample that cannot be asked; a reason begins with one word for counting, parted by a colon."""

    @property
    def available(self) -> int:
        """Samples in the official files."""
        return len(self.items) + len(self.unusable)


class Motions(Protocol):
    """How narrations and recordings of Ego4D are read (`anymal.curation.ego4d.Ego4dFiles`)."""

    def narrations(self, path: Path) -> Iterable[tuple[str, str, float | None, str | None]]:
        """Id, video, seconds, and sentence (None: not about the camera wearer, or unsure) of each narration."""
        ...

    def recording(self, path: Path) -> np.ndarray:
        """(samples, 7): seconds, accelerometer, gyroscope. Raises DataError if it cannot be read."""
        ...


@dataclass(frozen=True)
class Layout:
    """The official files of one split, in an asset's folder."""

    root: Path
    files: Mapping[str, Path]
    media: str
    """Where a sample's medium is, with fields of its record in braces."""
    modality: str | None
    fields: Mapping[str, Any]
    split: str
    motions: Motions
    seed: int
    _listings: dict[Path, dict[str, str]] = field(default_factory=dict)

    def add(self, reading: Reading, row: Row, make: Callable[[Medium], Item], *, name: object, modality: str | None = None,
            values: Mapping[str, Any] | None = None, start: float | None = None, end: float | None = None) -> None:
        """Add a sample, or the reason why it cannot be asked: a medium that is not there.

        Args:
            name: the sample's id, for the list.
            modality: of the medium, where samples differ.
            values: for the braces of `media`, beside the record's fields.
            start, end: seconds of the part of the medium that is meant, unless `media` names files of the parts (it holds `{start}`).

        Raises:
            DataError: if the record lacks a field that `media` names.
        """
        try:
            relative = self.media.format_map({**row.values, **(values or {}), "start": start, "end": end})
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            raise row.wrong(f"gives no place of its medium by '{self.media}' ({type(error).__name__}: {error})") from error
        if PurePosixPath(relative).is_absolute() or ".." in PurePosixPath(relative).parts:
            raise row.wrong(f"names a medium outside the asset's folder ({relative})")
        found = self._find(relative)
        if found is None:
            reading.unusable.append((str(name), f"medium_missing: {relative}"))
            return
        if "{start" in self.media:
            start = end = None
        part = "" if start is None else f"#t={start:g},{end:g}"
        kind = modality or self.modality
        assert kind is not None, "the declaration names a modality, or the reader does"
        reading.items.append(make(Medium(kind, f"{found}{part}", self.root / found, start, end)))

    def _find(self, relative: str) -> str | None:
        """The path of a file below the root; `.*` stands for any ending, and the first in the alphabet is taken."""
        if not relative.endswith(".*"):
            return relative if (self.root / relative).is_file() else None
        folder, stem = PurePosixPath(relative).parent, PurePosixPath(relative[:-2]).name
        if self.root / folder not in self._listings:
            listing: dict[str, str] = {}
            for file in sorted(_files(self.root / folder)):
                listing.setdefault(file.rpartition(".")[0], file)
            self._listings[self.root / folder] = listing
        name = self._listings[self.root / folder].get(stem)
        return None if name is None else str(folder / name)


def _files(folder: Path) -> Iterator[str]:
    return (file.name for file in folder.iterdir() if file.is_file()) if folder.is_dir() else iter(())
