"""The knob of stages that leave harmful samples out of the training data; importing it loads no classifier."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(gt=0, lt=1)]


class SafetyLimits(BaseModel):
    """Least probability of any category from which a sample is left out, by check; null leaves the check out.

    These are not the guard's thresholds: those let through what is probably harmless, these take out what is almost surely harmful. Training data
    that look a little like something harmful teach a model what the harmless ones look like.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    text: Probability | None
    image: Probability | None
    pair: Probability | None
    """Of a picture and its text together."""
