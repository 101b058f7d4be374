"""Whether an asset can be had, found out without fetching it."""

from __future__ import annotations

from pathlib import Path

from anymal.data.assets import cached
from anymal.data.lock import AnyEntry, AptEntry, FileEntry, HfEntry, PipEntry, S3Entry
from anymal.data.manifest import MANIFEST, sha256_of
from anymal.data.s3 import SCHEME, S3Error, Storage
from anymal.data.sources.transfer import own_source, wrong_hash
from anymal.errors import AssetError


def check_available(name: str, entry: AnyEntry, source: str | None = None) -> int:
    """Make sure that an asset is in the cache, or at the place that `source` or its entry names.

    Args:
        source: `ingest.sources.NAME`, as for `anymal.data.assets.provide`.

    Returns:
        Bytes that are to be fetched, as far as its place says.

    Raises:
        AssetError: one sentence with the remedy.
    """
    if source is not None:
        return _check_source(name, source)
    if cached(name, entry).is_dir():
        return 0
    size = 0
    match entry:
        case PipEntry():
            from anymal.data.sources.pip import check_pip

            check_pip(name, entry)
        case AptEntry():
            from anymal.data.sources.apt import query_apt

            _, _, size, announced = query_apt(name, entry.package, entry.version)
            if announced not in ("", entry.sha256):
                raise wrong_hash(name, entry.sha256, announced)
        case HfEntry():
            from anymal.data.sources.hub import check_hf

            size = check_hf(name, entry)
        case S3Entry():
            from anymal.data.sources.s3 import check_s3

            size = check_s3(name, entry)
        case FileEntry():
            path = Path(entry.path)
            if not path.exists():
                raise AssetError(f"asset {name}: {path}: no such file or folder; correct the path, {own_source(name)}")
            if (path / MANIFEST).is_file() and (found := sha256_of(path / MANIFEST)) != entry.sha256:
                raise wrong_hash(name, entry.sha256, found)
            size = _size(path)
    return size


def _check_source(name: str, source: str) -> int:
    setting = f"ingest.sources.{name} = {source}"
    if source.startswith(SCHEME):
        try:
            storage = Storage(attempts=2, timeout=10)
            if source.endswith("/"):
                sizes = [found.size for found in storage.listing(source).values()]
            else:
                found = storage.head(source)
                sizes = [] if found is None else [found.size]
        except S3Error as error:
            raise AssetError(f"ingest.sources.{name} = {error}") from error
        if not sizes:
            raise AssetError(f"{setting}: there is no such object; correct the address")
        return sum(sizes)
    if source.startswith(("https://", "http://")):
        import requests

        from anymal.data.sources.tools import pip_certificates

        verify = (pip_certificates() or True) if source.startswith("https") else True
        try:
            answer = requests.head(source, timeout=10, allow_redirects=True, verify=verify)
        except requests.RequestException as error:
            raise AssetError(f"{setting}: its server cannot be reached; check the network and the address") from error
        if not answer.ok:
            raise AssetError(f"{setting}: its server answered {answer.status_code}; correct the address")
        return int(answer.headers.get("Content-Length", 0))
    if not Path(source).exists():
        raise AssetError(f"{setting}: no such file or folder; give a folder, an archive, or an s3:// prefix that ends in /")
    return _size(Path(source))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
