"""Train one modality's projector on captioned features; the encoder and the LLM stay frozen (paper section 3.1)."""

from __future__ import annotations

import json
import shutil
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from anymal import processes
from anymal.errors import AnymalError, ConfigError
from anymal.model.modalities import ModalityName
from anymal.stage import Config, DType, In, Out, distributed, per_modality, resumable


class TemplateConfig(BaseModel):
    """One prompt: an optional system message and the user's, with `{media}` and, for questions, `{question}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    system: str | None
    user: str


class AlignConfig(Config):
    """Knobs of `align`."""

    modality: ModalityName
    llm: str
    """Asset name."""
    dtype: DType
    quantization: Literal["none", "nf4", "int8"]
    attention: Literal["eager", "sdpa", "flash_attention_2"]
    projector: Literal["resampler", "linear"]
    layers: int = Field(gt=0)
    tokens: int = Field(gt=0)
    heads: int = Field(gt=0)
    width: int | None = Field(gt=0)
    """Of the resampler's layers; null for the LLM's."""
    pooled_latents: bool
    layout_rank: int = Field(ge=0)
    media_positions: bool
    introduction: str = Field(pattern=r"\{medium\}")
    """The words around a medium wherever a prompt has `{media}`: `{medium}` alone, or a sentence such as `The sound is {medium}.`"""
    caption: TemplateConfig
    question: TemplateConfig
    warm_start_steps: int = Field(ge=0)
    """Steps of the bag-of-words start before the LLM is asked (`anymal.training.warmstart`); the paper has none (0)."""
    warm_start_batch_size: int = Field(gt=0)
    warm_start_learning_rate: float = Field(gt=0)
    target_captions: int | None = Field(gt=0)
    """How many of a sample's captions, from the first, are learned; null for all."""
    question_kinds: list[str] | None
    """Kinds of questions to train on; null for all."""
    answer_forms: dict[str, str]
    """Kind of question -> the sentence that training answers it with, such as `It moves to the {answer}.`; a bare answer if there is none."""
    question_share: float = Field(ge=0, lt=1)
    """Share of batches that ask questions instead of captions; the paper's alignment uses captions only (0)."""
    batch_size: int = Field(gt=0)
    micro_batch_size: int = Field(gt=0)
    """Samples per forward pass; gradients are accumulated to `batch_size`."""
    parallelism: Literal["ddp", "fsdp"]
    """With several processes (torchrun): each holds the whole LLM (ddp), or a part of each weight (fsdp, for an LLM in full precision)."""
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
@distributed
@per_modality
def align(config: AlignConfig, *, features: In, assets: In, checkpoint: Out, plots: Out, metrics: Out) -> None:
    """Train one modality's projector on captioned features; the encoder and the LLM stay frozen."""
    import torch

    from anymal.data.features import TRAINED_ENCODER, FeatureStore
    from anymal.model.anymal import AnyMAL, embedding_scale, read_templates, write_checkpoint
    from anymal.model.llm import load_llm
    from anymal.model.projectors import build_projector
    from anymal.training.data import CaptionData, GroundingControls, work_of
    from anymal.training.loop import Optimization, train
    from anymal.training.parallel import spread
    from anymal.training.plots import draw_history
    from anymal.training.warmstart import warm_start

    torch.manual_seed(config.seed)
    store, held_out = FeatureStore(features, "train"), FeatureStore(features, "val")
    if store.info["modality"] != config.modality:
        raise ConfigError(f"align.modality = {config.modality}: {features} holds features of {store.info['modality']}; give the right ones")
    llm, tokenizer = load_llm(assets / config.llm, dtype=config.dtype, quantization=config.quantization, attention=config.attention)
    arguments: dict[str, Any] = {"media_dim": store.dim, "media_tokens": store.tokens, "dim": llm.config.hidden_size, "tokens": config.tokens,
                                 "output_scale": round(embedding_scale(llm), 6)}
    if config.projector == "resampler":
        arguments |= {"layers": config.layers, "heads": config.heads, "pooled_latents": config.pooled_latents, "layout_rank": config.layout_rank,
                      "media_positions": config.media_positions, "media_frames": store.info["frames"]}
        if config.width is not None:
            arguments["width"] = config.width
    projector = build_projector(config.projector, arguments).to(llm.device)
    templates = {"caption": config.caption.model_dump(), "question": config.question.model_dump()}
    encoder = {**store.info["encoder"], "tokens": store.tokens, "dim": store.dim}
    described = {"modality": config.modality, "llm": config.llm, "encoder": encoder, "introduction": config.introduction, "templates": templates,
                 "projector": {"kind": config.projector, "arguments": arguments}}
    model = AnyMAL(llm, tokenizer, {config.modality: projector}, metadata={config.modality: described}, encoder_folders={},
                   templates=read_templates([described]))
    parallel = spread(model, config.parallelism, batch_size=config.batch_size, quantization=config.quantization)
    data = CaptionData(model, store, config.modality, batch_size=config.batch_size, question_share=config.question_share,
                       target_captions=config.target_captions, answer_forms=config.answer_forms, question_kinds=config.question_kinds,
                       seed=config.seed)
    controls = GroundingControls(model, held_out, config.modality, samples=config.validation_samples, batch_size=config.micro_batch_size,
                                 seed=config.seed)

    def prepare() -> None:
        warm_start(model, projector, store, data.rows("caption"), steps=config.warm_start_steps, batch_size=config.warm_start_batch_size,
                   learning_rate=config.warm_start_learning_rate, seed=config.seed)

    history = train(
        projector, lambda step: work_of(model, parallel, data.batch(step), config.micro_batch_size, seed=(config.seed, step)),
        unit="target tokens", prepare=prepare, parallel=parallel,
        validate=controls.losses, validate_every=config.validate_every, checkpoint_every=config.checkpoint_every, folder=checkpoint / "state",
        label=f"align {config.modality}",
        optimization=Optimization(
            learning_rate=config.learning_rate, warmup_steps=config.warmup_steps, weight_decay=config.weight_decay,
            gradient_clip=config.gradient_clip, steps=config.steps))
    if not processes.is_main():
        return
    last = history[-1]["validation"]
    gap = last["shuffled"] - last["right"]
    if gap < config.grounding_floor:
        raise AnymalError(f"align: the projector is ignored: with the right input the held-out loss is {last['right']:.3f}, with a shuffled one "
                          f"{last['shuffled']:.3f}, a gap of {gap:.3f} < grounding_floor = {config.grounding_floor}; "
                          "train longer or check the captions")
    shutil.rmtree(checkpoint / "state")
    trained_encoder = features / TRAINED_ENCODER
    write_checkpoint(checkpoint, projector, described, trained_encoder if trained_encoder.is_dir() else None)
    draw_history(history, plots, title=f"Alignment of {config.modality}")
    tail = [record["loss"] for record in history[-20:]]
    figures = {"train_loss": sum(tail) / len(tail), "validation": {**last, "gap_shuffled": gap, "gap_blank": last["blank"] - last["right"]},
               "steps": config.steps, "parameters": sum(p.numel() for p in projector.parameters())}
    metrics.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
