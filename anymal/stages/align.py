"""Train one modality's projector on captioned features; the encoder and the LLM stay frozen (paper section 3.1)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from anymal.errors import AnymalError
from anymal.stage import Config, In, Out, resumable


class TemplateConfig(BaseModel):
    """One prompt: an optional system message and the user's, with `<image>` and, for questions, `{question}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str | None
    user: str


class AlignConfig(Config):
    """Knobs of `align`."""

    modality: Literal["image"]
    llm: str
    """Asset name."""
    dtype: Literal["bfloat16", "float16", "float32"]
    quantization: Literal["none", "nf4", "int8"]
    attention: Literal["eager", "sdpa", "flash_attention_2"]
    projector: Literal["resampler", "linear"]
    layers: int = Field(gt=0)
    tokens: int = Field(gt=0)
    heads: int = Field(gt=0)
    pooled_latents: bool
    media_positions: bool
    caption: TemplateConfig
    question: TemplateConfig
    warm_start_steps: int = Field(ge=0)
    """Steps of the bag-of-words start before the LLM is asked (`anymal.training.warmstart`); the paper has none (0)."""
    warm_start_batch_size: int = Field(gt=0)
    warm_start_learning_rate: float = Field(gt=0)
    question_share: float = Field(ge=0, lt=1)
    """Share of batches that ask questions instead of captions; the paper's alignment uses captions only (0)."""
    batch_size: int = Field(gt=0)
    micro_batch_size: int = Field(gt=0)
    """Samples per forward pass; gradients are accumulated to `batch_size`."""
    steps: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    gradient_clip: float = Field(gt=0)
    validation_samples: int = Field(gt=1)
    validate_every: int = Field(gt=0)
    checkpoint_every: int = Field(gt=0)
    grounding_floor: float
    """Least held-out gap (nats per token) between a shuffled and the right input; below it the run has failed."""


@resumable
def align(config: AlignConfig, *, features: In, assets: In, checkpoint: Out, plots: Out, metrics: Out) -> None:
    """Train one modality's projector on captioned features; the encoder and the LLM stay frozen."""
    import torch

    from anymal.data.features import FeatureStore
    from anymal.model.anymal import AnyMAL, embedding_scale
    from anymal.model.llm import load_llm
    from anymal.model.projectors import build_projector
    from anymal.model.prompt import Template
    from anymal.training.data import CaptionData, GroundingControls
    from anymal.training.loop import Optimization, train
    from anymal.training.plots import draw_history
    from anymal.training.warmstart import warm_start

    torch.manual_seed(config.seed)
    store, held_out = FeatureStore(features, "train"), FeatureStore(features, "val")
    llm, tokenizer = load_llm(assets / config.llm, dtype=config.dtype, quantization=config.quantization, attention=config.attention)
    arguments: dict[str, Any] = {"media_dim": store.dim, "media_tokens": store.tokens, "dim": llm.config.hidden_size, "tokens": config.tokens,
                                 "output_scale": round(embedding_scale(llm), 6)}
    if config.projector == "resampler":
        arguments |= {"layers": config.layers, "heads": config.heads, "pooled_latents": config.pooled_latents,
                      "media_positions": config.media_positions}
    projector = build_projector(config.projector, arguments).to(llm.device)
    templates = {"caption": config.caption.model_dump(), "question": config.question.model_dump()}
    encoder = {**store.info["encoder"], "tokens": store.tokens, "dim": store.dim}
    described = {"modality": config.modality, "llm": config.llm, "encoder": encoder, "templates": templates,
                 "projector": {"kind": config.projector, "arguments": arguments}}
    model = AnyMAL(llm, tokenizer, {config.modality: projector}, templates={name: Template(**t) for name, t in templates.items()},
                   metadata={config.modality: described}, encoder_folders={config.modality: assets / encoder["asset"]})
    data = CaptionData(model, store, config.modality, batch_size=config.batch_size, question_share=config.question_share, seed=config.seed)
    controls = GroundingControls(model, held_out, config.modality, samples=config.validation_samples, batch_size=config.micro_batch_size,
                                 seed=config.seed)

    def prepare() -> None:
        warm_start(model, projector, store, data.rows("caption"), steps=config.warm_start_steps, batch_size=config.warm_start_batch_size,
                   learning_rate=config.warm_start_learning_rate, seed=config.seed)

    history = train(
        model, projector, data.batch, prepare=prepare, validate=controls.losses, validate_every=config.validate_every,
        checkpoint_every=config.checkpoint_every, folder=checkpoint / "state", label="align",
        optimization=Optimization(
            learning_rate=config.learning_rate, warmup_steps=config.warmup_steps, weight_decay=config.weight_decay,
            gradient_clip=config.gradient_clip, steps=config.steps, micro_batch_size=config.micro_batch_size))
    last = history[-1]["validation"]
    gap = last["shuffled"] - last["right"]
    if gap < config.grounding_floor:
        raise AnymalError(f"align: the projector is ignored: with the right input the held-out loss is {last['right']:.3f}, with a shuffled one "
                          f"{last['shuffled']:.3f}, a gap of {gap:.3f} < grounding_floor = {config.grounding_floor}; "
                          "train longer or check the captions")
    write_checkpoint(checkpoint, projector, described)
    draw_history(history, plots)
    tail = [record["loss"] for record in history[-20:]]
    figures = {"train_loss": sum(tail) / len(tail), "validation": {**last, "gap_shuffled": gap, "gap_blank": last["blank"] - last["right"]},
               "steps": config.steps, "parameters": sum(p.numel() for p in projector.parameters())}
    metrics.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")


def write_checkpoint(folder: Path, projector: Any, described: dict[str, Any]) -> None:
    """Write a finished checkpoint folder and drop the training state in it."""
    import shutil

    from anymal.data.manifest import write_manifest
    from anymal.data.tensors import save_tensors
    from anymal.model.anymal import CHECKPOINT_METADATA, CHECKPOINT_WEIGHTS

    save_tensors(folder / CHECKPOINT_WEIGHTS, projector.state_dict())
    (folder / CHECKPOINT_METADATA).write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")
    shutil.rmtree(folder / "state")
    write_manifest(folder)
