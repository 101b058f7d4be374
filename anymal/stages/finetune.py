"""Tune the projectors of all modalities together on instructions, with or without LoRA on the frozen LLM (paper section 2)."""

from __future__ import annotations

import json
import shutil
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from anymal import processes
from anymal.data.instructions import Origin
from anymal.errors import AnymalError, ConfigError
from anymal.stage import Config, DType, In, Ins, Out, distributed, resumable


class AdapterConfig(BaseModel):
    """LoRA on all linear layers of the LLM's blocks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: PositiveInt
    alpha: PositiveInt
    dropout: float = Field(ge=0, lt=1)


class FinetuneConfig(Config):
    """Knobs of `finetune`."""

    dtype: DType
    quantization: Literal["none", "nf4", "int8"]
    """Of the frozen LLM; the adapter and the projectors are float32."""
    attention: Literal["eager", "sdpa", "flash_attention_2"]
    adapter: AdapterConfig | None
    """null tunes the projectors only."""
    mixing: dict[Origin, float]
    """Origin -> its share of the training samples, relative to the others'; 0 leaves it out."""
    gradient_checkpointing: bool
    """Recompute activations in the backward pass: less memory, more time."""
    batch_size: PositiveInt
    micro_batch_size: PositiveInt
    """Samples per forward pass; gradients are accumulated to `batch_size`."""
    parallelism: Literal["ddp", "fsdp"]
    """With several processes (torchrun): each holds the whole LLM (ddp), or a part of each weight (fsdp, for an LLM in full precision)."""
    steps: PositiveInt
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    gradient_clip: float = Field(gt=0)
    validation_samples: int = Field(gt=1)
    validate_every: PositiveInt
    checkpoint_every: PositiveInt
    grounding_floor: float
    """Least held-out gap (nats per token) between shuffled and right inputs; below it the run has failed."""


@resumable
@distributed
def finetune(config: FinetuneConfig, *, checkpoints: Ins, features: Ins, instructions: Ins, assets: In, model: Out, plots: Out, metrics: Out) -> None:
    """Tune the projectors of all modalities on instructions, with or without LoRA; write one tuned model."""
    import torch
    from torch import nn

    from anymal.data.features import FeatureStore
    from anymal.data.instructions import read_instructions
    from anymal.model.adapter import adapter_modules, add_adapter
    from anymal.model.anymal import load_anymal
    from anymal.model.checkpoint import read_checkpoints
    from anymal.training.data import GroundingControls, work_of
    from anymal.training.instructions import InstructionControls, InstructionData, MediaFeatures
    from anymal.training.loop import Optimization, train
    from anymal.training.parallel import spread
    from anymal.training.plots import draw_history
    from anymal.training.tuned import write_tuned

    torch.manual_seed(config.seed)
    aligned = read_checkpoints(checkpoints)
    if aligned.adapter is not None:
        raise ConfigError(f"finetune: {', '.join(map(str, checkpoints))} was tuned already; give the checkpoints that align wrote")
    anymal = load_anymal(assets, checkpoints, dtype=config.dtype, quantization=config.quantization, attention=config.attention)
    anymal.projectors.requires_grad_(True)
    parts = {"projectors": anymal.projectors}
    if config.adapter is not None:
        add_adapter(anymal.llm, rank=config.adapter.rank, alpha=config.adapter.alpha, dropout=config.adapter.dropout)
        parts["adapter"] = adapter_modules(anymal.llm)
    if config.gradient_checkpointing:
        anymal.checkpoint_gradients()
    trained = nn.ModuleDict(parts)
    parallel = spread(anymal, config.parallelism, batch_size=config.batch_size, quantization=config.quantization)
    folders = {FeatureStore(folder).info["modality"]: folder for folder in features}
    if lacking := sorted(aligned.folders.keys() - folders.keys()):
        raise ConfigError(f"finetune: --features has nothing of {lacking[0]}, which {aligned.folders[lacking[0]]} reads; add its features")
    splits = {split: MediaFeatures({modality: FeatureStore(folders[modality], split) for modality in aligned.folders}) for split in ("train", "val")}
    read = {split: [entry for folder in instructions for entry in read_instructions(folder, split)] for split in splits}
    weights = {str(origin): share for origin, share in config.mixing.items()}
    data = InstructionData(anymal, splits["train"], read["train"], weights=weights, batch_size=config.batch_size, seed=config.seed)
    controls = InstructionControls(anymal, splits["val"], read["val"], samples=config.validation_samples, batch_size=config.micro_batch_size,
                                   seed=config.seed)
    captions = {modality: GroundingControls(anymal, FeatureStore(folders[modality], "val"), modality, samples=config.validation_samples,
                                            batch_size=config.micro_batch_size, seed=config.seed) for modality in aligned.folders}

    def validate() -> dict[str, float]:
        return controls.losses() | {f"caption_{modality}": entry.losses(["right"])["right"] for modality, entry in captions.items()}

    before = validate()
    history = train(
        trained, lambda step: work_of(anymal, parallel, data.batch(step), config.micro_batch_size, seed=(config.seed, step)),
        unit="target tokens", prepare=lambda: None, parallel=parallel,
        validate=validate, validate_every=config.validate_every, checkpoint_every=config.checkpoint_every, folder=model / "state", label="finetune",
        optimization=Optimization(
            learning_rate=config.learning_rate, warmup_steps=config.warmup_steps, weight_decay=config.weight_decay,
            gradient_clip=config.gradient_clip, steps=config.steps))
    if not processes.is_main():
        return
    last = history[-1]["validation"]
    gap = last["shuffled"] - last["right"]
    if gap < config.grounding_floor:
        raise AnymalError(f"finetune: the media are ignored: with the right ones the held-out loss is {last['right']:.3f}, with shuffled ones "
                          f"{last['shuffled']:.3f}, a gap of {gap:.3f} < grounding_floor = {config.grounding_floor}; "
                          "train longer or check the instructions")
    shutil.rmtree(model / "state")
    write_tuned(model, anymal, aligned, adapter=config.adapter is not None)
    draw_history(history, plots, title="Fine-tuning")
    figures = {"before": before, "validation": {**last, "gap_shuffled": gap, "gap_blank": last["blank"] - last["right"]}, "steps": config.steps,
               "train_loss": sum(record["loss"] for record in history[-20:]) / len(history[-20:]),
               "parameters": {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}}
    metrics.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
