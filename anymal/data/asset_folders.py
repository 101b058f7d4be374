"""Asset folders on this machine: where they are kept, what one records of itself, and copying one to where the stages read it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from anymal.data.manifest import MANIFEST, fingerprint, verify_manifest
from anymal.errors import AssetError

ASSET = "asset.json"
"""The record of an asset in its folder: its name and its entry of the lock."""


def cache_folder() -> Path:
    """`ANYMAL_CACHE`, or `anymal` in the user's cache folder."""
    if chosen := os.environ.get("ANYMAL_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anymal"


def ensure_free(folder: Path, needed: int, what: str) -> None:
    """Refuse to start what cannot fit on the disk.

    Raises:
        AssetError: saying how much is needed, how much is free and where.
    """
    free = shutil.disk_usage(folder).free
    if needed + 64 * 2**20 > free:
        raise AssetError(f"{what}: needs {needed / 1e9:.2f} GB in {folder}, where {free / 1e9:.2f} GB are free; "
                         "free some space, or set ANYMAL_CACHE to a folder on a larger disk")


def read_asset(folder: Path) -> dict[str, Any] | None:
    """The `asset.json` of a folder; None if it has none that can be read."""
    try:
        document = json.loads((folder / ASSET).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def install(folder: Path, target: Path) -> None:
    """Copy a finished asset to where the stages read it. Copied, not linked: other tools change the modes of their files."""
    ensure_free(target.parent, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()), f"asset {target.name}")
    shutil.copytree(folder, target)


def local_sha256(path: Path) -> str:
    """The SHA-256 that pins a local file or folder; a folder's manifest, if it has one, is checked first."""
    if path.is_dir() and (path / MANIFEST).is_file():
        verify_manifest(path, error=AssetError)
    return fingerprint(path)
