"""Turn curated media into encoder features, resumable and in bounded memory."""

from __future__ import annotations

import shutil
from typing import Any

from pydantic import Field, JsonValue

from anymal.data.manifest import fingerprint
from anymal.errors import ConfigError
from anymal.model.modalities import EncoderKind, ModalityName, modality_of
from anymal.stage import Config, In, Ins, Out, per_modality, resumable


class EncodeConfig(Config):
    """Knobs of `encode`."""

    modality: ModalityName
    encoder: str
    """Folder of the encoder below the port `encoders`: an asset's name, or that of an encoder trained here."""
    kind: EncoderKind
    settings: dict[str, JsonValue]
    """Of that kind of encoder (see its class), such as `layer` or `frames`."""
    batch_size: int = Field(gt=0)
    workers: int = Field(gt=0)
    """Threads that decode while the encoder computes."""


@resumable
@per_modality
def encode(config: EncodeConfig, *, shards: Ins, encoders: In, features: Out) -> None:
    """Turn curated media into encoder features, resumable and in bounded memory.

    `shards` are curation's, and any others whose samples go along; a folder of folders by modality stands for the one of this modality.
    `encoders` is the assets folder, or what pretrain_encoder wrote; an encoder that is no asset is copied beside its features.
    """
    from anymal.data.asset_folders import read_asset
    from anymal.data.encoding import encode_shards
    from anymal.data.features import TRAINED_ENCODER
    from anymal.model.encoders import load_encoder

    if modality_of(config.kind) != config.modality:
        raise ConfigError(f"encode.kind = {config.kind}: reads {modality_of(config.kind)}, but encode.modality = {config.modality}")
    folders = [path / config.modality if (path / config.modality).is_dir() else path for path in shards]
    folder = encoders / config.encoder
    encoder = load_encoder(config.kind, folder, config.settings)
    described: dict[str, Any] = {"asset": config.encoder, "kind": config.kind, "settings": config.settings}
    if read_asset(folder) is None:
        described |= {"asset": None, "sha256": fingerprint(folder)}
        shutil.copytree(folder, features / TRAINED_ENCODER, dirs_exist_ok=True, copy_function=shutil.copyfile)
    encode_shards(encoder, folders, features, batch_size=config.batch_size, workers=config.workers,
                  description={"modality": config.modality, "encoder": described})
