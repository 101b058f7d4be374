"""COCO captions: the result file `[{image_id, caption}]` and the reference file `{images, annotations: [{image_id, caption}]}`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from anymal.evaluation.formats.documents import as_number, entries, field, identifier, keyed, read_json, write_json


def read_captions(path: Path) -> dict[str, str]:
    """Image -> what was said of it.

    Raises:
        DataError: if the file is of another layout, or an image stands twice.
    """
    found = entries(path, read_json(path))
    return keyed(((where, identifier(entry, "image_id", where), field(entry, "caption", where, (str,))) for where, entry in found), "image_id")


def write_captions(path: Path, captions: Mapping[str, str]) -> None:
    """Write a result file, in the order given."""
    write_json(path, [{"image_id": as_number(image), "caption": caption} for image, caption in captions.items()])


def read_references(path: Path) -> dict[str, list[str]]:
    """Image -> its reference captions, in the order of the file.

    Raises:
        DataError: if the file is of another layout.
    """
    found: dict[str, list[str]] = {}
    for where, entry in entries(path, read_json(path), "annotations"):
        found.setdefault(identifier(entry, "image_id", where), []).append(field(entry, "caption", where, (str,)))
    return found
