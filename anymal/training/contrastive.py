"""Contrastive training of an encoder against frozen text embeddings: symmetric InfoNCE, as IMU2CLIP and CLAP do it."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from anymal.data.shards import read_shard, shard_paths
from anymal.errors import DataError
from anymal.model.encoders.trained import TrainedEncoder
from anymal.progress import track
from anymal.training.loop import Work

TEMPERATURE = 0.1
"""Where the learned temperature starts (paper of IMU2CLIP)."""
RANKS = (1, 5)


class MediaSet:
    """One split's media as the encoder reads them, decoded once into a memory-mapped array, with their texts.

    Samples with the same captions mean the same: in a batch they are each other's positives.
    """

    def __init__(self, encoder: TrainedEncoder, shards: Path, split: str, folder: Path) -> None:
        """Decode the split, unless `folder` holds it from before an interruption.

        Raises:
            DataError: if the split is missing or a sample cannot be read.
        """
        self.captions: list[list[str]] = []
        keys = []
        for path in shard_paths(shards, split):
            for sample in read_shard(path):
                self.captions.append(sample.meta["captions"])
                keys.append("\n".join(sorted(sample.meta["captions"])))
        self.meanings = sorted(set(keys))
        place = {key: number for number, key in enumerate(self.meanings)}
        self.meaning = np.array([place[key] for key in keys])
        self._path = folder / f"{split}.npy"
        if not self._path.is_file():
            self._decode(encoder, shards, split)
        self._media = np.load(self._path, mmap_mode="r", allow_pickle=False)

    def _decode(self, encoder: TrainedEncoder, shards: Path, split: str) -> None:
        shape = (len(self.captions), *encoder.blank().shape)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f".{self._path.name}.partial")
        media = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        row = 0
        with track(total=len(media), label=f"decode {split}", unit="samples") as bar:
            for path in shard_paths(shards, split):
                for sample in read_shard(path):
                    media[row] = encoder.read(io.BytesIO(sample.data), f"{path}: {sample.key}.{sample.extension}")
                    row += 1
                    bar.update(1)
        media.flush()
        temporary.replace(self._path)

    def __len__(self) -> int:
        return len(self.captions)

    def media(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        """The media of some rows, (rows, *shape of the encoder's `read`)."""
        return torch.from_numpy(self._media[np.asarray(rows)])


class TextEncoder:
    """A frozen sentence encoder of transformers: the mean of its last hidden states, normalised."""

    def __init__(self, folder: Path) -> None:
        """Load it from its asset folder.

        Raises:
            DataError: if the folder is missing.
        """
        from transformers import AutoModel, AutoTokenizer

        if not folder.is_dir():
            raise DataError(f"{folder}: no such asset; name it in ingest.assets and run ingest")
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = AutoModel.from_pretrained(folder, use_safetensors=True, local_files_only=True).eval()

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Texts to (texts, dim), each of length 1."""
        parts = []
        for start in range(0, len(texts), batch_size):
            tokens = self._tokenizer(list(texts[start : start + batch_size]), return_tensors="pt", padding=True, truncation=True)
            mask = tokens["attention_mask"][..., None].float()
            states = self._model(**tokens).last_hidden_state.float()
            parts.append(functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1))
        return torch.cat(parts).clone()


class Contrast(nn.Module):
    """The encoder's network with its way into the space it shares with text: a linear map each, and the temperature."""

    def __init__(self, encoder: TrainedEncoder, text_dim: int, dim: int) -> None:
        super().__init__()
        self._encoder = [encoder]  # in a list, for it is no module: its network is
        self.network = encoder.network
        self.from_media = nn.Linear(encoder.dim, dim, bias=False)
        self.from_text = nn.Linear(text_dim, dim, bias=False)
        self.log_temperature = nn.Parameter(torch.tensor(TEMPERATURE).log())
        self.to(encoder.device)

    def media(self, media: Tensor) -> Tensor:
        """(batch, …) to (batch, dim), each of length 1: tokens averaged."""
        return functional.normalize(self.from_media(self._encoder[0].features(media).mean(dim=1)), dim=-1)

    def texts(self, embeddings: Tensor) -> Tensor:
        """(batch, text dim) to (batch, dim), each of length 1."""
        return functional.normalize(self.from_text(embeddings.to(self.log_temperature.device)), dim=-1)

    def loss(self, media: Tensor, embeddings: Tensor, meaning: Tensor) -> Tensor:
        """Symmetric InfoNCE over a batch of pairs, in nats; pairs of one `meaning` share the target."""
        scores = self.media(media) @ self.texts(embeddings).T / self.log_temperature.exp().clamp(min=0.01)
        same = (meaning[:, None] == meaning[None]).float().to(scores.device)
        targets = same / same.sum(1, keepdim=True)
        return (functional.cross_entropy(scores, targets) + functional.cross_entropy(scores.T, targets)) / 2


class ContrastiveData:
    """Batches of a media set: media, text embeddings and meanings; each a pure function of seed and step."""

    def __init__(self, data: MediaSet, encoder: TrainedEncoder, texts: TextEncoder, *, batch_size: int, balance: float, seed: int) -> None:
        """Embed all captions once.

        Args:
            balance: 0 draws samples as they are, 1 draws all meanings equally often.
        """
        self._data, self._encoder, self._batch_size, self._seed = data, encoder, batch_size, seed
        distinct = sorted({text for captions in data.captions for text in captions})
        self._place = {text: number for number, text in enumerate(distinct)}
        self.embeddings = texts.embed(distinct)
        counts = np.bincount(data.meaning)
        weights = (1.0 / counts[data.meaning]) ** balance
        self._weights = weights / weights.sum()

    def work(self, contrast: Contrast, step: int) -> Work:
        """The loss of a step."""
        rng = np.random.default_rng((self._seed, 7, step))
        rows = rng.choice(len(self._data), size=self._batch_size, p=self._weights)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        media = self._encoder.augment(self._data.media(rows), generator)
        texts = [self._place[captions[int(rng.integers(len(captions)))]] for captions in (self._data.captions[row] for row in rows)]
        torch.manual_seed(int(rng.integers(2**62)))  # for dropout
        return Work([lambda: contrast.loss(media, self.embeddings[texts], torch.from_numpy(self._data.meaning[rows]))], self._batch_size)


class Retrieval:
    """Recall@k on held-out pairs: does a medium find a text of its meaning, and a text a medium?"""

    def __init__(self, data: MediaSet, texts: TextEncoder, *, batch_size: int) -> None:
        """Embed each meaning as the mean of all its captions: meanings may share some (`The person is doing low rows.`, of either arm).

        Raises:
            DataError: if there is only one meaning to choose from.
        """
        if len(data.meanings) < 2:
            raise DataError(f"the validation split holds {len(data.meanings)} distinct label; at least 2 are needed to measure retrieval")
        captions = {int(meaning): sorted(set(found)) for meaning, found in zip(data.meaning, data.captions, strict=True)}
        distinct = sorted({text for found in captions.values() for text in found})
        place = {text: number for number, text in enumerate(distinct)}
        embedded = texts.embed(distinct)
        means = [embedded[[place[text] for text in captions[number]]].mean(0) for number in range(len(data.meanings))]
        self._data, self._batch_size = data, batch_size
        self._texts = functional.normalize(torch.stack(means), dim=-1)

    @torch.no_grad()
    def recalls(self, contrast: Contrast) -> dict[str, float]:
        """`media_to_text_recall_at_1`, …: share of queries with a right answer among the k nearest; and `chance` for one media query at k = 1."""
        rows = range(len(self._data))
        media = torch.cat([contrast.media(self._data.media(rows[i : i + self._batch_size])) for i in rows[:: self._batch_size]])
        scores = (media @ contrast.texts(self._texts).T).cpu()
        right = torch.from_numpy(self._data.meaning)[:, None] == torch.arange(len(self._texts))[None]
        figures: dict[str, Any] = {}
        for name, table, truth in (("media_to_text", scores, right), ("text_to_media", scores.T, right.T)):
            order = table.argsort(dim=1, descending=True, stable=True)
            hits = truth.gather(1, order)
            for rank in RANKS:
                figures[f"{name}_recall_at_{rank}"] = float(hits[:, :rank].any(1).double().mean())
        figures["chance"] = max(Counter(self._data.meaning.tolist()).values()) / len(self._data)
        return figures
