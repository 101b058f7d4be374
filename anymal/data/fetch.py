"""Fetching of assets from where their entries say, resumed and verified: which kind of source (`anymal.data.sources`) serves which entry.

Addresses of package indexes are resolved by the user's own pip and apt settings and never logged, stored or shown.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from anymal.data.archives import unpack
from anymal.data.asset_folders import cache_folder, ensure_free, local_sha256
from anymal.data.lock import AnyEntry, AptEntry, FileEntry, HfEntry, PipEntry, S3Entry
from anymal.data.sources.apt import download_apt, fetch_apt, query_apt
from anymal.data.sources.hub import collect_hf, hash_hf, query_hf
from anymal.data.sources.local import collect_folder, open_file
from anymal.data.sources.pip import fetch_pip, query_pip
from anymal.data.sources.places import open_any
from anymal.data.sources.s3 import collect_prefix, open_s3, pin_prefix
from anymal.data.sources.transfer import download, fetch_unpinned
from anymal.errors import AssetError

__all__ = ["collect", "download_apt", "fetch_archive", "fetch_unpinned", "hash_hf", "open_any", "open_s3", "pin_prefix", "query_apt", "query_hf",
           "query_pip", "redirect"]


def collect(name: str, entry: AnyEntry, folder: Path, source: str | None = None) -> None:
    """Fetch an asset's files into the empty `folder`, verified, unpacked and placed as `take` says.

    Args:
        source: where to get the archive instead of the entry's own place; see `anymal.data.assets.provide`.

    Raises:
        AssetError: one sentence with the remedy.
    """
    match entry:
        case HfEntry():
            collect_hf(name, entry, folder)
        case S3Entry() if entry.url.endswith("/"):
            collect_prefix(name, entry, folder)
        case FileEntry() if Path(source or entry.path).is_dir():
            collect_folder(name, entry, folder)
        case _:
            archive = fetch_archive(name, entry, source)
            if entry.take:
                unpack(name, archive, entry.take, folder)
            else:
                origin = entry.url if isinstance(entry, S3Entry) else entry.path if isinstance(entry, FileEntry) else archive.name
                ensure_free(folder, archive.stat().st_size, f"asset {name}")
                shutil.copyfile(archive, folder / origin.rsplit("/", 1)[-1])


def redirect(name: str, entry: AnyEntry, source: str) -> AnyEntry:
    """The entry to use when the user points at a place of their own: the same for a copy of the archive, else one for their files."""
    if source.startswith("s3://"):
        if not source.endswith("/"):
            return _same_archive(name, entry, source)
        return S3Entry(kind="s3", url=source, licence=entry.licence, **pin_prefix(name, source))
    if source.startswith(("https://", "http://")):
        return _same_archive(name, entry, source)
    path = Path(source)
    if path.is_dir():
        return FileEntry(kind="file", path=source, sha256=local_sha256(path), licence=entry.licence)
    if path.is_file():
        return _same_archive(name, entry, source)
    raise AssetError(f"ingest.sources.{name} = {source}: no such file or folder; give a folder, an archive, or an s3:// prefix that ends in /")


def _same_archive(name: str, entry: AnyEntry, source: str) -> AnyEntry:
    if isinstance(entry, HfEntry) or getattr(entry, "sha256", None) is None:
        raise AssetError(f"ingest.sources.{name} = {source}: the lock does not name one archive for this asset; "
                         "give a folder or an s3:// prefix that ends in / with its files")
    return entry


def fetch_archive(name: str, entry: AnyEntry, source: str | None) -> Path:
    """The one file that an entry names, in the cache, with the SHA-256 of the entry."""
    assert not isinstance(entry, HfEntry) and entry.sha256 is not None
    if source is None and isinstance(entry, PipEntry | AptEntry):
        cached = cache_folder() / "downloads" / entry.sha256
        if cached.is_file():
            return download(name, entry.sha256, lambda at: open_file(name, cached, at))
        return fetch_pip(name, entry) if isinstance(entry, PipEntry) else fetch_apt(name, entry)
    place = source if source is not None else entry.url if isinstance(entry, S3Entry) else entry.path if isinstance(entry, FileEntry) else None
    return download(name, entry.sha256, lambda at: open_any(name, str(place), at))
