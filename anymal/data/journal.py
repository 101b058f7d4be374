"""What was worked out, on disk at once, so that a run that was killed does nothing twice."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Journal:
    """A file of JSON lines. One line holds what was finished together, so a line that a kill cut short was never finished."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a last line that is cut short is removed."""
        self._path = path
        self.groups: list[list[dict[str, Any]]] = []
        whole = 0
        if path.is_file():
            for line in path.read_bytes().splitlines(keepends=True):
                try:
                    group = json.loads(line)
                except ValueError:
                    break
                if not line.endswith(b"\n"):
                    break
                self.groups.append(group)
                whole += len(line)
            os.truncate(path, whole)

    def append(self, group: Sequence[dict[str, Any]]) -> None:
        """Write one group; it is on the disk when this returns."""
        with self._path.open("ab") as stream:
            stream.write(json.dumps(list(group), ensure_ascii=False).encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
