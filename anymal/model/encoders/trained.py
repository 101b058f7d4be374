"""Encoders that are trained here, contrastively against text (stage pretrain_encoder): what audio and IMU encoders share.

Their folder holds `encoder.json` (kind and architecture) and `encoder.safetensors`. They are small; where no pre-trained weights can be had
(IMU2CLIP's were never released) they are what makes a modality possible.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from anymal.data.tensors import save_tensors
from anymal.errors import DataError

DESCRIPTION = "encoder.json"
WEIGHTS = "encoder.safetensors"


class TrainedEncoder(ABC):
    """Loading, saving and running of an encoder with a network of its own.

    A subclass names its `kind`, takes its architecture as keyword arguments in `_build` (which sets `tokens` and `dim`), and says how its
    files are read; it is otherwise an `Encoder` like any other.
    """

    kind: ClassVar[str]
    modality: ClassVar[str]
    tokens: int
    dim: int
    network: nn.Module

    def __init__(self, folder: Path) -> None:
        """Load a trained encoder.

        Raises:
            DataError: if the folder holds no encoder of this kind.
        """
        from safetensors.torch import load_file

        try:
            description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            if description["kind"] != self.kind:
                raise DataError(f"{folder}: holds an encoder of kind {description['kind']}, not {self.kind}; correct encode.kind")
            self._prepare(description["architecture"])
            self.network.load_state_dict(load_file(folder / WEIGHTS), strict=True)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise DataError(f"{folder}: holds no whole {self.kind} encoder ({' '.join(str(error).split())[:200]}); run pretrain-encoder") from error
        self.network.eval().requires_grad_(False)

    def _prepare(self, architecture: dict[str, Any]) -> None:
        self.architecture = dict(architecture)
        self._build(**architecture)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.network.to(self.device)

    @abstractmethod
    def _build(self, *args: Any, **architecture: Any) -> None:
        """Set `network` (media to tokens), `tokens` and `dim`."""

    @abstractmethod
    def read(self, source: Path | BinaryIO, name: str) -> np.ndarray:
        """See `anymal.model.encoders.Encoder`."""

    @abstractmethod
    def blank(self) -> np.ndarray:
        """See `anymal.model.encoders.Encoder`."""

    @abstractmethod
    def picture(self, medium: np.ndarray) -> bytes:
        """See `anymal.model.encoders.Encoder`."""

    @classmethod
    def create(cls, architecture: dict[str, Any]) -> Self:
        """An untrained encoder, its random weights drawn from torch's generator.

        Raises:
            TypeError: if the architecture has a wrong or a missing argument.
        """
        encoder = cls.__new__(cls)
        encoder._prepare(architecture)
        return encoder

    def save(self, folder: Path) -> None:
        """Write the folder that `__init__` loads."""
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(folder / WEIGHTS, {name: value.cpu() for name, value in self.network.state_dict().items()})
        text = json.dumps({"kind": self.kind, "architecture": self.architecture}, indent=1, sort_keys=True)
        (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")

    def features(self, batch: Tensor) -> Tensor:
        """(batch, *shape of `read`) to (batch, tokens, dim), with gradients."""
        out: Tensor = self.network(batch.to(self.device))
        return out

    @torch.inference_mode()
    def forward(self, batch: Tensor) -> Tensor:
        """(batch, *shape of `read`) to (batch, tokens, dim), on the CPU, without gradients."""
        return self.features(batch).float().cpu()

    @abstractmethod
    def augment(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """A random variation of the media that leaves their meaning as it is."""


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Random numbers between two bounds."""
    return low + (high - low) * torch.rand(shape, generator=generator)
