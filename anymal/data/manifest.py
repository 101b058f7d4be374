"""`manifest.json`: the SHA-256 and size of each file of a folder that a stage wrote, so that a change anywhere is seen."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from anymal.errors import DataError

MANIFEST = "manifest.json"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal; reads in blocks, whatever the size."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fingerprint(path: Path) -> str:
    """SHA-256 that names an input's content: of the file, of the folder's manifest, or of all names and files in it."""
    if path.is_file():
        return sha256_of(path)
    if (path / MANIFEST).is_file():
        return sha256_of(path / MANIFEST)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_of(file)}\n".encode())
    return digest.hexdigest()


def write_manifest(folder: Path) -> None:
    """Record every file below `folder` (the manifest itself apart) in `folder/manifest.json`."""
    entries = {file.relative_to(folder).as_posix(): {"sha256": sha256_of(file), "size": file.stat().st_size} for file in _files(folder)}
    text = json.dumps({"files": entries}, indent=1, sort_keys=True) + "\n"
    temporary = folder / f".{MANIFEST}.partial"
    temporary.write_text(text)
    temporary.replace(folder / MANIFEST)


def verify_manifest(folder: Path, *, error: type[Exception] = DataError) -> dict[str, str]:
    """Check that a folder holds exactly the files its manifest names, unchanged.

    Returns:
        Relative file name -> SHA-256.

    Raises:
        error: naming each missing, extra and changed file.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise error(f"{folder}: has no {MANIFEST}, so its files cannot be trusted; run the stage that makes it again")
    try:
        entries = json.loads(path.read_text())["files"]
    except (ValueError, KeyError, TypeError) as cause:
        raise error(f"{path}: is not a manifest; run the stage that makes this folder again") from cause
    present = {file.relative_to(folder).as_posix(): file for file in _files(folder)}
    problems = [f"missing {name}" for name in sorted(entries.keys() - present.keys())]
    problems += [f"extra {name}" for name in sorted(present.keys() - entries.keys())]
    for name in sorted(entries.keys() & present.keys()):
        if present[name].stat().st_size != entries[name]["size"] or sha256_of(present[name]) != entries[name]["sha256"]:
            problems.append(f"changed {name}")
    if problems:
        raise error(f"{folder}: does not match its {MANIFEST}: {'; '.join(problems)}; restore the folder or make it again")
    return {name: entry["sha256"] for name, entry in entries.items()}


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / MANIFEST and file.name != f".{MANIFEST}.partial")
