"""Readers: how the samples of a source are found on disk. A new kind of source is one function here and one entry in `READERS`.

A reader yields every image it meets, readable or not, in a fixed order: what is wrong with one is said in its `problem` and counted later.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from anymal.curation.drops import Drop
from anymal.curation.files import read_text
from anymal.curation.images import SUFFIXES
from anymal.errors import DataError

MAX_TEXT_BYTES = 2**20


@dataclass(frozen=True)
class Item:
    """One image of a source and what the source says of it."""

    source: str
    name: str
    """Path within the source, with forward slashes."""
    path: Path
    suffix: str
    size: int
    offset: int | None = None
    """Where its bytes start, for a member of a tar; None for a file of its own."""
    text: str | None = None
    """The caption as the source gives it; None where there is none, or where the file name is all there is."""
    problem: Drop | None = None

    @property
    def stem(self) -> str:
        """File name without folder and suffix."""
        return PurePosixPath(self.name).stem

    @property
    def category(self) -> str:
        """Folder within the source ("animals/birds"), empty at the top."""
        parent = PurePosixPath(self.name).parent.as_posix()
        return "" if parent == "." else parent

    def read(self, limit: int | None = None) -> bytes:
        """The image file's bytes (the first `limit` of them)."""
        with self.path.open("rb") as stream:
            if self.offset is not None:
                stream.seek(self.offset)
                return stream.read(self.size if limit is None else min(limit, self.size))
            return stream.read() if limit is None else stream.read(limit)


def _images(root: Path, source: str) -> Iterator[Item]:
    if not root.is_dir():
        raise DataError(f"curate_image.sources.{source}: folder {root} not found; run ingest, or correct the asset's name")
    inside = root.resolve()
    for path in sorted(root.rglob("*"), key=lambda path: path.relative_to(root).as_posix()):
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES or path.is_dir():
            continue
        item = Item(source, path.relative_to(root).as_posix(), path, suffix, 0)
        if not path.resolve().is_relative_to(inside):
            yield replace(item, problem=Drop("unreadable", "a link that leaves the folder"))
            continue
        try:
            yield replace(item, size=path.stat().st_size)
        except OSError as error:
            yield replace(item, problem=Drop("unreadable", error.strerror or type(error).__name__))


def captioned_folder(root: Path, source: str) -> Iterator[Item]:
    """Images with a text file of the same name beside them, whose first line is the English caption (further lines: `xx.utf8=` others)."""
    seen: set[str] = set()
    for item in _images(root, source):
        key = item.name.removesuffix(item.path.suffix)
        sidecar = item.path.with_suffix(".txt")
        if item.problem is None and key in seen:
            yield replace(item, problem=Drop("duplicate_key", key))
            continue
        seen.add(key)
        text = read_text(sidecar, MAX_TEXT_BYTES).split("\n", 1)[0] if sidecar.is_file() else None
        yield replace(item, text=text)


def named_folder(root: Path, source: str) -> Iterator[Item]:
    """Images whose file names are all that is said of them."""
    seen: set[str] = set()
    for item in _images(root, source):
        key = item.name.removesuffix(item.path.suffix)
        if item.problem is None and key in seen:
            yield replace(item, problem=Drop("duplicate_key", key))
            continue
        seen.add(key)
        yield item


def webdataset(root: Path, source: str) -> Iterator[Item]:
    """Tar shards as LAION's tools write them: `KEY.jpg` with `KEY.txt` or `KEY.json` (`caption` or `text`), keys unique over all shards.

    Nothing is unpacked. A broken member is one dropped sample, and a damaged shard costs the samples after the damage.
    """
    shards = sorted(root.rglob("*.tar")) if root.is_dir() else []
    if not shards:
        raise DataError(f"curate_image.sources.{source}: {root} holds no .tar shard; run ingest, or correct the asset's name")
    seen: set[str] = set()
    for shard in shards:
        images: dict[str, Item] = {}
        repeated: list[Item] = []
        texts: dict[str, str] = {}
        damage: str | None = None
        try:
            with tarfile.open(shard, "r:") as tar:
                for member in tar:
                    _take(member, tar, shard=shard, source=source, images=images, repeated=repeated, texts=texts)
        except (tarfile.TarError, EOFError, OSError) as error:
            damage = str(error)
        for key, item in sorted(images.items()):
            if item.problem is None and key in seen:
                yield replace(item, problem=Drop("duplicate_key", key))
                continue
            seen.add(key)
            yield replace(item, text=texts.get(key))
        yield from repeated
        if damage is not None:
            yield Item(source, shard.name, shard, "", 0, problem=Drop("unreadable", f"damaged shard: {damage}"))


def _take(member: tarfile.TarInfo, tar: tarfile.TarFile, *, shard: Path, source: str, images: dict[str, Item], repeated: list[Item],
          texts: dict[str, str]) -> None:
    folder, _, name = member.name.rpartition("/")
    base, _, extension = name.partition(".")
    key, suffix = f"{folder}/{base}".lstrip("/"), f".{extension.lower()}"
    if suffix in SUFFIXES:
        item = Item(source, f"{key}{suffix}", shard, suffix, member.size, member.offset_data)
        if not member.isfile():
            item = replace(item, problem=Drop("unreadable", "not a plain file"))
        elif member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
            item = replace(item, problem=Drop("unreadable", "its name leaves the archive"))
        elif member.offset_data + member.size > shard.stat().st_size:
            item = replace(item, problem=Drop("truncated_image", "the shard ends before it"))
        if key in images:
            repeated.append(replace(item, problem=Drop("duplicate_key", key)))
        else:
            images[key] = item
    elif member.isfile() and extension in ("txt", "json"):
        stream = tar.extractfile(member)
        data = stream.read(MAX_TEXT_BYTES) if stream else b""
        text = data.decode("utf-8", errors="replace")
        if extension == "json":
            try:
                record = json.loads(text)
            except ValueError:
                return
            found = record.get("caption") or record.get("text") if isinstance(record, dict) else None
            text = found if isinstance(found, str) else ""
        if text:
            texts[key] = text


READERS: dict[str, Callable[[Path, str], Iterator[Item]]] = {
    "captioned_folder": captioned_folder, "named_folder": named_folder, "webdataset": webdataset,
}
