"""The IMU2CLIP encoder (Moon et al. 2022; paper, section 3.1): dilated convolutions over motion, then a GRU over time."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from anymal.media.motion import open_motion, traces
from anymal.model.encoders.trained import TrainedEncoder, uniform

CHANNELS = 6
KERNELS, DILATION, POOL = (10, 5, 5), 2, 3
TURN = 0.5
"""Standard deviation (radians) of the random rotation of a training window: nobody wears a sensor twice at the same angle."""
SPEED = 0.2
"""Largest relative change of tempo of a training window."""
GAIN = 0.15
"""Standard deviation of the relative change of the gyroscope's scale."""
NOISE = 0.02


class MotionNetwork(nn.Module):
    """GroupNorm over accelerometer and gyroscope, three blocks of dilated convolution, ReLU and max pooling, GroupNorm, one GRU.

    Time is time: the GRU runs over it (the published code runs it over channels, by a missing transpose). All its states are
    returned, averaged to `tokens` of them.
    """

    def __init__(self, *, width: int, dim: int, tokens: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for index, kernel in enumerate(KERNELS):
            blocks += [nn.Conv1d(width if index else CHANNELS, width, kernel, dilation=DILATION), nn.ReLU(), nn.MaxPool1d(POOL)]
        self.norm_input = nn.GroupNorm(2, CHANNELS)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.GroupNorm(4, width)
        self.gru = nn.GRU(width, dim, batch_first=True)
        self.tokens = tokens

    def forward(self, motion: Tensor) -> Tensor:
        """(batch, 6, samples) to (batch, tokens, dim)."""
        states, _ = self.gru(self.norm(self.blocks(self.norm_input(motion))).transpose(1, 2))
        pooled: Tensor = functional.adaptive_avg_pool1d(states.transpose(1, 2), self.tokens).transpose(1, 2)
        return pooled


class Imu2Clip(TrainedEncoder):
    """Windows of `seconds` at `rate` (the paper: 5 s at 200 Hz), from recordings of any rate.

    Architecture: `seconds`, `rate`, `width` of the convolutions, `dim` of the GRU (the paper: 512), `tokens`.
    """

    kind, modality = "imu2clip", "imu"

    def _build(self, *, seconds: float, rate: int, width: int, dim: int, tokens: int) -> None:
        self.seconds, self.rate, self.tokens, self.dim = seconds, rate, tokens, dim
        self.network = MotionNetwork(width=width, dim=dim, tokens=tokens)

    def read(self, source: Path | BinaryIO, name: str) -> np.ndarray:
        """One recording's first window, (6, seconds * rate): accelerometer xyz, gyroscope xyz."""
        return open_motion(source, name, seconds=self.seconds, rate=self.rate)

    def blank(self) -> np.ndarray:
        """A sensor at rest: gravity along z, no rotation."""
        motion = np.zeros((CHANNELS, round(self.seconds * self.rate)), dtype=np.float32)
        motion[2] = 1.0
        return motion

    def picture(self, medium: np.ndarray) -> bytes:
        """The motion traces."""
        return traces(medium, self.rate)

    def augment(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """Turned sensors, another tempo, another scale of rotation, noise."""
        turn = _rotations(len(batch), generator)
        turned = torch.cat([turn @ batch[:, :3], turn @ batch[:, 3:] * (1 + GAIN * torch.randn(len(batch), 1, 1, generator=generator))], dim=1)
        length = batch.shape[2]
        stretched = functional.interpolate(turned, size=int(length * float(uniform((), 1 - SPEED, 1 + SPEED, generator))), mode="linear")
        if stretched.shape[2] >= length:
            start = int(torch.randint(0, stretched.shape[2] - length + 1, (), generator=generator))
            window = stretched[:, :, start : start + length]
        else:
            window = functional.pad(stretched, (0, length - stretched.shape[2]), mode="replicate")
        return window + NOISE * torch.randn(window.shape, generator=generator)


def _rotations(count: int, generator: torch.Generator) -> Tensor:
    """Random rotations about random axes (Rodrigues' formula), shape (count, 3, 3)."""
    axis = functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    angle = (TURN * torch.randn(count, generator=generator))[:, None, None]
    cross = torch.zeros(count, 3, 3)
    cross[:, 0, 1], cross[:, 0, 2], cross[:, 1, 2] = -axis[:, 2], axis[:, 1], -axis[:, 0]
    cross = cross - cross.transpose(1, 2)
    return torch.eye(3) + angle.sin() * cross + (1 - angle.cos()) * cross @ cross
