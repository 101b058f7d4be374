"""Weights stored by columns are the same weights."""

from __future__ import annotations

import pytest
import torch

from anymal.model.layout import lay_out_for_few_rows
from anymal.model.llm import load_llm
from tests.tiny import make_llm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_llm(tmp_path_factory.mktemp("llm") / "tiny-llm", hidden=128)


def weights(llm):
    return {name: module.weight for name, module in llm.named_modules() if isinstance(module, torch.nn.Linear)}


def test_layers_are_stored_by_columns_and_give_the_same(folder):
    llm, _ = load_llm(folder, dtype="float32", quantization="none", attention="eager")
    before = {name: weight.clone() for name, weight in weights(llm).items()}
    inputs = torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = llm(inputs_embeds=inputs).logits
        lay_out_for_few_rows(llm)
        found = llm(inputs_embeds=inputs).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert {name for name, weight in weights(llm).items() if not torch.equal(weight, before[name])} == set()
    assert {name for name, weight in weights(llm).items() if weight.is_contiguous()} == {"lm_head"}


@pytest.mark.parametrize(("dtype", "quantization"), [("bfloat16", "none"), ("float32", "nf4"), ("float32", "int8")])
def test_other_formats_are_left_alone(folder, dtype, quantization):
    llm, _ = load_llm(folder, dtype=dtype, quantization=quantization, attention="eager")
    before = {name: weight.stride() for name, weight in weights(llm).items()}
    lay_out_for_few_rows(llm)
    assert {name: weight.stride() for name, weight in weights(llm).items()} == before
