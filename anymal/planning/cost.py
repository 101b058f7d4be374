"""Steps, tokens, storage and GPU-hours of a data size: arithmetic, with nothing measured but the rate that is given."""

from __future__ import annotations

import math
from dataclasses import dataclass

FEATURE_BYTES = 2
"""Features are float16."""
STATE_COPIES = 2
"""A training state is written beside the one before it, which is then removed."""
STATE_VALUES = 3
"""A training state holds each weight that trains and AdamW's two moments of it."""


@dataclass(frozen=True)
class Cost:
    """What one pass over `pairs` samples takes.

    Attributes:
        steps: optimiser steps.
        answer_tokens: tokens that carry loss, if all answers are as long as planned for.
        llm_tokens: tokens that the LLM reads.
        feature_bytes: of the encoder's features, metadata left out.
        state_bytes: most that the training state takes on disk.
        gpu_hours: at the rate given; None without a rate.
        hours: the same on all GPUs together.
    """

    pairs: int
    steps: int
    answer_tokens: int
    llm_tokens: int
    feature_bytes: int
    state_bytes: int
    gpu_hours: float | None
    hours: float | None


def cost(*, pairs: int, batch_size: int, answer_tokens: int, sequence_tokens: int, media_values: int, trained_bytes: int, rate: float | None,
         gpus: int) -> Cost:
    """Cost of one pass over the data.

    Args:
        sequence_tokens: that the LLM reads for a sample, modality tokens included.
        media_values: values that the encoder gives for a sample.
        trained_bytes: of the weights that train.
        rate: samples per second on one GPU, measured; None leaves out the hours.
        gpus: that work together, each at that rate.
    """
    gpu_hours = None if rate is None else pairs / rate / 3600
    return Cost(pairs=pairs, steps=math.ceil(pairs / batch_size), answer_tokens=pairs * answer_tokens, llm_tokens=pairs * sequence_tokens,
                feature_bytes=pairs * media_values * FEATURE_BYTES, state_bytes=STATE_COPIES * STATE_VALUES * trained_bytes, gpu_hours=gpu_hours,
                hours=None if gpu_hours is None else gpu_hours / gpus)
