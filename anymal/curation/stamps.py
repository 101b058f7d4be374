"""The folder of cut-outs that curate_image leaves for clips which move them: `KEY.png` (RGBA, trimmed), and a list of them.

The list has, in the order of the keys: `key`, `name`, `head` (noun), `size` (pixels), `colour` (mean RGB), `split`, `source`, `license`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anymal.curation.scenes import Stamp
from anymal.data.manifest import verify_manifest
from anymal.errors import DataError

STAMPS = "stamps.json"


def write_stamp_list(folder: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Write the list beside the pictures."""
    (folder / STAMPS).write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def load_stamps(folder: Path) -> tuple[dict[str, list[Stamp]], dict[str, str]]:
    """The cut-outs that curate_image left.

    Returns:
        Split -> its stamps, in the order of their keys; key -> licence.

    Raises:
        DataError: if the folder is not what its manifest says, or was made by something else.
    """
    verify_manifest(folder)
    try:
        entries: list[dict[str, Any]] = json.loads((folder / STAMPS).read_text(encoding="utf-8"))
        stamps: dict[str, list[Stamp]] = {}
        licences = {}
        for entry in entries:
            width, height = entry["size"]
            red, green, blue = entry["colour"]
            stamp = Stamp(entry["key"], entry["name"], entry["head"], folder / f"{entry['key']}.png", (width, height), (red, green, blue))
            stamps.setdefault(entry["split"], []).append(stamp)
            licences[entry["key"]] = entry["license"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"--stamps {folder}: holds no list of stamps in {STAMPS}; give the folder that curate_image wrote") from error
    return stamps, licences
