"""Which number format a model computes in."""

from __future__ import annotations

import torch

BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16")
"""What torch calls the instructions of the processors that multiply bfloat16 themselves."""


def dtype_of(name: str) -> torch.dtype:
    """The format a setting names; "auto" is bfloat16 where the machine multiplies it, and float32 where it would only be imitated.

    A CPU without such instructions takes 11.9 s for a training step of the demo's LLM in bfloat16 and 3.6 s in float32 (two cores with AVX-512).

    Args:
        name: "auto", "bfloat16", "float16" or "float32".
    """
    if name != "auto":
        found = getattr(torch, name)
        assert isinstance(found, torch.dtype), name
        return found
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    known = torch.cpu.get_capabilities()
    return torch.bfloat16 if any(known.get(instructions) for instructions in BFLOAT16_INSTRUCTIONS) else torch.float32


def name_of(dtype: torch.dtype) -> str:
    """What a setting calls a format: "bfloat16"."""
    return str(dtype).removeprefix("torch.")
