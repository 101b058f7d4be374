"""Frozen encoders: files in, tokens out. A new one is a class with this protocol, and its registration in `anymal.model.modalities`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Protocol

from anymal.errors import ConfigError, DataError
from anymal.model.modalities import encoder_factory

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class Encoder(Protocol):
    """What all stages need of an encoder. It is made as `Class(folder, **settings)`: its asset (or trained) folder and knobs of its own."""

    modality: ClassVar[str]
    tokens: int
    """Tokens that come out of one medium."""
    dim: int
    """Width of a token."""

    def read(self, source: Path | BinaryIO, name: str) -> np.ndarray:
        """Decode one file within limits and bring it into the form that `forward` takes, without the batch dimension, float32.

        Raises:
            DataError: one sentence that begins with `name`, if the file cannot be used.
        """
        ...

    def blank(self) -> np.ndarray:
        """What `read` would give for an empty medium (a grey picture, silence, rest): the blank control."""
        ...

    def picture(self, medium: np.ndarray) -> bytes:
        """What `read` gave, as a PNG for people: the picture, the spectrogram, the frames, the traces."""
        ...

    def forward(self, batch: Tensor) -> Tensor:
        """(batch, *shape of `read`) to (batch, tokens, dim), float32 on the CPU, without gradients."""
        ...


def load_encoder(kind: str, folder: Path, settings: Mapping[str, Any]) -> Encoder:
    """Load a frozen encoder of a registered kind from its folder.

    Args:
        settings: the keyword arguments of its class.

    Raises:
        ConfigError: if the kind or a setting is unknown.
        DataError: if the folder is missing.
    """
    factory = encoder_factory(kind)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such encoder; name it in ingest.assets and run ingest, or run pretrain-encoder for one that is trained here")
    known = list(inspect.signature(factory).parameters)[1:]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ConfigError(f"encoder settings.{unknown[0]} = {settings[unknown[0]]}: {kind} has no such setting; it has {', '.join(known) or 'none'}")
    try:
        encoder: Encoder = factory(folder, **settings)
    except TypeError as error:
        if "required" not in str(error):
            raise
        raise ConfigError(f"encoder settings of {kind}: {str(error).split('() ')[-1]}; it has {', '.join(known)}") from error
    return encoder
