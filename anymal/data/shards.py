"""Samples as WebDataset tar shards: `{key}.{extension}` (the medium) followed by `{key}.json` (what is known of it).

Written by the standard library so that the same samples give the same bytes; `webdataset` itself reads them (tested).
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anymal.errors import DataError

KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]*")
MAX_MEMBER_BYTES = 256 * 2**20
MAX_META_BYTES = 2**20


@dataclass(frozen=True)
class Sample:
    """One medium and its metadata.

    `meta` holds for every modality `kind`, `split`, `source`, `license`, `captions` (list of str), `questions` (list of `{question, answer, kind}`),
    `objects`, `sha256` and `group` (what splits keep together: a kit, a subject, a video); and `label` where the sample is of one class.

    - image: kind "photo" or "scene"; `objects` are `{name, box}`, box = COCO `[x, y, width, height]` in pixels; `width`, `height`.
    - audio (FLAC, mono): kind "labelled" or "captioned"; `duration` (seconds), `rate` (Hz).
    - video (MP4): kind "clip" (composed) or "video"; `duration`, `frames`, `rate` (frames a second), `width`, `height`.
    - imu (.npy, float32 (n, 7): seconds, accelerometer xyz, gyroscope xyz): kind "motion"; `duration`, `rate`.
    """

    key: str
    extension: str
    data: bytes
    meta: dict[str, Any]


class ShardWriter:
    """Writes `{split}-00000.tar`, `{split}-00001.tar`, … of at most `samples_per_shard` samples each."""

    def __init__(self, folder: Path, split: str, samples_per_shard: int) -> None:
        self._folder, self._split, self._limit = folder, split, samples_per_shard
        self._count = 0
        self._tar: tarfile.TarFile | None = None
        self._keys: set[str] = set()

    def __enter__(self) -> ShardWriter:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._tar is not None:
            self._tar.close()

    @property
    def count(self) -> int:
        """Samples written so far."""
        return self._count

    def write(self, sample: Sample) -> None:
        """Append one sample.

        Raises:
            DataError: if the key was written before or cannot be a member name.
        """
        if not KEY.fullmatch(sample.key):
            raise DataError(f"sample key {sample.key!r}: only letters, digits, '_' and '-' can name a shard member")
        if sample.key in self._keys:
            raise DataError(f"sample key {sample.key!r}: written twice to split {self._split}")
        self._keys.add(sample.key)
        if self._count % self._limit == 0:
            if self._tar is not None:
                self._tar.close()
            path = self._folder / f"{self._split}-{self._count // self._limit:05d}.tar"
            self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 -- closed at the next shard or by __exit__
        self._count += 1
        self._add(f"{sample.key}.{sample.extension}", sample.data)
        self._add(f"{sample.key}.json", json.dumps(sample.meta, sort_keys=True, ensure_ascii=False).encode())

    def _add(self, name: str, data: bytes) -> None:
        assert self._tar is not None
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.mode = len(data), 0, 0o644
        self._tar.addfile(info, io.BytesIO(data))


def shard_paths(folder: Path, split: str | None = None) -> list[Path]:
    """The shards of a folder (of one split, if named), in order.

    Raises:
        DataError: if there is none.
    """
    paths = sorted(folder.glob(f"{split or '*'}-[0-9]*.tar"))
    if not paths:
        raise DataError(f"{folder}: holds no shard named {split or '*'}-NNNNN.tar; run curate, or correct the path")
    return paths


def read_shard(path: Path) -> Iterator[Sample]:
    """Yield the samples of one shard in order, one in memory at a time.

    Raises:
        DataError: naming the shard and the member, for members that leave the archive, are no plain files, are too large, come
            twice, come without their other half, or hold no valid JSON; and for archives that are cut short.
    """
    seen: set[str] = set()
    waiting: tuple[str, str, bytes] | None = None
    try:
        with tarfile.open(path, "r|") as tar:
            for member in tar:
                key, extension, data = _member(path, tar, member)
                if extension != "json":
                    if waiting is not None:
                        raise DataError(f"{path}: member {waiting[0]}.{waiting[1]} has no {waiting[0]}.json after it")
                    if key in seen:
                        raise DataError(f"{path}: key {key!r} comes twice; keys must be unique within a shard")
                    seen.add(key)
                    waiting = (key, extension, data)
                    continue
                if waiting is None or waiting[0] != key:
                    raise DataError(f"{path}: member {member.name} has no medium before it")
                yield Sample(key, waiting[1], waiting[2], _meta(path, member.name, data))
                waiting = None
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{path}: is damaged or not a tar archive ({error}); make the shard again") from error
    if waiting is not None:
        raise DataError(f"{path}: ends after {waiting[0]}.{waiting[1]}, without its .json; make the shard again")


def _member(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[str, str, bytes]:
    key, dot, extension = member.name.partition(".")
    if not member.isfile() or not dot or not KEY.fullmatch(key):
        raise DataError(f"{path}: member {member.name!r} is not a plain file named KEY.EXTENSION at the top level; the shard is refused")
    limit = MAX_META_BYTES if extension == "json" else MAX_MEMBER_BYTES
    if member.size > limit:
        raise DataError(f"{path}: member {member.name} holds {member.size} bytes, more than the {limit} allowed")
    stream = tar.extractfile(member)
    assert stream is not None
    return key, extension, stream.read()


def _meta(path: Path, name: str, data: bytes) -> dict[str, Any]:
    try:
        meta = json.loads(data)
    except ValueError as error:
        raise DataError(f"{path}: member {name} is not valid JSON: {error}") from error
    if not isinstance(meta, dict):
        raise DataError(f"{path}: member {name} must hold a JSON object, found {type(meta).__name__}")
    return meta
