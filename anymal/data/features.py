"""Encoder features on disk: one safetensors file a shard, memory-mapped on reading, with each sample's metadata in it.

Layout of a feature folder: `features.json` (modality, encoder, tokens, dim, frames, shards with their counts), `blank.safetensors`, `encoder/` if the
encoder was trained here, and per shard `NAME.safetensors`: `features` (samples, tokens, dim) float16, `meta` (bytes,) uint8 of concatenated JSON,
`offsets` (samples + 1,) int64 into it.
Reading touches only the rows asked for, so ten times the data takes no more memory.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anymal.data.tensors import save_tensors
from anymal.errors import DataError

if TYPE_CHECKING:
    import torch

INDEX = "features.json"
BLANK = "blank.safetensors"
"""Features of an empty medium (a plain grey picture, silence), shape (1, tokens, dim): the blank control."""
TRAINED_ENCODER = "encoder"
"""The encoder's own files, where no asset holds them: they go with the features into the checkpoint and the bundle."""


def write_feature_shard(path: Path, features: torch.Tensor | np.ndarray, metas: Sequence[dict[str, Any]]) -> None:
    """Write one shard's features, shape (samples, tokens, dim), under a temporary name and rename it.

    Raises:
        DataError: if there are not as many metadata records as samples, or a value is not finite in float16.
    """
    import torch

    if len(features) != len(metas):
        raise DataError(f"{path}: {len(features)} feature rows for {len(metas)} samples")
    half = torch.as_tensor(features).half()
    if not half.isfinite().all():
        raise DataError(f"{path}: the encoder gave values that float16 cannot hold; scale its output or store another layer")
    texts = [json.dumps(meta, sort_keys=True, ensure_ascii=False).encode() for meta in metas]
    offsets = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    blob = np.frombuffer(bytearray(b"".join(texts)), dtype=np.uint8)
    save_tensors(path, {"features": half, "meta": torch.from_numpy(blob), "offsets": torch.from_numpy(offsets)})


class FeatureStore:
    """Random access to the features of one split (or all) of a feature folder.

    Raises:
        DataError: if the folder has no index, or a shard is missing or shaped otherwise than the index says.
    """

    def __init__(self, folder: Path, split: str | None = None) -> None:
        from safetensors import safe_open

        index = folder / INDEX
        if not index.is_file():
            raise DataError(f"{folder}: has no {INDEX}; it is not a finished feature folder, run encode")
        self._folder = folder
        self.info: dict[str, Any] = json.loads(index.read_text())
        self.tokens: int = self.info["tokens"]
        self.dim: int = self.info["dim"]
        self._files = []
        self._starts = [0]
        for shard in self.info["shards"]:
            if split is not None and not shard["name"].startswith(f"{split}-"):
                continue
            path = folder / f"{shard['name']}.safetensors"
            if not path.is_file():
                raise DataError(f"{path}: missing, though {INDEX} names it; run encode again")
            file = safe_open(path, framework="pt")
            shape = file.get_slice("features").get_shape()
            if shape != [shard["count"], self.tokens, self.dim]:
                raise DataError(f"{path}: features of shape {shape}, {INDEX} says {[shard['count'], self.tokens, self.dim]}; run encode again")
            self._files.append(file)
            self._starts.append(self._starts[-1] + shard["count"])
        if not self._files:
            splits = sorted({shard["name"].rsplit("-", 1)[0] for shard in self.info["shards"]})
            raise DataError(f"{folder}: holds no features of split {split!r}; it has {', '.join(splits)}")

    def __len__(self) -> int:
        return self._starts[-1]

    def _locate(self, row: int) -> tuple[Any, int]:
        shard = bisect.bisect_right(self._starts, row) - 1
        return self._files[shard], row - self._starts[shard]

    def features(self, rows: Sequence[int]) -> torch.Tensor:
        """Features of the given rows, shape (len(rows), tokens, dim), float16."""
        import torch

        parts = []
        for row in rows:
            file, local = self._locate(row)
            parts.append(file.get_slice("features")[local : local + 1])
        return torch.cat(parts)

    def blank(self) -> torch.Tensor:
        """Features of an empty medium, shape (tokens, dim), float16: what the blank control feeds the model."""
        from safetensors.torch import load_file

        features: torch.Tensor = load_file(self._folder / BLANK)["features"][0]
        return features

    def meta(self, row: int) -> dict[str, Any]:
        """Metadata of one row, as curate wrote it."""
        file, local = self._locate(row)
        start, end = (int(v) for v in file.get_slice("offsets")[local : local + 2])
        meta: dict[str, Any] = json.loads(file.get_slice("meta")[start:end].numpy().tobytes())
        return meta
