"""Assets by name: how to get a verified, converted folder of one, and how to find again the one that a bundle names.

Finished assets are kept in a cache keyed by the hash of their entry, so a second checkout converts nothing. What an entry says is in
`anymal.data.lock`, what a folder says in `anymal.data.asset_folders`; neither knows how assets are fetched.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from anymal.data.asset_folders import ASSET, cache_folder, ensure_free, install, local_sha256, read_asset
from anymal.data.lock import AnyEntry, Take, asset_document, parse_entry, read_lock, unknown_name
from anymal.data.manifest import MANIFEST, verify_manifest, write_manifest
from anymal.errors import AssetError, ConfigError

__all__ = ["AnyEntry", "Take", "asset_document", "cache_folder", "cached", "ensure_free", "install", "local_sha256", "parse_entry", "provide",
           "read_asset", "read_lock", "resolve", "unknown_name"]

FORMAT = 1
"""Part of every cache key: raise it when extraction or a conversion changes its output."""
ASSETS_FOLDER = Path("data/assets")
PICKLES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}


def provide(name: str, entry: AnyEntry, source: str | None = None) -> Path:
    """A finished folder of an asset in the cache: from there if it is known, otherwise fetched, verified, unpacked and converted.

    Args:
        source: where to take it from instead of the place in the entry: a copy of the archive that the entry names (local file,
            s3:// or https:// object: its SHA-256 must be the same), or a folder or s3:// prefix with files of one's own.

    Raises:
        AssetError: one sentence with the remedy. Nothing half-made is kept, but for downloads that can be resumed.
    """
    from filelock import FileLock

    from anymal.data.fetch import collect, redirect

    cache = cache_folder()
    try:
        for part in ("assets", "downloads", "locks"):
            (cache / part).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AssetError(f"the cache folder {cache} cannot be written ({error.strerror}); set ANYMAL_CACHE to a folder that can be") from error
    if source is not None:
        if (ready := _finished_source(name, entry, source)) is not None:
            return ready
        entry = redirect(name, entry, source)
    final = cached(name, entry)
    with FileLock(cache / "locks" / f"{final.name}.lock"):
        if final.is_dir():
            with suppress(AssetError):
                verify_manifest(final, error=AssetError)
                return final
            shutil.rmtree(final)
        staging = final.with_name(f".{final.name}.partial")
        shutil.rmtree(staging, ignore_errors=True)
        try:
            staging.mkdir()
            collect(name, entry, staging, source)
            _finish(name, entry, staging)
            staging.rename(final)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return final


def cached(name: str, entry: AnyEntry) -> Path:
    """Where the cache keeps the finished folder of an asset, if it has it."""
    key = hashlib.sha256(json.dumps({"format": FORMAT, **asset_document(name, entry)}, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "assets" / key


def _finish(name: str, entry: AnyEntry, folder: Path) -> None:
    """Convert, refuse pickles, and write `asset.json` and the manifest."""
    from anymal.data.convert import CONVERSIONS

    if entry.convert is not None:
        CONVERSIONS[entry.convert](name, folder)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    if not files:
        raise AssetError(f"asset {name}: its source holds no files")
    pickles = [file.relative_to(folder).as_posix() for file in files if file.suffix.lower() in PICKLES]
    if pickles:
        raise AssetError(f"asset {name}: {', '.join(pickles[:3])} may hold pickled code and is refused; take safetensors files instead, "
                         "or add `convert: torch_to_safetensors` to its entry")
    for reserved in (ASSET, MANIFEST):
        if (folder / reserved).exists():
            raise AssetError(f"asset {name}: its source has a file named {reserved} at the top, a name that is kept for the record of an asset; "
                             "put its files elsewhere with `take: [{from: …, to: …}]`")
    text = json.dumps(asset_document(name, entry), indent=1, sort_keys=True, ensure_ascii=False)
    (folder / ASSET).write_text(text + "\n", encoding="utf-8")
    write_manifest(folder)


def _finished_source(name: str, entry: AnyEntry, source: str) -> Path | None:
    """A source folder that already is this very asset (copied from another machine), verified."""
    folder = Path(source)
    if read_asset(folder) != asset_document(name, entry):
        return None
    verify_manifest(folder, error=AssetError)
    return folder


def resolve(document: Mapping[str, Any]) -> Path:
    """A folder that holds the asset which a bundle's record (the content of `asset.json`) names, verified.

    Looked for in `data/assets/NAME` of the working directory, then in the cache; otherwise fetched now.

    Raises:
        AssetError: if it cannot be fetched or is not the one recorded.
        ConfigError: if the record is not an asset's.
    """
    name = document.get("name")
    if not isinstance(name, str):
        raise ConfigError(f"{ASSET}: has no name, so it is no asset's record; ingest the asset again")
    entry = parse_entry(name, {key: value for key, value in document.items() if key != "name"}, ASSET)
    local = (ASSETS_FOLDER / name).absolute()  # an encoder is loaded when it is first needed, maybe from another working directory
    if read_asset(local) == asset_document(name, entry):
        verify_manifest(local, error=AssetError)
        return local
    return provide(name, entry)
