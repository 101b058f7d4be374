"""Perceiver Resampler (Flamingo): any number of encoder tokens in, a fixed number of LLM tokens out (paper section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


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
        dim: width of the LLM's embeddings.
        tokens: how many tokens come out (the paper: 64 for images).
        layers: 6 in the paper for images.
        heads: attention heads; must divide the layers' width.
        pooled_latents: start each latent from its own linear map of the media's mean, besides its learned vector (as Imagen's resampler
            does). It carries the picture's gist to the LLM from the first step, which small data needs; the paper's has none.
        layout_rank: also start the latents from a linear map of all media tokens side by side, each reduced to this many channels: what is
            where, and when. Attention learns places and order from far more data than a linear map; 0, the paper's way, leaves it out.
        media_positions: add a learned embedding to each encoder token of a frame. Needed by encoders whose tokens carry no position
            (a CNN's grid); without it the resampler cannot tell left from right. ViT tokens carry theirs.
        media_frames: frames that the encoder's tokens come from, in order; each frame's tokens get a learned embedding of its time.
        output_scale: initial root mean square of each output value; that of the LLM's own embeddings keeps early training stable.
        width: of the layers, with a linear map to `dim` after them; None for `dim`. As wide as a 70B LLM, six layers are 4.8G weights.
    """

    def __init__(self, *, media_dim: int, media_tokens: int, dim: int, tokens: int, layers: int, heads: int,
                 pooled_latents: bool, layout_rank: int, media_positions: bool, media_frames: int, output_scale: float,
                 width: int | None = None) -> None:
        super().__init__()
        out_dim, dim = dim, width or dim
        self.to_dim = nn.Linear(media_dim, dim)
        self.norm_input = nn.LayerNorm(dim)
        self.frames = media_frames
        self.times = nn.Parameter(torch.randn(media_frames, 1, dim) * 0.02) if media_frames > 1 else None
        self.positions = nn.Parameter(torch.randn(media_tokens // media_frames, dim) * 0.02) if media_positions else None
        self.latents = nn.Parameter(torch.randn(tokens, dim) * 0.02)
        self.pooled = nn.Linear(dim, tokens * dim, bias=False) if pooled_latents else None
        self.layout = nn.Sequential(
            nn.Linear(dim, layout_rank, bias=False), nn.Flatten(), nn.LayerNorm(layout_rank * media_tokens),
            nn.Linear(layout_rank * media_tokens, tokens * dim, bias=False)) if layout_rank else None
        self.attention = nn.ModuleList(PerceiverAttention(dim, heads) for _ in range(layers))
        self.feed_forward = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim, bias=False), nn.GELU(), nn.Linear(4 * dim, dim, bias=False))
            for _ in range(layers)
        )
        self.to_llm = nn.Linear(dim, out_dim, bias=False) if width is not None else nn.Identity()
        self.norm = nn.LayerNorm(out_dim)
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
        if self.pooled is not None:
            latents = latents + self.pooled(media.mean(dim=1)).unflatten(1, self.latents.shape)
        if self.layout is not None:
            latents = latents + self.layout(media).unflatten(1, self.latents.shape)
        for attention, feed_forward in zip(self.attention, self.feed_forward, strict=True):
            latents = latents + attention(media, latents)
            latents = latents + feed_forward(latents)
        out: Tensor = self.norm(self.to_llm(latents))
        return out
