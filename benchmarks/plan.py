"""What `anymal plan` predicts against what training takes: real steps of small random LLMs on a CPU.

Memory is read from PyTorch's allocator (every allocation and release of three steps of the one training loop, and the tensors that were there
before), and, coarser, from the kernel (most resident memory during three such steps in a fresh process, less that before the model was loaded;
`--resident`).

    python benchmarks/plan.py [--sizes small medium large] [--resident]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SIZES: dict[str, dict[str, int]] = {
    "small": {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4,
              "vocab_size": 2000},
    "medium": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 10, "num_attention_heads": 8, "num_key_value_heads": 2,
               "vocab_size": 8000},
    "large": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 9, "num_attention_heads": 16, "num_key_value_heads": 16,
              "vocab_size": 16000},
}
KINDS: dict[str, dict[str, Any]] = {
    "align": {"attention": "sdpa", "projector": "resampler", "adapter": None, "checkpointing": False, "batch": 8, "micro": 4},
    "align, eager": {"attention": "eager", "projector": "linear", "adapter": None, "checkpointing": False, "batch": 4, "micro": 4},
    "finetune": {"attention": "sdpa", "projector": "linear", "adapter": {"rank": 16, "alpha": 16, "dropout": 0.05}, "checkpointing": False,
                 "batch": 8, "micro": 4},
    "finetune, checkpointing": {"attention": "sdpa", "projector": "linear", "adapter": {"rank": 16, "alpha": 16, "dropout": 0.05},
                                "checkpointing": True, "batch": 8, "micro": 4},
}
QUANTIZATIONS = ("none", "nf4", "int8")
PROMPT, ANSWER, MEDIA_TOKENS, MEDIA_DIM, TOKENS = 32, 48, 49, 128, 16
STEPS = 3
MODALITY = "image"


def architecture(size: str) -> dict[str, Any]:
    """The config of an LLM of a size."""
    return {"model_type": "llama", "max_position_embeddings": 512, "tie_word_embeddings": False, **SIZES[size]}


def projector(size: str, kind: str) -> tuple[str, dict[str, Any]]:
    """Kind and arguments of a case's projector."""
    arguments: dict[str, Any] = {"media_dim": MEDIA_DIM, "media_tokens": MEDIA_TOKENS, "dim": SIZES[size]["hidden_size"], "tokens": TOKENS,
                                 "output_scale": 0.02}
    if KINDS[kind]["projector"] == "resampler":
        arguments |= {"layers": 2, "heads": 4, "pooled_latents": False, "layout_rank": 0, "media_positions": False, "media_frames": 1}
    return KINDS[kind]["projector"], arguments


def predict(size: str, kind: str, quantization: str) -> dict[str, int]:
    """What the plan says of a case: bytes at the peak, and of them those that stay."""
    from anymal.planning.memory import Lengths, Setup, memory
    from anymal.planning.shapes import MediaShape

    case = KINDS[kind]
    setup = Setup(llm=architecture(size), dtype="bfloat16", quantization=quantization, attention=case["attention"],
                  projectors={MODALITY: projector(size, kind)}, media={MODALITY: MediaShape(MEDIA_TOKENS, MEDIA_DIM, 1)}, adapter=case["adapter"],
                  gradient_checkpointing=case["checkpointing"], batch_size=case["batch"], parallelism="ddp", processes=1, device="cpu")
    found = memory(setup, Lengths(PROMPT, ANSWER), case["micro"])
    return {"total": found.total, "weights": found.llm + found.projectors + found.adapter}


def measure(size: str, kind: str, quantization: str) -> dict[str, int]:
    """What a case takes of PyTorch's allocator: bytes at the peak, and of them those that stay."""
    import torch

    with _case(size, kind, quantization) as (run, held):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            run()
        events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    assert changes
    return {"total": held + max(itertools.accumulate(changes)), "weights": held}


def resident(size: str, kind: str, quantization: str) -> int:
    """What a case takes of the machine in this process, which must be fresh: most resident bytes above those before the model was loaded."""
    import bitsandbytes
    import peft

    assert bitsandbytes
    assert peft
    before = _status("VmRSS")
    with _case(size, kind, quantization) as (run, _):
        Path("/proc/self/clear_refs").write_text("5")
        run()
        return _status("VmHWM") - before


