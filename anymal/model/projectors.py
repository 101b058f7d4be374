"""Projectors by name: what turns an encoder's tokens into the LLM's (paper section 3.1)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from anymal.errors import ConfigError
from anymal.model.resampler import PerceiverResampler


class LinearProjector(nn.Module):
    """One linear layer on each encoder token (the paper's choice for audio and IMU), tokens averaged over time to as many as asked for."""

    def __init__(self, *, media_dim: int, media_tokens: int, dim: int, tokens: int, output_scale: float) -> None:
        super().__init__()
        if tokens > media_tokens:
            raise ConfigError(f"projector tokens = {tokens}: a linear projector can give at most the encoder's {media_tokens} tokens; "
                              "lower it or use 'resampler'")
        self.tokens = tokens
        self.linear = nn.Linear(media_dim, dim)
        nn.init.normal_(self.linear.weight, std=output_scale / media_dim**0.5)
        nn.init.zeros_(self.linear.bias)

    def forward(self, media: Tensor) -> Tensor:
        """(batch, media_tokens, media_dim) to (batch, tokens, dim)."""
        if media.shape[1] != self.tokens:
            media = functional.adaptive_avg_pool1d(media.transpose(1, 2), self.tokens).transpose(1, 2)
        out: Tensor = self.linear(media)
        return out


KINDS: dict[str, type[nn.Module]] = {"resampler": PerceiverResampler, "linear": LinearProjector}


def build_projector(kind: str, arguments: dict[str, Any]) -> nn.Module:
    """Make a projector of a registered kind.

    Raises:
        ConfigError: if the kind is unknown or the layers' width is no multiple of `heads`.
    """
    if kind not in KINDS:
        raise ConfigError(f"projector kind = {kind}: unknown; known kinds: {', '.join(KINDS)}")
    width = arguments.get("width") or arguments["dim"]
    if "heads" in arguments and width % arguments["heads"]:
        whose = "the LLM's width" if width == arguments["dim"] else "projector width ="
        raise ConfigError(f"projector heads = {arguments['heads']}: {whose} {width} is no multiple of it; choose a divisor")
    return KINDS[kind](**arguments)
