"""Memory per GPU of a training step: the step is run on the meta device, where every tensor it makes is counted and none is filled.

Nothing is read off a formula that training could stop following: the model, the adapter, gradient checkpointing and the losses are those that
`align` and `finetune` use. Runs of two shallow LLMs give those of a deep one, for all blocks are alike.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from anymal.errors import AnymalError
from anymal.model.adapter import adapter_modules
from anymal.model.anymal import AnyMAL
from anymal.model.prompt import Exchange, Medium, Pieces
from anymal.planning.ledger import Kernels, Ledger, Peak
from anymal.planning.meta import held, held_bytes, meta_model
from anymal.planning.shapes import MediaShape

FLOAT32 = 4
DEPTHS = (4, 7)
"""Blocks of the two LLMs that stand for a deeper one: few, and enough that the first and the last do not matter for the rest."""


@dataclass(frozen=True)
class Setup:
    """A training stage as far as memory depends on it.

    Attributes:
        llm: the LLM's Hugging Face config.
        projectors: modality -> kind and arguments of the projector; all of them train.
        media: modality -> what its encoder gives.
        adapter: rank, alpha and dropout of LoRA, or None.
        processes: GPUs that work together.
        device: "cuda" or "cpu".
    """

    llm: Mapping[str, Any]
    dtype: str
    quantization: str
    attention: str
    projectors: Mapping[str, tuple[str, dict[str, Any]]]
    media: Mapping[str, MediaShape]
    adapter: Mapping[str, Any] | None
    gradient_checkpointing: bool
    batch_size: int
    parallelism: str
    processes: int
    device: str

    @property
    def depth(self) -> int:
        """Blocks of the LLM."""
        return int(self.llm["num_hidden_layers"])


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest sample of a batch: text of the prompt, of it those before the medium, and the answer."""

    prompt: int
    answer: int

    @property
    def prefix(self) -> int:
        """Text tokens before the medium; all samples of a batch share them."""
        return self.prompt // 2


@dataclass(frozen=True)
class Memory:
    """Bytes that one GPU holds at the fullest moment of a training step.

    Attributes:
        phase: when that is.
        kept: activations that wait for the backward pass when it begins, for comparison; part of them is gone at the fullest moment, or not yet made.
    """

    llm: int
    projectors: int
    adapter: int
    optimizer: int
    gradients: int
    communication: int
    logits: int
    working: int
    phase: str
    kept: int

    @property
    def total(self) -> int:
        """All of it."""
        return (self.llm + self.projectors + self.adapter + self.optimizer + self.gradients + self.communication + self.logits + self.working)


@dataclass(frozen=True)
class Static:
    """Bytes that stay: weights, and of them those that train (float32); those outside the LLM's blocks; the largest block and tensor."""

    llm: int
    projectors: int
    adapter: int
    trained: int
    root: int
    block: int
    largest: int


