"""Small setups that several tests plan for."""

from __future__ import annotations

import dataclasses
from typing import Any

from anymal.planning.memory import Lengths, Setup
from anymal.planning.shapes import MediaShape

LLM = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4,
       "num_key_value_heads": 2, "vocab_size": 500, "max_position_embeddings": 256, "tie_word_embeddings": False}
LENGTHS = Lengths(prompt=16, answer=12)
ADAPTER = {"rank": 4, "alpha": 8, "dropout": 0.1}


def setup(**changes: Any) -> Setup:
    """Alignment of images by a resampler, on one GPU."""
    arguments = {"media_dim": 24, "media_tokens": 9, "dim": 64, "tokens": 4, "output_scale": 1.0, "layers": 1, "heads": 2, "pooled_latents": False,
                 "layout_rank": 0, "media_positions": False, "media_frames": 1}
    base = Setup(llm=LLM, dtype="bfloat16", quantization="none", attention="sdpa", projectors={"image": ("resampler", arguments)},
                 media={"image": MediaShape(9, 24, 1)}, adapter=None, gradient_checkpointing=False, batch_size=64, parallelism="ddp", processes=1,
                 device="cuda")
    return dataclasses.replace(base, **changes)
