"""Train an encoder from scratch against frozen text embeddings, for modalities without pre-trained weights (audio, IMU)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pydantic import Field, JsonValue

from anymal.errors import ConfigError, DataError
from anymal.model.modalities import EncoderKind, ModalityName, encoder_factory, modality_of
from anymal.stage import Config, In, Out, per_modality, resumable


class PretrainEncoderConfig(Config):
    """Knobs of `pretrain_encoder`."""

    modality: ModalityName
    pretrained: str | None
    """Asset name of an encoder that has weights: it is passed on and nothing is trained. Null trains one."""
    encoder: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """What the encoder is called: its folder below the output."""
    kind: EncoderKind
    architecture: dict[str, JsonValue]
    """Of that kind of encoder (see its class)."""
    text_encoder: str
    """Asset name of a frozen sentence encoder."""
    dim: int = Field(gt=0)
    """Of the space that media and texts share."""
    balance: float = Field(ge=0, le=1)
    """0: samples as they are; 1: all labels equally often."""
    batch_size: int = Field(gt=1)
    steps: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    gradient_clip: float = Field(gt=0)
    validate_every: int = Field(gt=0)
    checkpoint_every: int = Field(gt=0)


@resumable
@per_modality
def pretrain_encoder(config: PretrainEncoderConfig, *, shards: In, assets: In, encoders: Out, plots: Out, metrics: Out) -> None:
    """Train an encoder from scratch against frozen text embeddings, for modalities without pre-trained weights (audio, IMU).

    Symmetric InfoNCE with a learned temperature, as IMU2CLIP and CLAP are trained; recall@k is measured on held-out data. Where weights can
    be had (`pretrained`), they take the trained encoder's place in the graph.
    """
    if config.pretrained is not None:
        pass_on(config.pretrained, assets, encoders=encoders, plots=plots, metrics=metrics)
        return
    import torch

    from anymal.model.encoders.trained import TrainedEncoder
    from anymal.training.contrastive import Contrast, ContrastiveData, MediaSet, Retrieval, TextEncoder
    from anymal.training.loop import Optimization, train
    from anymal.training.parallel import Alone
    from anymal.training.plots import draw_loss, draw_validation

    if modality_of(config.kind) != config.modality:
        raise ConfigError(f"pretrain_encoder.kind = {config.kind}: reads {modality_of(config.kind)}, not {config.modality}")
    factory = encoder_factory(config.kind)
    if not (isinstance(factory, type) and issubclass(factory, TrainedEncoder)):
        raise ConfigError(f"pretrain_encoder.kind = {config.kind}: comes with weights of its own and cannot be trained here")
    torch.manual_seed(config.seed)
    try:
        encoder = factory.create(config.architecture)
    except TypeError as error:
        raise ConfigError(f"pretrain_encoder.architecture of {config.kind}: {str(error).split('() ')[-1]}; see its class") from error
    state = encoders / "state"
    data, held_out = (MediaSet(encoder, shards, split, state / "media") for split in ("train", "val"))
    texts = TextEncoder(assets / config.text_encoder)
    pairs = ContrastiveData(data, encoder, texts, batch_size=config.batch_size, balance=config.balance, seed=config.seed)
    contrast = Contrast(encoder, pairs.embeddings.shape[1], config.dim)
    retrieval = Retrieval(held_out, texts, batch_size=config.batch_size)
    history = train(
        contrast, lambda step: pairs.work(contrast, step), unit="samples", prepare=lambda: None, parallel=Alone(contrast),
        validate=lambda: retrieval.recalls(contrast), validate_every=config.validate_every, checkpoint_every=config.checkpoint_every,
        folder=state, label=f"pretrain {config.modality}",
        optimization=Optimization(learning_rate=config.learning_rate, warmup_steps=config.warmup_steps, weight_decay=config.weight_decay,
                                  gradient_clip=config.gradient_clip, steps=config.steps))
    shutil.rmtree(state)
    encoder.save(encoders / config.encoder)
    draw_loss(history, plots / "loss.png", title=f"Encoder of {config.modality}: training loss", unit="nats per pair")
    lines = {"media_to_text_recall_at_1": (f"{config.modality} to text", "tab:blue"), "chance": ("most frequent label", "tab:gray"),
             "text_to_media_recall_at_1": (f"text to {config.modality}", "tab:orange")}
    draw_validation(history, plots / "recall.png", lines, title=f"Encoder of {config.modality}: held-out retrieval", label="recall at 1")
    figures = {"train_loss": history[-1]["loss"], "steps": config.steps, "validation": {**history[-1]["validation"], "samples": len(held_out)},
               "temperature": contrast.log_temperature.exp().item(), "parameters": sum(p.numel() for p in encoder.network.parameters())}
    metrics.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")


def pass_on(name: str, assets: Path, *, encoders: Path, plots: Path, metrics: Path) -> None:
    """Let an asset be the encoder; there is nothing to draw."""
    from anymal.data.asset_folders import install, read_asset

    if read_asset(assets / name) is None:
        raise DataError(f"pretrain_encoder.pretrained = {name}: {assets} has no such asset; name it in ingest.assets and run ingest")
    encoders.mkdir(parents=True, exist_ok=True)
    install(assets / name, encoders / name)
    plots.mkdir(parents=True, exist_ok=True)
    metrics.write_text(json.dumps({"steps": 0}) + "\n")
