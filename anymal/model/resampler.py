"""Perceiver Resampler (Flamingo): any number of encoder tokens in, a fixed number of LLM tokens out (paper section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


POOLING_SPEED = 10.0
"""How much faster the weights of pooled latents move than other weights: they must grow from 1 to a few times that in a few hundred steps."""


class PerceiverAttention(nn.Module):
    """Latents attend to keys and values made of the media and the latents themselves."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_media = nn.LayerNorm(dim)
        self.norm_latents = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(dim, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, media: Tensor, latents: Tensor) -> Tensor:
        """Media (batch, tokens, dim) and latents (batch, latents, dim) to (batch, latents, dim)."""
        latents = self.norm_latents(latents)
        keys, values = self.to_kv(torch.cat([self.norm_media(media), latents], dim=1)).chunk(2, dim=-1)
        query, keys, values = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.to_q(latents), keys, values))
        attended = functional.scaled_dot_product_attention(query, keys, values)
        out: Tensor = self.to_out(attended.transpose(1, 2).flatten(2))
        return out


class PerceiverResampler(nn.Module):
    """`layers` rounds of cross-attention and a GELU feed-forward (×4), each with a residual, then a LayerNorm.

    Args:
        media_dim: width of the encoder's tokens.
        media_tokens: number of encoder tokens.
        dim: width of the LLM's embeddings; must be a multiple of `heads`.
        tokens: how many tokens come out (the paper: 64 for images).
        layers: 6 in the paper for images.
        heads: attention heads.
        pooled_latents: start each latent from its own linear map of its own weighted mean of the media, besides its learned vector (Imagen's
            resampler takes the plain mean). It carries the gist, and where and when, to the LLM from the first step, which small data
            needs; the paper's has none.
        media_positions: add a learned embedding to each encoder token of a frame. Needed by encoders whose tokens carry no position
            (a CNN's grid); without it the resampler cannot tell left from right. ViT tokens carry theirs.
        media_frames: frames that the encoder's tokens come from, in order; each frame's tokens get a learned embedding of its time.
        output_scale: initial root mean square of each output value; that of the LLM's own embeddings keeps early training stable.
    """

    def __init__(self, *, media_dim: int, media_tokens: int, dim: int, tokens: int, layers: int, heads: int,
                 pooled_latents: bool, media_positions: bool, media_frames: int, output_scale: float) -> None:
        super().__init__()
        self.to_dim = nn.Linear(media_dim, dim)
        self.norm_input = nn.LayerNorm(dim)
        self.frames = media_frames
        self.times = nn.Parameter(torch.randn(media_frames, 1, dim) * 0.02) if media_frames > 1 else None
        self.positions = nn.Parameter(torch.randn(media_tokens // media_frames, dim) * 0.02) if media_positions else None
        self.latents = nn.Parameter(torch.randn(tokens, dim) * 0.02)
        self.pooling = nn.Parameter(torch.zeros(tokens, media_tokens)) if pooled_latents else None
        self.pooled = nn.Parameter(torch.randn(tokens, dim, dim) * (1 / (3 * dim)) ** 0.5) if pooled_latents else None
        self.attention = nn.ModuleList(PerceiverAttention(dim, heads) for _ in range(layers))
        self.feed_forward = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim, bias=False), nn.GELU(), nn.Linear(4 * dim, dim, bias=False))
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)
        nn.init.constant_(self.norm.weight, output_scale)

    def forward(self, media: Tensor) -> Tensor:
        """Encoder features (batch, media_tokens, media_dim) to LLM tokens (batch, tokens, dim)."""
        media = self.norm_input(self.to_dim(media)).unflatten(1, (self.frames, -1))
        if self.positions is not None:
            media = media + self.positions
        if self.times is not None:
            media = media + self.times
        media = media.flatten(1, 2)
        latents = self.latents.expand(len(media), -1, -1)
        if self.pooling is not None and self.pooled is not None:
            weights = (1 + POOLING_SPEED * self.pooling) / media.shape[1]
            latents = latents + torch.einsum("kt,btd,kde->bke", weights, media, self.pooled)
        for attention, feed_forward in zip(self.attention, self.feed_forward, strict=True):
            latents = latents + attention(media, latents)
            latents = latents + feed_forward(latents)
        out: Tensor = self.norm(latents)
        return out
