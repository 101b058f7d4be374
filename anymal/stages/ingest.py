"""Bring named data and model files in, verified by SHA-256, with their licences."""

from __future__ import annotations

from pydantic import Field

from anymal.data.asset_folders import install
from anymal.data.assets import provide
from anymal.data.lock import read_lock, unknown_name
from anymal.data.manifest import write_manifest
from anymal.errors import ConfigError
from anymal.stage import Config, In, Out


class IngestConfig(Config):
    """Which assets, and where from."""

    assets: list[str] = Field(min_length=1)
    """Names of entries of the lock."""
    sources: dict[str, str]
    """Asset name -> another place to take it from: a folder or s3:// prefix with files of one's own, or a copy (local file,
    s3:// or https://) of the archive that the lock names."""


def ingest(config: IngestConfig, *, lock: In, assets: Out) -> None:
    """Bring named data and model files in: downloaded, verified by SHA-256, unpacked, converted and cached.

    Writes `NAME/` per asset: its files, `asset.json` (its entry of the lock: origin, version, licence) and `manifest.json`.

    Raises:
        ConfigError: if the lock or a name is wrong.
        AssetError: if an asset cannot be had or is not the one that the lock names.
    """
    entries = read_lock(lock)
    for position, name in enumerate(config.assets):
        if name not in entries:
            raise unknown_name(name, entries, f"ingest.assets.{position} ({lock.name})")
        if name in config.assets[:position]:
            raise ConfigError(f"ingest.assets.{position}: '{name}' is named twice; name each asset once")
    for name in config.sources:
        if name not in config.assets:
            raise unknown_name(name, dict.fromkeys(config.assets), f"ingest.sources.{name}")
    assets.mkdir(parents=True)
    for name in config.assets:
        install(provide(name, entries[name], config.sources.get(name)), assets / name)
    write_manifest(assets)
