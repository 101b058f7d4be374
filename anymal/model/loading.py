"""From a bundle to a model: the assets that it names are found, or fetched, and must be the same as they were."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anymal.data.assets import resolve
from anymal.data.lock import asset_document, parse_entry
from anymal.data.manifest import MANIFEST, sha256_of
from anymal.errors import AnymalError, BundleError, ConfigError
from anymal.model.bundle import BUNDLE, read_bundle

if TYPE_CHECKING:
    from anymal.model.anymal import AnyMAL


def load_bundle(folder: Path, *, dtype: str | None = None, quantization: str | None = None, attention: str | None = None) -> AnyMAL:
    """A model ready to answer; bundle, LLM and encoders are verified first. What is not given is as the bundle was measured.

    Raises:
        BundleError: if the bundle, or an asset it names, is incomplete, has extra files or was changed.
        AssetError: if the LLM or an encoder is not on this machine and cannot be fetched.
    """
    document = read_bundle(folder)
    assets = {name: resolve_asset(folder, name, record) for name, record in document["assets"].items()}
    # Imported after the checks: torch and transformers take seconds, a damaged bundle should be named at once.
    from anymal.model.anymal import load_anymal

    settings = document["inference"]
    return load_anymal(assets, [folder], dtype=dtype or settings["dtype"], quantization=quantization or settings["quantization"],
                       attention=attention or settings["attention"], merge=settings["merge"])


def resolve_asset(folder: Path, name: str, record: Mapping[str, Any]) -> Path:
    """Where an asset is that a bundle names, fetched if need be, and the same as it was.

    Raises:
        BundleError: if it is another one, or the record cannot be used.
        AssetError: if it cannot be had.
    """
    try:
        entry = parse_entry(name, {key: value for key, value in record["entry"].items() if key != "name"}, BUNDLE)
        path = resolve(asset_document(name, entry))
    except (ConfigError, KeyError, AttributeError) as error:
        raise BundleError(f"{folder / BUNDLE}: the record of asset {name} cannot be used ({error}); register the model again") from error
    except AnymalError as error:
        raise type(error)(f"{folder} needs asset {name}: {error}") from error
    found = sha256_of(path / MANIFEST)
    if found != record["sha256"]:
        raise BundleError(f"{folder} was made with asset {name} of SHA-256 {record['sha256'][:12]}…, but {path} has {found[:12]}…; "
                          f"remove {path} and run ingest with the lock of that time, or register the model again")
    return path
