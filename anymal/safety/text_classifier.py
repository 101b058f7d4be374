"""The text classifier: any encoder of transformers, the mean of its last hidden states, and a logit per category, calibrated on validation data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from anymal.data.tensors import save_tensors
from anymal.errors import DataError
from anymal.safety.thresholds import Calibration

SETTINGS, HEAD = "classifier.json", "head.safetensors"
AT_ONCE = 32
"""Windows that go through the encoder together."""


class TextNetwork(nn.Module):
    """Encoder, mean over tokens, dropout, and a linear head."""

    def __init__(self, encoder: nn.Module, categories: int, *, dropout: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(int(encoder.config.hidden_size), categories)  # type: ignore[union-attr, arg-type]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Tokens and mask, (batch, tokens), to logits (batch, categories)."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state.float()
        mask = attention_mask[..., None].to(states.dtype)
        logits: Tensor = self.head(self.dropout((states * mask).sum(1) / mask.sum(1).clamp(min=1)))
        return logits


def load_encoder(folder: Path) -> tuple[Any, Any]:
    """Tokenizer and encoder (float32) of a folder in transformers' layout.

    Raises:
        DataError: if it is missing or cannot be read.
    """
    from transformers import AutoModel, AutoTokenizer

    if not folder.is_dir():
        raise DataError(f"{folder}: no such encoder; name its asset in ingest.assets and run ingest")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, use_safetensors=True, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: cannot be read as an encoder of transformers ({error}); give config, tokenizer and safetensors") from error
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(f"{folder}: its tokenizer cannot cut windows; give an encoder with a tokenizer.json")
    return tokenizer, model


class TextClassifier:
    """Probabilities of the categories for texts of any length."""

    def __init__(
        self, network: TextNetwork, tokenizer: Any, *, categories: Sequence[str], max_tokens: int, calibration: Calibration | None,
    ) -> None:
        """Put it to use on the GPU, if there is one.

        Args:
            max_tokens: tokens of a window, special ones included; neighbouring windows share a quarter.
            calibration: None gives the plain sigmoid of the logits.
        """
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.network, self.tokenizer = network.to(self.device).eval(), tokenizer
        self.categories, self.max_tokens, self.calibration = tuple(categories), max_tokens, calibration

    @classmethod
    def load(cls, folder: Path) -> TextClassifier:
        """Read what `save` wrote.

        Raises:
            DataError: if something is missing or does not fit.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = folder / SETTINGS
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            categories, max_tokens = [str(code) for code in settings["categories"]], int(settings["max_tokens"])
            calibration = Calibration.read(settings["calibration"], str(path))
            head = load_file(folder / HEAD)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise DataError(f"{folder}: is no text classifier ({error}); train the classifiers again") from error
        tokenizer, encoder = load_encoder(folder)
        network = TextNetwork(encoder, len(categories), dropout=0.0)
        if {name: value.shape for name, value in head.items()} != {name: value.shape for name, value in network.head.state_dict().items()}:
            raise DataError(f"{folder / HEAD}: does not fit the encoder and the {len(categories)} categories; train the classifiers again")
        network.head.load_state_dict(head)
        return cls(network, tokenizer, categories=categories, max_tokens=max_tokens, calibration=calibration)

    def save(self, folder: Path) -> None:
        """Write encoder, tokenizer, head and settings, no pickles."""
        assert self.calibration is not None
        folder.mkdir(parents=True, exist_ok=True)
        self.network.encoder.save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]
        self.tokenizer.save_pretrained(folder)
        save_tensors(folder / HEAD, self.network.head.state_dict())
        document = {"categories": list(self.categories), "max_tokens": self.max_tokens, "calibration": self.calibration.document()}
        (folder / SETTINGS).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    @torch.inference_mode()
    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Logits, (texts, categories) in float64; a long text has the greatest of its windows in each category."""
        found = np.full((len(texts), len(self.categories)), -np.inf)
        for owners, tokens, mask in self._windows(texts):
            logits = self.network(tokens.to(self.device), mask.to(self.device)).double().cpu().numpy()
            np.maximum.at(found, owners, logits)
        return found

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Calibrated probabilities, (texts, categories)."""
        logits = self.logits(texts)
        return self.calibration.probabilities(logits) if self.calibration is not None else Calibration(
            (1.0,) * logits.shape[1], (0.0,) * logits.shape[1]).probabilities(logits)

    def _windows(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """Batches of windows of like length: whose text each is, tokens and mask. Texts are cut a few at a time, so that memory stays bounded."""
        for start in range(0, len(texts), 8 * AT_ONCE):
            cut = self.tokenizer(list(texts[start : start + 8 * AT_ONCE]), truncation=True, max_length=self.max_tokens,
                                 stride=(self.max_tokens - self.tokenizer.num_special_tokens_to_add()) // 4, return_overflowing_tokens=True)
            owners = np.asarray(cut["overflow_to_sample_mapping"]) + start
            rows = cut["input_ids"]
            order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
            for first in range(0, len(order), AT_ONCE):
                batch = order[first : first + AT_ONCE]
                tokens, mask = padded([rows[row] for row in batch], self.tokenizer.pad_token_id)
                yield owners[batch], tokens, mask


def padded(rows: Sequence[Sequence[int]], fill: int) -> tuple[Tensor, Tensor]:
    """Token lists to (rows, tokens) and their mask, padded on the right."""
    longest = max(len(row) for row in rows)
    tokens = torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return tokens, mask
