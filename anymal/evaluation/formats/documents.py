"""Reading JSON and JSON lines that others wrote, so that what is wrong is named by file, entry and field; writing them whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from anymal.errors import DataError

Entry = tuple[str, dict[str, Any]]
"""Where an object stands (`FILE: annotations[3]`, or `FILE entry 4`, which is line 4 of JSON lines), and the object."""

NAMES = {str: "text", list: "a list", dict: "an object", int: "a whole number", float: "a number", bool: "true or false"}


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        DataError: if it is missing or no UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error}); correct the path") from error


def read_json(path: Path) -> Any:
    """A JSON file, or the list of the objects of a file of JSON lines.

    Raises:
        DataError: if it is neither; the line is named.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:
        whole = error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    found = []
    for number, line in lines:
        try:
            found.append(json.loads(line))
        except ValueError as error:
            reason = whole if number == lines[0][0] else error
            raise DataError(f"{path} line {number}: is neither JSON nor a file of JSON lines ({reason}); give a file of a known layout") from error
    if not found:
        raise DataError(f"{path}: is empty; give a file of a known layout")
    return found


def entries(path: Path, document: Any, *names: str) -> list[Entry]:
    """The objects of a list in a document, each with where it stands.

    Args:
        names: the fields that lead to the list; none if the document is the list.

    Raises:
        DataError: if there is no such list, it is empty, or not of objects.
    """
    where = str(path)
    for name in names:
        document = field(document, name, where, (list, dict))
        where = f"{path}: {name}" if where == str(path) else f"{where}.{name}"
    if not isinstance(document, list) or not document:
        raise DataError(f"{where}: must be a list of objects that is not empty, found {_kind(document)}")
    places = [f"{where}[{number}]" if names else f"{path} entry {number + 1}" for number in range(len(document))]
    return [(place, _object(entry, place)) for place, entry in zip(places, document, strict=True)]


def _object(entry: Any, where: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: must be an object, found {_kind(entry)}")
    return entry


def field(entry: Any, name: str, where: str, kinds: tuple[type, ...]) -> Any:
    """A field of an object that has one of the kinds of value.

    Raises:
        DataError: if there is no such field, or its value is of another kind.
    """
    if not isinstance(entry, Mapping) or name not in entry:
        raise DataError(f"{where}: has no field '{name}'")
    value = entry[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise DataError(f"{where}: {name} must be {' or '.join(NAMES[kind] for kind in kinds)}, found {_kind(value)}")
    return value


def identifier(entry: Any, name: str, where: str) -> str:
    """A field that names a sample: text, or a whole number."""
    return str(field(entry, name, where, (str, int)))


def keyed(pairs: Iterable[tuple[str, str, Any]], name: str) -> dict[str, Any]:
    """Values by identifier, from triples of place, identifier and value.

    Raises:
        DataError: if one stands twice.
    """
    found: dict[str, Any] = {}
    for where, key, value in pairs:
        if key in found:
            raise DataError(f"{where}: {name} {key} stands twice in the file; keep one of them")
        found[key] = value
    return found


def _kind(value: Any) -> str:
    return "null" if value is None else f"{NAMES.get(type(value), type(value).__name__)} ({json.dumps(value, ensure_ascii=False)[:40]})"


def as_number(identifier: str) -> int | str:
    """An identifier as files have it: a number where it is written like one."""
    return int(identifier) if identifier.isascii() and identifier.isdigit() and str(int(identifier)) == identifier else identifier


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(document, ensure_ascii=False, allow_nan=False, indent=1) + "\n")


def write_lines(path: Path, objects: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of JSON lines, whole or not at all."""
    write_text(path, "".join(json.dumps(one, ensure_ascii=False, allow_nan=False) + "\n" for one in objects))


def write_text(path: Path, text: str) -> None:
    """Write a file under another name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    partial.replace(path)
