"""The lists of labelled pictures and pairs that curate_safety leaves: a JSON document a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from anymal.errors import DataError
from anymal.evaluation.formats import documents
from anymal.safety.taxonomy import CODES


@dataclass(frozen=True)
class PictureRecord:
    """A picture of a split; `file` begins at the folder of the safety data."""

    id: str
    file: str
    labels: tuple[str, ...]
    source: str
    group: str
    kind: str


@dataclass(frozen=True)
class PairRecord:
    """A picture with a text; `group` is what the split keeps together (paraphrases of the text, or a meme)."""

    id: str
    image: str
    text: str
    labels: tuple[str, ...]
    group: str
    kind: str
    family: str


class Labelled(Protocol):
    """What has labels."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Codes of the taxonomy; none means harmless."""


def read_pictures(folder: Path, split: str) -> list[PictureRecord]:
    """The pictures of a split of the safety data.

    Raises:
        DataError: naming the line, if the list is missing or is not one of ours.
    """
    return [PictureRecord(**row) for row in _rows(folder / "images" / f"{split}.jsonl", ("id", "file", "source", "group", "kind"))]


def read_pairs(folder: Path, split: str) -> list[PairRecord]:
    """The pairs of a split of the safety data.

    Raises:
        DataError: naming the line, if the list is missing or is not one of ours.
    """
    return [PairRecord(**row) for row in _rows(folder / "pairs" / f"{split}.jsonl", ("id", "image", "text", "group", "kind", "family"))]


def truth_of(records: Sequence[Labelled], categories: Sequence[str] = CODES) -> np.ndarray:
    """Which category applies to which record, (records, categories) of bool."""
    return np.array([[code in record.labels for code in categories] for record in records], dtype=bool).reshape(len(records), len(categories))


def _rows(path: Path, fields: Sequence[str]) -> list[dict[str, Any]]:
    if not path.is_file():
        raise DataError(f"{path}: no such list; give the folder that curate_safety wrote")
    if path.stat().st_size == 0:
        return []
    document = documents.read_json(path)
    found = []
    for where, entry in documents.entries(path, [document] if isinstance(document, dict) else document):
        labels = documents.field(entry, "labels", where, (list,))
        odd = [label for label in labels if label not in CODES]
        if odd:
            raise DataError(f"{where}: {odd[0]!r} is no category of the taxonomy ({', '.join(CODES)}); run curate_safety again")
        found.append({"labels": tuple(labels)} | {name: str(documents.field(entry, name, where, (str,))) for name in fields})
    return found
