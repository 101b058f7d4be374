"""Shards of media to shards of features: decoding in threads while the encoder computes, one shard in memory at a time."""

from __future__ import annotations

import io
import json
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anymal.data.features import BLANK, INDEX, write_feature_shard
from anymal.data.manifest import verify_manifest, write_manifest
from anymal.data.shards import Sample, read_shard, shard_paths
from anymal.data.tensors import save_tensors
from anymal.errors import DataError
from anymal.model.encoders import Encoder
from anymal.progress import track


def encode_shards(encoder: Encoder, folders: Sequence[Path], target: Path, *, batch_size: int, workers: int, description: dict[str, Any]) -> None:
    """Write `target` (see `anymal.data.features`) from all shards of curated folders; those after the first may hold none.

    Shards that `target` already holds whole are kept, so that a run that was killed goes on where it stopped.

    Raises:
        DataError: if a folder does not match its manifest, the first holds no shards, or a sample cannot be decoded.
    """
    named = _named_shards(folders)
    target.mkdir(parents=True, exist_ok=True)
    blank = torch.from_numpy(encoder.blank())[None]
    save_tensors(target / BLANK, {"features": encoder.forward(blank).half()})
    with ThreadPoolExecutor(workers) as pool, track(label="encode", unit="samples") as bar:
        for name, path in named.items():
            if not (target / f"{name}.json").is_file():
                # Passed on without a name, so that no shard's features outlive its writing.
                _write_shard(target, name, *_encode_shard(encoder, path, pool=pool, batch_size=batch_size, bar=bar))
    index = [json.loads((target / f"{name}.json").read_text()) for name in named]
    for entry in index:
        (target / f"{entry['name']}.json").unlink()
    document = {**description, "tokens": encoder.tokens, "dim": encoder.dim, "frames": getattr(encoder, "frames", 1), "shards": index}
    (target / INDEX).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
    write_manifest(target)


def _named_shards(folders: Sequence[Path]) -> dict[str, Path]:
    """Name of the features -> shard; shards of later folders, which count from zero again, have the folder's number before theirs."""
    named: dict[str, Path] = {}
    for number, folder in enumerate(folders):
        verify_manifest(folder)
        for path in shard_paths(folder) if number == 0 else sorted(folder.glob("*-[0-9]*.tar")):
            split, _, place = path.stem.rpartition("-")
            named[path.stem if number == 0 else f"{split}-{number}{place}"] = path
    return named


def _write_shard(target: Path, name: str, parts: list[torch.Tensor], metas: list[dict[str, Any]]) -> None:
    """The features, then the note that they are whole."""
    write_feature_shard(target / f"{name}.safetensors", torch.cat(parts), metas)
    done = target / f"{name}.json"
    temporary = done.with_name(f".{done.name}.partial")
    temporary.write_text(json.dumps({"name": name, "count": len(metas)}))
    temporary.replace(done)


def _encode_shard(
    encoder: Encoder, path: Path, *, pool: ThreadPoolExecutor, batch_size: int, bar: Any
) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    metas: list[dict[str, Any]] = []
    parts: list[torch.Tensor] = []
    for samples, media in _batches(encoder, path, pool, batch_size):
        metas += [{**sample.meta, "key": sample.key, "extension": sample.extension} for sample in samples]
        parts.append(encoder.forward(torch.from_numpy(np.stack(media))).half())
        bar.update(len(samples))
    return parts, metas


def _batches(encoder: Encoder, path: Path, pool: ThreadPoolExecutor, batch_size: int) -> Iterator[tuple[list[Sample], list[np.ndarray]]]:
    """Decoded batches in order; at most two batches are decoded ahead of the encoder."""

    def decode(sample: Sample) -> np.ndarray:
        return encoder.read(io.BytesIO(sample.data), f"{path}: {sample.key}.{sample.extension}")

    waiting: deque[tuple[Sample, Future[np.ndarray]]] = deque()
    samples = read_shard(path)
    empty = True
    while True:
        while len(waiting) < 3 * batch_size and (sample := next(samples, None)) is not None:
            waiting.append((sample, pool.submit(decode, sample)))
        batch = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
        if not batch:
            break
        empty = False
        yield [sample for sample, _ in batch], [future.result() for _, future in batch]
    if empty:
        raise DataError(f"{path}: holds no sample; run curate again")
