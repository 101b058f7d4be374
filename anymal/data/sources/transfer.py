"""One resumable, verified download into the cache, whatever it comes from."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from anymal.data.asset_folders import cache_folder, ensure_free
from anymal.data.manifest import sha256_of
from anymal.errors import AssetError
from anymal.progress import track

BLOCK = 2**20
ATTEMPTS = 5

Opened = tuple[int, int | None, Iterator[bytes]]
"""Offset at which the server really starts, size of the whole in bytes if it says so, and the blocks from there."""


class Broken(Exception):
    """The transfer stopped early; going on from where it stopped may help. The message has no address in it."""


def own_source(name: str) -> str:
    """The remedy that always works, as the end of a sentence."""
    return f"or point ingest.sources.{name} at a folder or s3:// prefix that holds its files (a copy of data/assets/{name} will do)"


def download(name: str, sha256: str, opener: Callable[[int], Opened], *, bar: Any = None) -> Path:
    """Bring one file into the cache, named by its SHA-256. A broken transfer goes on where it stopped, also in a later process.

    Raises:
        AssetError: if it cannot be had, or is another file than the lock names.
    """
    from filelock import FileLock

    folder = cache_folder() / "downloads"
    target, partial = folder / sha256, folder / f"{sha256}.partial"
    with FileLock(cache_folder() / "locks" / f"{sha256}.download.lock"):
        if target.is_file():
            if sha256_of(target) == sha256:
                return target
            target.unlink()
        resumed = partial.is_file() and partial.stat().st_size > 0
        _transfer(name, partial, opener, bar)
        found = sha256_of(partial)
        if found != sha256 and resumed:
            # What an earlier process left may belong to another file: once from the beginning before it counts.
            partial.unlink()
            _transfer(name, partial, opener, bar)
            found = sha256_of(partial)
        if found != sha256:
            partial.unlink()
            raise wrong_hash(name, sha256, found)
        partial.replace(target)
    return target


def adopt(name: str, sha256: str, file: Path) -> Path:
    """Move a file that pip or apt brought into the cache, verified."""
    found = sha256_of(file)
    if found != sha256:
        file.unlink()
        raise wrong_hash(name, sha256, found)
    target = cache_folder() / "downloads" / sha256
    file.replace(target)
    return target


def fetch_unpinned(name: str, opener: Callable[[int], Opened], bar: Any = None) -> str:
    """Bring a file of unknown SHA-256 into the cache (trust on first use) and say which it has."""
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        partial = Path(folder) / "object"
        _transfer(name, partial, opener, bar)
        sha256 = sha256_of(partial)
        partial.replace(cache_folder() / "downloads" / sha256)
    return sha256


def wrong_hash(name: str, expected: str, found: str) -> AssetError:
    """The error for an asset that is not the one the lock names."""
    return AssetError(f"asset {name}: what came has SHA-256 {found}, the lock names {expected}; it was thrown away: find out why it changed "
                      f"before you accept it with `anymal lock --update {name}`, {own_source(name)}")


def _transfer(name: str, partial: Path, opener: Callable[[int], Opened], outer: Any) -> None:
    failures = 0
    while True:
        start = partial.stat().st_size if partial.is_file() else 0
        try:
            offset, total, blocks = opener(start)
            with partial.open("r+b" if start else "wb") as output:
                output.seek(offset)
                output.truncate()
                if total is not None:
                    ensure_free(partial.parent, total - offset, f"asset {name}")
                bar = outer if outer is not None else track(total=total, label=f"fetch {name}", unit="B")
                bar.unit_scale = True
                if outer is None:
                    bar.update(offset)
                try:
                    for block in blocks:
                        output.write(block)
                        bar.update(len(block))
                finally:
                    if outer is None:
                        bar.close()
            size = partial.stat().st_size
            if total is None or size >= total:
                return
            raise Broken(f"it stopped after {size} of {total} bytes")
        except Broken as error:
            # Progress starts the count again: a line that breaks every minute still gets 160 MB through.
            failures = 0 if partial.is_file() and partial.stat().st_size > start else failures + 1
            if failures >= ATTEMPTS:
                raise AssetError(f"asset {name}: the download failed {ATTEMPTS} times ({error}); check the network and run the same command again, "
                                 f"it goes on from there, {own_source(name)}") from error
            time.sleep(min(8.0, 0.25 * 2**failures))


def blocks(stream: Any) -> Iterator[bytes]:
    """What is left of a stream, block by block; it is closed at the end."""
    with closing(stream):
        while block := stream.read(BLOCK):
            yield block
