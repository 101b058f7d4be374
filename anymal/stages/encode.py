"""Run the frozen encoder over the shards once: feature shards that training reads memory-mapped."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from anymal.stage import Config, In, Out, resumable


class EncodeConfig(Config):
    """Knobs of `encode`."""

    modality: Literal["image"]
    encoder: str
    """Asset name."""
    kind: Literal["efficientnet_lite", "hf_vision"]
    layer: int | None
    """Hidden state to keep: None for the last, -2 for the one before it."""
    batch_size: int = Field(gt=0)
    workers: int = Field(gt=0)
    """Threads that decode and scale pictures while the encoder computes."""


@resumable
def encode(config: EncodeConfig, *, shards: In, assets: In, features: Out) -> None:
    """Encode every sample of every shard, one feature shard each; goes on after the last whole shard when run again."""
    from anymal.data.encoding import encode_shards
    from anymal.model.encoders import load_encoder

    encoder = load_encoder(config.kind, Path(assets) / config.encoder, config.layer)
    encode_shards(
        encoder, shards, features, batch_size=config.batch_size, workers=config.workers,
        description={"modality": config.modality, "encoder": {"asset": config.encoder, "kind": config.kind, "layer": config.layer}},
    )