@contextlib.contextmanager
def _case(size: str, kind: str, quantization: str) -> Iterator[tuple[Callable[[], Any], int]]:
    """Three steps of a case, to be run, and the bytes of the tensors that its model holds."""
    import torch

    from anymal.training.loop import Optimization, Work, train
    from anymal.training.parallel import Alone

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        _write_llm(Path(scratch) / "llm", size)
        others = _tensor_bytes()
        model, trained = _model(Path(scratch) / "llm", size, kind, quantization)
        held = _tensor_bytes() - others
        case = KINDS[kind]
        dialogues = [_dialogue() for _ in range(case["batch"])]
        parts = [dialogues[start : start + case["micro"]] for start in range(0, case["batch"], case["micro"])]
        parallel = Alone(model)

        def work(step: int) -> Work:
            return Work([functools.partial(lambda part: parallel.losses(part).sum() / 1000, part) for part in parts], ANSWER * case["batch"])

        yield functools.partial(
            train, trained, work, unit="tokens", prepare=lambda: None, parallel=parallel, validate=dict, validate_every=1000, checkpoint_every=1000,
            folder=Path(scratch) / "state", label="measure",
            optimization=Optimization(learning_rate=1e-4, warmup_steps=0, weight_decay=0.0, gradient_clip=1.0, steps=STEPS)), held


def _tensor_bytes() -> int:
    """Bytes of all tensors that there are."""
    import torch

    gc.collect()
    tensors = [entry for entry in gc.get_objects() if issubclass(type(entry), torch.Tensor) and entry.device.type == "cpu"]
    return sum({id(storage): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}.values())


def _status(name: str) -> int:
    """A figure of the kernel about this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _write_llm(folder: Path, size: str) -> None:
    """A random LLM as a Hugging Face folder. Its tokenizer is never asked anything."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    LlamaForCausalLM(LlamaConfig(**architecture(size))).to(torch.bfloat16).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))  # noqa: S106
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>", pad_token="</s>")  # noqa: S106
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(folder)


def _model(folder: Path, size: str, kind: str, quantization: str) -> tuple[Any, Any]:
    """The model as align or finetune assembles it, and its part that trains."""
    from torch import nn

    from anymal.model.adapter import adapter_modules, add_adapter
    from anymal.model.anymal import AnyMAL
    from anymal.model.llm import load_llm
    from anymal.model.projectors import build_projector

    case = KINDS[kind]
    llm, tokenizer = load_llm(folder, dtype="bfloat16", quantization=quantization, attention=case["attention"])
    model = AnyMAL(llm, tokenizer, {MODALITY: build_projector(*projector(size, kind))}, templates={}, metadata={}, encoder_folders={})
    parts: dict[str, nn.Module] = {"projectors": model.projectors}
    if case["adapter"] is not None:
        add_adapter(llm, **case["adapter"])
        parts["adapter"] = adapter_modules(llm)
    if case["checkpointing"]:
        model.checkpoint_gradients()
    return model, nn.ModuleDict(parts)


def _dialogue() -> Any:
    import torch

    from anymal.model.prompt import Exchange, Medium, Pieces

    medium = Medium(MODALITY, torch.randn(MEDIA_TOKENS, MEDIA_DIM).half())
    before = PROMPT // 2
    return (Exchange(Pieces(((0,) * before, (1,) * (PROMPT - before)), (medium,)), (1,) * ANSWER),)


def resident_apart(size: str, kind: str, quantization: str) -> int:
    """`resident` in a fresh process."""
    words = [sys.executable, __file__, "--measure", json.dumps([size, kind, quantization])]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return int(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--resident", action="store_true")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ["ANYMAL_TRACKING"] = "off"
    if arguments.measure:
        print(resident(*json.loads(arguments.measure)))
        return
    more = (" resident MiB | off by |", "--:|--:|") if arguments.resident else ("", "")
    print(f"| size | step | weights | predicted MiB | measured MiB | off by | above the weights, off by |{more[0]}")
    print(f"|---|---|---|--:|--:|--:|--:|{more[1]}")
    worst = 0.0
    for size, kind, quantization in itertools.product(arguments.sizes, KINDS, QUANTIZATIONS):
        said, found = predict(size, kind, quantization), measure(size, kind, quantization)
        off = said["total"] / found["total"] - 1
        above = (said["total"] - said["weights"]) / (found["total"] - found["weights"]) - 1
        line = (f"| {size} | {kind} | {quantization} | {said['total'] / 2**20:.1f} | {found['total'] / 2**20:.1f} | {off:+.1%} | {above:+.1%} |")
        if arguments.resident:
            total = resident_apart(size, kind, quantization)
            line += f" {total / 2**20:.1f} | {said['total'] / total - 1:+.1%} |"
        print(line, flush=True)
        worst = max(worst, abs(off))
    print(f"\nfarthest off: {worst:.1%}")


if __name__ == "__main__":
    main()
