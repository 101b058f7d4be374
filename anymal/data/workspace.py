"""The volume that all pods of a run see: inputs copied there once, by their content, and outputs copied from there, each compared by its SHA-256."""

from __future__ import annotations

import shutil
from pathlib import Path

from anymal.data.asset_folders import ensure_free
from anymal.data.manifest import MANIFEST, fingerprint, verify_manifest
from anymal.errors import DataError


def bring(path: Path, workspace: Path, owner: str) -> Path:
    """An input as all pods see it: itself if it lies in the workspace, else `inputs/SHA256/NAME` there.

    What was brought before is not hashed again: names and sizes are compared.

    Args:
        owner: names the run, which alone may have a copy of this name under way.

    Raises:
        DataError: if the input is not what its manifest says.
        AssetError: if the volume is too small.
    """
    if path.resolve().is_relative_to(workspace.resolve()):
        return path
    final = workspace / "inputs" / fingerprint(path) / path.name
    if not final.exists() or _sizes(final) != _sizes(path):
        copy(path, final, owner)
    return final


def copy(source: Path, target: Path, owner: str) -> None:
    """Copy a file or folder, which appears at its place whole and verified. What was there before is replaced, unless it is the same.

    Raises:
        DataError: if other bytes arrive.
        AssetError: if there is no room.
    """
    partial = target.with_name(f".{target.name}.{owner}.partial")
    remove(partial)
    target.parent.mkdir(parents=True, exist_ok=True)
    ensure_free(target.parent, sum(_sizes(source).values()), str(source))
    if source.is_dir():
        shutil.copytree(source, partial)
    else:
        shutil.copyfile(source, partial)
    try:
        if (partial / MANIFEST).is_file():
            verify_manifest(partial)
    except DataError:
        remove(partial)
        raise
    if fingerprint(partial) != fingerprint(source):
        remove(partial)
        raise DataError(f"{source}: other bytes arrived in {target.parent}; run the same command again, and check the volume if it happens again")
    if target.exists() and _sizes(target) == _sizes(source) and fingerprint(target) == fingerprint(source):
        remove(partial)  # another run was faster, and its job may be reading
        return
    remove(target)
    partial.replace(target)


def remove(path: Path) -> None:
    """Remove a file or folder; one that is not there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sizes(path: Path) -> dict[str, int]:
    """Relative name -> bytes, of a file or of all files of a folder."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return {file.relative_to(path).as_posix(): file.stat().st_size for file in files}
