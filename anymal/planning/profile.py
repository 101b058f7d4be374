"""The plan of a profile: each training stage's memory per GPU, the largest micro-batch that fits, and what its data will cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anymal.errors import ConfigError
from anymal.planning.cost import Cost, cost
from anymal.planning.shapes import MediaShape, llm_config, media_shape

GIB = 2**30
RESERVE = 2 * GIB
"""Of each GPU, for the CUDA context, the libraries' workspaces and the allocator's gaps: an assumption of ours."""
PROMPT_TOKENS = 128
"""Text tokens of the longest prompt, where nothing else is said."""
ANSWER_TOKENS = 128
"""Tokens of the longest answer, where nothing else is said."""


@dataclass(frozen=True)
class Machine:
    """Where training will run: so many GPUs, what one of them holds, and what is held back for the context, the libraries and fragmentation."""

    gpus: int
    bytes_per_gpu: int
    reserve: int
    device: str = "cuda"

    @property
    def usable(self) -> int:
        """Bytes of a GPU that tensors may take."""
        return self.bytes_per_gpu - self.reserve


@dataclass(frozen=True)
class StagePlan:
    """The plan of one training stage.

    Attributes:
        stage: `align.image`, …, `finetune`.
        sequence: tokens that the LLM reads for the longest sample: text of the prompt, modality tokens, answer.
        memory: part -> bytes on one GPU at the fullest moment.
        phase: when that is.
        fits: whether that is within the machine's usable bytes.
        largest_micro_batch: that fits; None if not even 1 does.
        trained: weights that train.
    """

    stage: str
    llm: str
    quantization: str
    batch_size: int
    micro_batch_size: int
    parallelism: str
    sequence: tuple[int, int, int]
    memory: dict[str, int]
    phase: str
    fits: bool
    largest_micro_batch: int | None
    steps: int
    trained: int
    cost: Cost | None

    @property
    def total(self) -> int:
        """Bytes on one GPU at the fullest moment."""
        return sum(self.memory.values())

    def document(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**dataclasses.asdict(self), "sequence": list(self.sequence), "total": self.total}


def stage_names(document: Mapping[str, Any]) -> list[str]:
    """The training stages that a profile has sections of."""
    return [*(f"align.{modality}" for modality in document.get("align", {})), *(["finetune"] if "finetune" in document else [])]


def plan_stage(document: Mapping[str, Any], stage: str, *, machine: Machine, prompt_tokens: int, answer_tokens: int, assets: Path | None,
               features: Path | None, pairs: int | None = None, rate: float | None = None) -> StagePlan:
    """Plan one training stage of a profile.

    Args:
        document: the profile, its sections valid.
        stage: `align.MODALITY` or `finetune`.
        prompt_tokens: text tokens of the longest prompt.
        answer_tokens: tokens of the longest answer.
        assets: folder with a folder per asset; where the LLM is, its config is read from there.
        features: folder with a folder of features per modality; where they are, their shape is read from there.
        pairs: samples to plan the cost of; None for none.
        rate: samples per second on one GPU, measured.

    Raises:
        ConfigError: if the LLM or an encoder is unknown, a knob does not fit it, or the stage cannot run on so many processes.
    """
    from anymal.planning.memory import FLOAT32, Lengths, Setup, frozen, largest_micro_batch, memory, static_bytes

    aligned = document.get("align", {})
    modalities = [stage.partition(".")[2]] if stage != "finetune" else list(aligned)
    if stage == "finetune" and not aligned:
        raise ConfigError("finetune: needs a section align.MODALITY, which names the LLM and the projector; the profile has none")
    if modalities[0] not in aligned:
        raise ConfigError(f"{stage}: the profile has no section of it; it has {', '.join(stage_names(document)) or 'no training stage'}")
    knobs = document["finetune"] if stage == "finetune" else aligned[modalities[0]]
    llm = aligned[modalities[0]]["llm"]
    config = llm_config(llm, assets)
    media = {modality: media_shape(modality, document, features) for modality in modalities}
    _check_processes(stage, knobs, machine.gpus)
    setup = Setup(
        llm=config, dtype=_dtype(knobs["dtype"], machine.device), quantization=knobs["quantization"], attention=knobs["attention"], media=media,
        projectors={modality: _projector(aligned[modality], config, media[modality]) for modality in modalities},
        adapter=knobs.get("adapter"), gradient_checkpointing=knobs.get("gradient_checkpointing", False), batch_size=knobs["batch_size"],
        parallelism=knobs["parallelism"], processes=machine.gpus, device=machine.device)
    lengths = Lengths(prompt_tokens, answer_tokens)
    found = memory(setup, lengths, knobs["micro_batch_size"])
    parts = {entry.name: getattr(found, entry.name) for entry in dataclasses.fields(found) if entry.name not in ("phase", "kept")}
    tokens = max(aligned[modality]["tokens"] for modality in modalities)
    static = static_bytes(frozen(setup))
    planned = None
    if pairs is not None:
        planned = cost(
            pairs=pairs, batch_size=knobs["batch_size"], answer_tokens=answer_tokens, sequence_tokens=prompt_tokens + tokens + answer_tokens,
            media_values=max(shape.tokens * shape.dim for shape in media.values()), trained_bytes=static.trained, rate=rate, gpus=machine.gpus)
    return StagePlan(
        stage=stage, llm=llm, quantization=knobs["quantization"], batch_size=knobs["batch_size"], micro_batch_size=knobs["micro_batch_size"],
        parallelism=knobs["parallelism"], sequence=(prompt_tokens, tokens, answer_tokens), memory=parts, phase=found.phase,
        fits=found.total <= machine.usable, largest_micro_batch=largest_micro_batch(setup, lengths, machine.usable), steps=knobs["steps"],
        trained=static.trained // FLOAT32, cost=planned)


def _projector(knobs: Mapping[str, Any], config: Mapping[str, Any], shape: MediaShape) -> tuple[str, dict[str, Any]]:
    """Kind and arguments, as `align` makes them."""
    arguments = {"media_dim": shape.dim, "media_tokens": shape.tokens, "dim": config["hidden_size"], "tokens": knobs["tokens"], "output_scale": 1.0}
    if knobs["projector"] == "resampler":
        arguments |= {name: knobs[name] for name in ("layers", "heads", "width", "pooled_latents", "layout_rank", "media_positions")}
        arguments["media_frames"] = shape.frames
    return knobs["projector"], arguments


def _check_processes(stage: str, knobs: Mapping[str, Any], gpus: int) -> None:
    if gpus == 1:
        return
    if knobs["batch_size"] % gpus:
        raise ConfigError(f"{stage}.batch_size = {knobs['batch_size']}: does not divide among {gpus} GPUs; make it a multiple of {gpus}")
    if knobs["parallelism"] == "fsdp" and knobs["quantization"] != "none":
        raise ConfigError(f"{stage}.parallelism = fsdp: cannot shard weights of quantization = {knobs['quantization']}; set it to ddp")


def _dtype(name: str, device: str) -> str:
    """What a setting's "auto" comes to: on GPUs bfloat16, which those that a plan is made for multiply themselves."""
    from anymal.model.precision import dtype_of, name_of

    return "bfloat16" if name == "auto" and device == "cuda" else name_of(dtype_of(name))
