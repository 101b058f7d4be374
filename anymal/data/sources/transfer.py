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
from anymal.errors import AnymalError, AssetError
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
        found = bring(f"asset {name}", partial, opener, sha256=sha256, bar=bar, remedy=f", {own_source(name)}", error=AssetError)
        if found != sha256:
            partial.unlink()
            raise wrong_hash(name, sha256, found)
        partial.replace(target)
    return target


def bring(what: str, partial: Path, opener: Callable[[int], Opened], *, sha256: str, error: type[AnymalError], bar: Any = None, remedy: str = "",
          attempts: int = ATTEMPTS) -> str:
    """Bring one file to `partial`, going on from what is there, and say its SHA-256: `sha256`, or what else came from the beginning to the end.

    Args:
        what: subject of errors and of the progress bar; `remedy` ends the error of a transfer that got nowhere.
        error: what is raised then.
        attempts: how often in a row a transfer may break without any progress.
    """
    pieced = partial.is_file() and partial.stat().st_size > 0
    pieced |= transfer(what, partial, opener, error=error, bar=bar, remedy=remedy, attempts=attempts)
    found = sha256_of(partial)
    if found != sha256 and pieced:
        # What was there before, or before a break, may belong to another file: once from the beginning before it counts.
        partial.unlink()
        transfer(what, partial, opener, error=error, bar=bar, remedy=remedy, attempts=attempts)
        found = sha256_of(partial)
    return found


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
        transfer(f"asset {name}", partial, opener, error=AssetError, bar=bar, remedy=f", {own_source(name)}")
        sha256 = sha256_of(partial)
        partial.replace(cache_folder() / "downloads" / sha256)
    return sha256


def wrong_hash(name: str, expected: str, found: str) -> AssetError:
    """The error for an asset that is not the one the lock names."""
    return AssetError(f"asset {name}: what came has SHA-256 {found}, the lock names {expected}; it was thrown away: find out why it changed "
                      f"before you accept it with `anymal lock --update {name}`, {own_source(name)}")


def transfer(what: str, partial: Path, opener: Callable[[int], Opened], *, error: type[AnymalError], bar: Any = None, remedy: str = "",
             attempts: int = ATTEMPTS) -> bool:
    """Bring one file to `partial`, going on from what is there; say whether the transfer broke on the way. Arguments as for `bring`."""
    failures, broke = 0, False
    while True:
        start = partial.stat().st_size if partial.is_file() else 0
        try:
            offset, total, blocks = opener(start)
            with partial.open("r+b" if start else "wb") as output:
                output.seek(offset)
                output.truncate()
                if total is not None:
                    ensure_free(partial.parent, total - offset, what)
                own = track(total=total, label=f"fetch {what.removeprefix('asset ')}", unit="B") if bar is None else bar
                own.unit_scale = True
                if bar is None:
                    own.update(offset)
                try:
                    for block in blocks:
                        output.write(block)
                        own.update(len(block))
                finally:
                    if bar is None:
                        own.close()
            size = partial.stat().st_size
            if total is None or size >= total:
                return broke
            raise Broken(f"it stopped after {size} of {total} bytes")
        except Broken as cause:
            # Progress starts the count again: a line that breaks every minute still gets 160 MB through.
            failures, broke = 0 if partial.is_file() and partial.stat().st_size > start else failures + 1, True
            if failures >= attempts:
                raise error(f"{what}: the download failed {attempts} times ({cause}); check the network and run the same command again, "
                            f"it goes on from there{remedy}") from cause
            time.sleep(min(8.0, 0.25 * 2**failures))


def blocks(stream: Any) -> Iterator[bytes]:
    """What is left of a stream, block by block; it is closed at the end."""
    with closing(stream):
        while block := stream.read(BLOCK):
            yield block
