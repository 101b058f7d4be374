"""Files of records, read so that whatever is not as the official layout has it is said with its file, record and field."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from anymal.errors import DataError

MAX_BYTES = 4 * 2**30
"""Of a file that is parsed as a whole: three times the annotations of VQAv2's training split."""
NAMES = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number", type(None): "nothing"}


class Row:
    """One record of a file."""

    def __init__(self, file: Path, place: str, values: object) -> None:
        """Take a record and what to call it.

        Raises:
            DataError: if it is no object.
        """
        self._file, self._place = file, place
        if not isinstance(values, dict):
            raise DataError(f"{file}: {place} is {_kind(values)}, not an object; give the benchmark's official file")
        self.values: Mapping[str, Any] = values

    def wrong(self, what: str) -> DataError:
        """The error for this record."""
        return DataError(f"{self._file}: {self._place}: {what}; give the benchmark's official file")

    def get(self, field: str) -> Any:
        """A field, whatever it holds.

        Raises:
            DataError: if there is none.
        """
        if field not in self.values:
            raise self.wrong(f"has no field '{field}', it has {', '.join(map(str, self.values)) or 'none'}")
        return self.values[field]

    def text(self, field: str, *, empty: bool = False) -> str:
        """A text without white space around it.

        Args:
            empty: whether it may be empty or null.

        Raises:
            DataError: if it is none, or empty.
        """
        value = self.get(field)
        if value is None and empty:
            return ""
        if not isinstance(value, str) or not (value.strip() or empty):
            raise self.wrong(f"field '{field}' must be a text, it is {'empty' if isinstance(value, str) else _kind(value)}")
        return value.strip()

    def name(self, field: str) -> str | int:
        """An id: a text or a whole number.

        Raises:
            DataError: if it is neither.
        """
        value = self.get(field)
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise self.wrong(f"field '{field}' must be an id (a text or a whole number), it is {_kind(value)}")
        return value

    def number(self, field: str) -> float:
        """A number, which a CSV file holds as text.

        Raises:
            DataError: if it is none.
        """
        value = self.get(field)
        try:
            if isinstance(value, bool):
                raise TypeError
            return float(value)
        except (TypeError, ValueError):
            raise self.wrong(f"field '{field}' must be a number, it is {_kind(value)} ({str(value)[:40]})") from None

    def items(self, field: str) -> list[Any]:
        """A list that is not empty.

        Raises:
            DataError: if it is none, or empty.
        """
        value = self.get(field)
        if not isinstance(value, list) or not value:
            raise self.wrong(f"field '{field}' must be a list with something in it, it is {'empty' if value == [] else _kind(value)}")
        return value

    def texts(self, field: str, part: str | None = None) -> list[str]:
        """A list of texts, or of one field of a list of objects.

        Raises:
            DataError: if it is none.
        """
        values = self.items(field)
        if part is not None:
            return [Row(self._file, f"{self._place}, {field}[{number}]", value).text(part, empty=True) for number, value in enumerate(values)]
        if odd := [value for value in values if not isinstance(value, str)]:
            raise self.wrong(f"field '{field}' must hold texts, it holds {_kind(odd[0])}")
        return [value.strip() for value in values]


def read_json(path: Path) -> Any:
    """A JSON document, parsed as a whole.

    Raises:
        DataError: if the file is missing, too large or no JSON.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: holds {path.stat().st_size} bytes, more than the {MAX_BYTES} allowed; take a split of the benchmark")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; bring the benchmark's official files into the asset, under their own names") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not valid JSON ({' '.join(str(error).split())[:100]}); fetch it again") from error


def json_rows(path: Path, at: str | None) -> list[Row]:
    """The records of a JSON file: those of the list in its member `at`, or of the list that it is (None).

    Raises:
        DataError: if there is no such list, or a record is no object.
    """
    document = read_json(path)
    if at is not None:
        if not isinstance(document, dict) or at not in document:
            raise DataError(f"{path}: has no field '{at}'; give the benchmark's official file")
        document = document[at]
    if not isinstance(document, list):
        where = "the file" if at is None else f"field '{at}'"
        raise DataError(f"{path}: {where} must be a list of records, it is {_kind(document)}; give the benchmark's official file")
    name = "record" if at is None else at
    return [Row(path, f"{name}[{number}]", values) for number, values in enumerate(document)]


def line_rows(path: Path) -> list[Row]:
    """The records of a file with a JSON object a line.

    Raises:
        DataError: if the file is missing, or a line is no JSON object.
    """
    found = []
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if line.strip():
            try:
                found.append(Row(path, f"line {number}", json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}: line {number} is not valid JSON ({' '.join(str(error).split())[:100]}); fetch the file again") from error
    return found


def csv_rows(path: Path, *, columns: Sequence[str] | None = None, needed: Sequence[str] = ()) -> list[Row]:
    """The records of a CSV file.

    Args:
        columns: what its columns are, where it has no header.
        needed: columns that the header must name.

    Raises:
        DataError: if the file is missing, the header lacks a column, or a line has more or fewer fields than the header.
    """
    lines = _csv(path)
    header = list(columns) if columns is not None else next(lines, (0, []))[1]
    if missing := [column for column in needed if column not in header]:
        raise DataError(f"{path}: its header has no column '{missing[0]}', it has {', '.join(header) or 'none'}; give the benchmark's official file")
    found = []
    for number, fields in lines:
        if len(fields) != len(header):
            raise DataError(f"{path}: line {number} has {len(fields)} fields, not the {len(header)} of {', '.join(header)}; give the official file")
        found.append(Row(path, f"line {number}", dict(zip(header, fields, strict=True))))
    return found


def _csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(_text(path), newline=""))
    try:
        for fields in reader:
            if fields:
                yield reader.line_num, fields
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num} is no CSV ({error}); fetch the file again") from error


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: holds {path.stat().st_size} bytes, more than the {MAX_BYTES} allowed; take a split of the benchmark")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; bring the benchmark's official files into the asset, under their own names") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no UTF-8 text; fetch it again") from error


def _kind(value: object) -> str:
    return NAMES.get(type(value), "a value")
