"""What is known of a sample, as text that an LLM without eyes can read: captions, and objects with boxes (paper section 2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anymal.data.manifest import verify_manifest
from anymal.data.shards import Sample, read_shard, shard_paths
from anymal.errors import DataError

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 as shares of the width and height, from the upper left corner."""


@dataclass(frozen=True)
class Thing:
    """One annotated object: its name and where it is, one box for a picture, one per moment that shows it for a video."""

    name: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Description:
    """A sample without its medium."""

    key: str
    extension: str
    split: str
    source: str
    license: str
    captions: tuple[str, ...]
    things: tuple[Thing, ...]
    label: str | None
    """The class of a sample that is of one class, or the noun of a picture's caption."""

    def text(self, *, captions: int, boxes: bool) -> str:
        """What the LLM reads: up to `captions` captions, one a line; with `boxes`, then one line per object."""
        lines = list(self.captions[:captions])
        if boxes:
            lines += [f"{thing.name}: {_places(thing.boxes)}" for thing in self.things]
        return "\n".join(lines)


def _places(boxes: tuple[Box, ...]) -> str:
    first, last = ("[" + ", ".join(f"{value:.3f}" for value in box) + "]" for box in (boxes[0], boxes[-1]))
    return first if first == last else f"from {first} to {last}"


def read_descriptions(shards: Path, split: str) -> Iterator[Description]:
    """The descriptions of a split in the order of its shards, one in memory at a time; a split without shards has none.

    Raises:
        DataError: if a shard is damaged, or a sample's captions or objects are not what `anymal.data.shards` says.
    """
    for path in shard_paths(shards):
        if path.name.startswith(f"{split}-"):
            for sample in read_shard(path):
                yield describe(path, sample)


def check_shards(shards: Path) -> None:
    """Make sure that the shards are those that curation wrote.

    Raises:
        DataError: if a file is missing, extra or changed.
    """
    verify_manifest(shards)


def describe(path: Path, sample: Sample) -> Description:
    """One sample's description; `path` is its shard, for messages."""
    meta, where = sample.meta, f"{path}: {sample.key}"
    captions = meta.get("captions", [])
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise DataError(f"{where}: 'captions' must be a list of texts; make the shard again")
    found = {field: meta.get(field) for field in ("split", "source", "license")}
    if missing := [field for field, value in found.items() if not isinstance(value, str) or not value]:
        raise DataError(f"{where}: lacks {', '.join(missing)}; make the shard again")
    label = meta.get("label", meta.get("noun"))
    said = tuple(" ".join(caption.split()) for caption in captions if caption.strip())
    return Description(sample.key, sample.extension, captions=said, things=tuple(_things(where, meta)),
                       label=label if isinstance(label, str) else None, **found)  # type: ignore[arg-type]  # checked above


def _things(where: str, meta: dict[str, Any]) -> Iterator[Thing]:
    entries = meta.get("objects", [])
    if not isinstance(entries, list):
        raise DataError(f"{where}: 'objects' must be a list; make the shard again")
    for entry in entries:
        try:
            boxes = [entry["box"]] if "box" in entry else [box for box in entry["boxes"] if box is not None]
            thing = Thing(str(entry["name"]), tuple(_normalised(box, meta["width"], meta["height"]) for box in boxes))
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise DataError(f"{where}: object {str(entry)[:80]} needs a name and a box [x, y, width, height] in pixels of a picture whose width "
                            "and height are known; make the shard again") from error
        if thing.boxes:  # a thing that no frame shows is not seen
            yield thing


def _normalised(box: list[float], width: float, height: float) -> Box:
    x, y, w, h = box
    return (round(x / width, 3), round(y / height, 3), round((x + w) / width, 3), round((y + h) / height, 3))


def names_of(description: Description) -> list[str]:
    """The names of its things, and its label."""
    return [*(thing.name for thing in description.things), *([description.label] if description.label else [])]
