"""How weights lie in memory, which changes no value and a great deal of time."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def lay_out_for_few_rows(llm: Any) -> None:
    """Store the weights of an LLM's linear layers by columns, where it computes in float32 on a CPU; for inference only.

    Decoding multiplies few rows: one for each answer under way, or the tokens of a short prompt. With weights stored by rows, as torch has them,
    MKL takes 56 ms for four rows of all layers of the demo's LLM, 114 for 16 and 138 for 36; stored by columns 35, 45 and 74, and for a single row
    24 either way (two cores with AVX-512, `benchmarks/layout.py`). The output layer stays as it is: it may share its weights with the embeddings,
    which are looked up by rows.
    """
    output = llm.get_output_embeddings()
    for module in llm.modules():
        if isinstance(module, nn.Linear) and module is not output and module.weight.dtype == torch.float32 and module.weight.device.type == "cpu":
            module.weight.data = module.weight.data.t().contiguous().t()
