"""The server's LLM in the precision that its options name, whatever the bundle was measured in."""

from __future__ import annotations

import pytest
import torch

from anymal.serving.answer import Request, answer
from anymal.serving.host import load_with
from tests.model.test_bundle import make


@pytest.mark.parametrize(("dtype", "quantization", "layer", "computes"), [
    (None, None, "Linear", torch.float32), ("bfloat16", "none", "Linear", torch.bfloat16),
    ("bfloat16", "nf4", "Linear4bit", torch.bfloat16), ("bfloat16", "int8", "Linear8bitLt", torch.bfloat16),
])  # fmt: skip
def test_a_bundle_is_loaded_as_the_options_say_or_as_registered(workspace, dtype, quantization, layer, computes):
    model = load_with(dtype, quantization)(make(workspace))
    assert type(model.llm.base_model.layers[0].mlp.up_proj).__name__ == layer
    assert model.llm.dtype == computes
    assert isinstance(answer(model, [Request("what is red ?", [])], max_new_tokens=3, batch_size=1)[0], str)
