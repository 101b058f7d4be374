"""What "auto" comes to on the machine at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anymal.model.precision import dtype_of, name_of


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
def test_a_named_format_is_taken_as_it_is(name):
    assert name_of(dtype_of(name)) == name


@pytest.mark.parametrize(("capabilities", "expected"), [
    ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
    ({"avx512_f": True, "avx512_bf16": True}, torch.bfloat16),
    ({"amx_bf16": True}, torch.bfloat16),
    ({}, torch.float32),
])
def test_auto_imitates_nothing(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert dtype_of("auto") is expected


def test_what_this_processor_says_is_known_to_torch():
    """A renamed key would give float32 everywhere, three times slower where bfloat16 is real."""
    flags = set(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split())
    real = bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})
    assert (dtype_of("auto") is torch.bfloat16) == real or torch.cuda.is_available()