def memory(setup: Setup, lengths: Lengths, micro_batch: int) -> Memory:
    """Memory per GPU at a micro-batch of this many samples, all as long as the longest."""
    static, processes = static_bytes(frozen(setup)), setup.processes
    per_process = max(1, setup.batch_size // processes)
    sharded = processes > 1 and setup.parallelism == "fsdp"
    # The gradients of DDP lie in its buckets, which stay from step to step.
    accumulates = not sharded and (per_process > micro_batch or processes > 1)
    phases, kept = _phases(setup, lengths, min(micro_batch, per_process), accumulates)
    share = processes if sharded else 1
    fixed = {"llm": static.llm // share, "projectors": static.projectors // share, "adapter": static.adapter // share,
             "optimizer": 2 * static.trained // share}
    candidates = [Memory(**fixed, gradients=static.trained // share if accumulates or sharded else 0, logits=peak.logits, phase=phase, kept=kept,
                         communication=_communication(static, setup, phase), working=peak.total - peak.logits) for phase, peak in phases.items()]
    # AdamW: on GPUs all weights in one go, with one temporary as large as they are; on CPUs one weight after the other, with two.
    temporary = static.trained // share if setup.device == "cuda" else 2 * static.largest
    candidates.append(Memory(**fixed, gradients=static.trained // share, communication=_communication(static, setup, "optimizer"), logits=0,
                             working=temporary, phase="optimizer", kept=kept))
    return max(candidates, key=lambda entry: entry.total)


def largest_micro_batch(setup: Setup, lengths: Lengths, limit: int) -> int | None:
    """The largest micro-batch whose peak stays within `limit` bytes; None if not even one sample does.

    At most the share of the batch that one process has.
    """
    most = max(1, setup.batch_size // setup.processes)
    if memory(setup, lengths, 1).total > limit:
        return None
    fits, fails = 1, 2
    while fails <= most and memory(setup, lengths, fails).total <= limit:
        fits, fails = fails, 2 * fails
    fails = min(fails, most + 1)
    while fails - fits > 1:
        middle = (fits + fails) // 2
        fits, fails = (middle, fails) if memory(setup, lengths, middle).total <= limit else (fits, middle)
    return fits


def _communication(static: Static, setup: Setup, phase: str) -> int:
    """What FSDP gathers of weights and gradients for a while; DDP exchanges the gradients where they lie."""
    if setup.processes == 1 or setup.parallelism == "ddp" or phase == "optimizer":
        return 0
    # The root (all outside the blocks) and two blocks, one at work and the next one on its way; gradients are divided after the backward pass.
    return static.root + 2 * static.block


@dataclass(frozen=True)
class Frozen:
    """A setup that can be a key."""

    text: str
    setup: Setup = dataclasses.field(compare=False, hash=False)


def frozen(setup: Setup) -> Frozen:
    """The setup as a key of what is remembered of it."""
    return Frozen(repr(setup), setup)


@functools.lru_cache(maxsize=64)
def static_bytes(key: Frozen) -> Static:
    """Bytes that do not depend on the batch, of the whole depth."""
    found = []
    depths = _depths(key.setup)
    for depth in depths:
        model = _model(key.setup, depth)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        blocks = sum(held_bytes(block) for block in model.blocks())
        adapter = sum(parameter.nbytes for parameter in _adapter(model, key.setup).parameters())
        projectors = held_bytes(model.projectors)
        found.append(Static(
            llm=held_bytes(model.llm) - adapter, projectors=projectors, adapter=adapter, trained=sum(parameter.nbytes for parameter in trained),
            root=held_bytes(model) - blocks, block=blocks // depth, largest=max(parameter.nbytes for parameter in trained)))
    return Static(**{name: _at_depth(key.setup.depth, depths, [getattr(entry, name) for entry in found])
                     for name in (entry.name for entry in dataclasses.fields(Static))})


def _depths(setup: Setup) -> tuple[int, ...]:
    return DEPTHS if setup.depth > max(DEPTHS) else (setup.depth,)


def _at_depth(depth: int, depths: tuple[int, ...], values: list[int]) -> int:
    """The value at a depth on the line through those at two others."""
    if len(values) == 1:
        return values[0]
    (first, second), (low, high) = depths, values
    return low + (depth - first) * (high - low) // (second - first)


def _model(setup: Setup, depth: int) -> AnyMAL:
    """A model as it is before the first step: parts that were built before serve again, with nothing left of earlier steps."""
    built = _built(frozen(setup), depth)
    for parameter in built.parameters():
        parameter.grad = None
    model = AnyMAL(built.llm, None, dict(built.projectors.items()), templates={}, metadata={}, encoder_folders={})
    # FSDP switches it off as gradient checkpointing does (`anymal.training.parallel.Shards`).
    model.shares_prefixes = built.shares_prefixes and not (setup.processes > 1 and setup.parallelism == "fsdp")
    return model


@functools.lru_cache(maxsize=8)
def _built(key: Frozen, depth: int) -> AnyMAL:
    setup = key.setup
    return meta_model(setup.llm, depth=depth, dtype=setup.dtype, quantization=setup.quantization, attention=setup.attention,
                      projectors=setup.projectors, adapter=setup.adapter, checkpointing=setup.gradient_checkpointing, device=setup.device)


def _adapter(model: AnyMAL, setup: Setup) -> nn.Module:
    return nn.ModuleDict() if setup.adapter is None else adapter_modules(model.llm)


def _phases(setup: Setup, lengths: Lengths, micro_batch: int, accumulates: bool) -> tuple[dict[str, Peak], int]:
    """Phase -> its peak of what is made during the step, at the LLM's whole depth, and activations kept for the backward pass."""
    depths = _depths(setup)
    runs = [_run(setup, lengths, depth, micro_batch, accumulates) for depth in depths]
    peaks = {phase: Peak(total=_at_depth(setup.depth, depths, [run[phase].total for run, _ in runs]),
                         logits=_at_depth(setup.depth, depths, [run[phase].logits for run, _ in runs])) for phase in runs[0][0]}
    return peaks, _at_depth(setup.depth, depths, [kept for _, kept in runs])


def _run(setup: Setup, lengths: Lengths, depth: int, micro_batch: int, accumulates: bool) -> tuple[dict[str, Peak], int]:
    """One micro-batch through an LLM of `depth` blocks and back."""
    model = _model(setup, depth)
    trained = nn.ModuleDict({"projectors": model.projectors, "adapter": _adapter(model, setup)}).train()
    if accumulates:
        for parameter in trained.parameters():
            parameter.grad = torch.empty_like(parameter)
    modality = max(setup.projectors, key=lambda name: (setup.projectors[name][1]["tokens"], setup.media[name].tokens, name))
    shape = setup.media[modality]
    features = [torch.empty(shape.tokens, shape.dim, dtype=torch.float16, device="meta") for _ in range(micro_batch)]
    dialogues = [_dialogue(Medium(modality, tensor), lengths) for tensor in features]
    ledger = Ledger(vocabulary=int(setup.llm["vocab_size"]))
    ledger.ignore([*held(model), *features, *(p.grad for p in trained.parameters() if p.grad is not None)])
    hook = model.projectors[modality].register_forward_hook(functools.partial(_mark, ledger))
    with Kernels(setup.device), ledger:
        loss = model(dialogues).sum() * 1.0
        kept = ledger.alive
        ledger.phase = "backward through the LLM"
        # As loss.backward() does it; but that is a function that modes see, and are switched off in, and recomputing needs them.
        torch.autograd.graph._engine_run_backward((loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True)
    hook.remove()
    if not any(parameter.grad is not None for parameter in trained.parameters()):
        raise AnymalError("plan: the step trained nothing; this LLM's classes do not pass gradients on to its inputs")
    return ledger.peaks, kept


def _mark(ledger: Ledger, _: nn.Module, __: Any, out: torch.Tensor) -> None:
    def begun(gradient: torch.Tensor) -> None:
        ledger.phase = "backward through the projector"

    out.register_hook(begun)


def _dialogue(medium: Medium, lengths: Lengths) -> tuple[Exchange, ...]:
    before, after = (0,) * lengths.prefix, (0,) * (lengths.prompt - lengths.prefix)
    return (Exchange(Pieces((before, after), (medium,)), (0,) * lengths.answer),)
