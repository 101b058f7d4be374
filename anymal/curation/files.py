"""Files and paths of sources, of whatever modality."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


def read_text(path: Path, limit: int) -> str:
    """A text file's first `limit` bytes as UTF-8; what is not UTF-8 becomes the replacement character."""
    with path.open("rb") as stream:
        return stream.read(limit).decode("utf-8", errors="replace")


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a path matches a glob: `*` stays within a folder, `**` crosses folders (`symbols/**`)."""
    return any(_glob(pattern).fullmatch(name) for pattern in patterns)


def _glob(pattern: str) -> re.Pattern[str]:
    pieces = re.split(r"(\*\*/?|\*|\?)", pattern)
    table = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(table.get(piece, re.escape(piece)) for piece in pieces))
