"""Assets in local files and folders."""

from __future__ import annotations

import shutil
from pathlib import Path

from anymal.data.archives import destination
from anymal.data.asset_folders import ASSET, ensure_free, local_sha256
from anymal.data.lock import FileEntry
from anymal.data.manifest import MANIFEST
from anymal.data.sources.transfer import Opened, blocks, own_source, wrong_hash
from anymal.errors import AssetError
from anymal.progress import track


def open_file(name: str, path: Path, at: int) -> Opened:
    """Open a local file at an offset in bytes."""
    try:
        size = path.stat().st_size
        stream = path.open("rb")
    except OSError as error:
        raise AssetError(f"asset {name}: {path} cannot be read ({error.strerror}); correct the path, {own_source(name)}") from error
    at = min(at, size)
    stream.seek(at)
    return at, size, blocks(stream)


def collect_folder(name: str, entry: FileEntry, folder: Path) -> None:
    """Copy what `take` names of a folder that still is the one in the lock."""
    source = Path(entry.path)
    found = local_sha256(source)
    if found != entry.sha256:
        raise wrong_hash(name, entry.sha256, found)
    files = [file for file in sorted(source.rglob("*")) if file.is_file() and file not in (source / MANIFEST, source / ASSET)]
    ensure_free(folder, sum(file.stat().st_size for file in files), f"asset {name}")
    for file in track(files, label=f"copy {name}", unit="files"):
        goal = destination(file.relative_to(source).as_posix(), entry.take)
        if goal is not None:
            target = folder / goal
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
