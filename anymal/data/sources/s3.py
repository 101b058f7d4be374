"""Assets in objects of S3 servers, one by one or all below a prefix."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anymal.data.archives import destination
from anymal.data.asset_folders import ASSET, cache_folder, ensure_free
from anymal.data.lock import S3Entry, is_safe
from anymal.data.manifest import MANIFEST
from anymal.data.s3 import Found, S3Error, Storage, in_parallel
from anymal.data.sources.transfer import Opened, download, fetch_unpinned, wrong_hash
from anymal.errors import AssetError
from anymal.progress import track

MAX_MANIFEST_BYTES = 2**26


@contextmanager
def _asset(name: str) -> Iterator[None]:
    """Say of which asset S3 speaks."""
    try:
        yield
    except S3Error as error:
        raise AssetError(f"asset {name}: {error}") from error


def _storage(name: str, **options: Any) -> Storage:
    with _asset(name):
        return Storage(**options)


def open_s3(name: str, url: str, at: int, storage: Storage | None = None) -> Opened:
    """Open an S3 object at an offset."""
    with _asset(name):
        return (storage or Storage()).open(url, at)


def list_prefix(name: str, url: str, storage: Storage) -> dict[str, Found]:
    """Objects below a prefix, by their name there; there must be one."""
    with _asset(name):
        found = storage.listing(url)
    if not found:
        raise AssetError(f"asset {name}: {url}: there is no object below this prefix; correct the address")
    return found


def read_manifest(name: str, url: str, storage: Storage) -> bytes:
    """The manifest.json below a prefix."""
    with _asset(name):
        content = storage.read(f"{url}{MANIFEST}", MAX_MANIFEST_BYTES)
    if content is None:
        raise AssetError(f"asset {name}: {url}{MANIFEST}: there is no such object; correct the address, or upload it again")
    return content


def pin_prefix(name: str, url: str) -> dict[str, Any]:
    """What pins the present content of a prefix: `manifest_sha256` of the manifest.json there, else `files` with each object's SHA-256.

    Objects without a manifest are downloaded to be hashed, once as long as the bucket's listing does not change.
    """
    storage = _storage(name)
    listing = list_prefix(name, url, storage)
    if MANIFEST in listing:
        return {"manifest_sha256": hashlib.sha256(read_manifest(name, url, storage)).hexdigest()}
    state = json.dumps([url, {key: (found.etag, found.size) for key, found in listing.items()}], sort_keys=True)
    note = cache_folder() / "pins" / f"{hashlib.sha256(state.encode()).hexdigest()}.json"
    if note.is_file():
        return {"files": json.loads(note.read_text(encoding="utf-8"))}
    bar = track(total=sum(found.size for found in listing.values()), label=f"hash {name}", unit="B")
    bar.unit_scale = True

    def pin_one(key: str) -> tuple[str, str]:
        return key, fetch_unpinned(name, lambda at: open_s3(name, f"{url}{key}", at, storage), bar)

    with bar:
        files = dict(in_parallel(pin_one, sorted(listing)))
    note.parent.mkdir(exist_ok=True)
    temporary = note.with_suffix(".partial")
    temporary.write_text(json.dumps(files), encoding="utf-8")
    temporary.replace(note)
    return {"files": files}


def _listed(name: str, entry: S3Entry, storage: Storage) -> tuple[dict[str, str], dict[str, str], dict[str, Found]]:
    """Of a prefix: name -> SHA-256 as pinned, name -> place in the asset of those that `take` names, and the objects that are there."""
    listed = dict(entry.files) if entry.files is not None else _manifest_files(name, entry, storage)
    wanted = {key: goal for key in sorted(listed) if (goal := destination(key, entry.take)) is not None and key not in (ASSET, MANIFEST)}
    unsafe = [key for key, goal in wanted.items() if not is_safe(key) or not is_safe(goal)]
    if unsafe or not wanted:
        problem = f"the file name {unsafe[0]!r} leaves its folder" if unsafe else "`take` names none of its files"
        raise AssetError(f"asset {name}: {entry.url}: {problem}; correct its entry of the lock")
    present = list_prefix(name, entry.url, storage)
    missing = sorted(wanted.keys() - present.keys())
    if missing:
        raise AssetError(f"asset {name}: {entry.url}: {len(missing)} objects that the lock names are not there, e.g. {missing[0]}; upload them again")
    return listed, wanted, present


def collect_prefix(name: str, entry: S3Entry, folder: Path) -> None:
    """Fetch what `take` names of the objects below a prefix, several at a time."""
    storage = _storage(name)
    listed, wanted, present = _listed(name, entry, storage)
    total = sum(present[key].size for key in wanted)
    ensure_free(folder, total, f"asset {name}")
    bar = track(total=total, label=f"fetch {name}", unit="B")
    bar.unit_scale = True

    def fetch_one(key: str) -> tuple[str, Path]:
        return key, download(name, listed[key], lambda at: open_s3(name, f"{entry.url}{key}", at, storage), bar=bar)

    with bar:
        fetched = dict(in_parallel(fetch_one, wanted))
    for key, goal in wanted.items():
        target = folder / goal
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(fetched[key], target)  # several names may have the same content, so it is linked, not moved
        except OSError:
            shutil.copyfile(fetched[key], target)
    for path in set(fetched.values()):
        path.unlink()


def check_s3(name: str, entry: S3Entry) -> int:
    """Make sure that what an entry names is there, without fetching it.

    Returns:
        Bytes that are to be fetched.

    Raises:
        AssetError: if objects are missing or the manifest is another, or the server cannot be asked.
    """
    storage = _storage(name, attempts=2, timeout=10)
    if not entry.url.endswith("/"):
        with _asset(name):
            found = storage.head(entry.url)
        if found is None:
            raise AssetError(f"asset {name}: {entry.url}: there is no such object; correct the address, or upload it again")
        return found.size
    _, wanted, present = _listed(name, entry, storage)
    return sum(present[key].size for key in wanted)


def _manifest_files(name: str, entry: S3Entry, storage: Storage) -> dict[str, str]:
    content = read_manifest(name, entry.url, storage)
    found = hashlib.sha256(content).hexdigest()
    if found != entry.manifest_sha256:
        raise wrong_hash(f"{name}, {MANIFEST}", str(entry.manifest_sha256), found)
    try:
        return {key: value["sha256"] for key, value in json.loads(content)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AssetError(f"asset {name}: {entry.url}{MANIFEST} is not a manifest; write one with anymal.data.manifest.write_manifest") from error
