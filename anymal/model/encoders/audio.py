"""A small audio encoder for where no pre-trained one can be had: log-mel spectrogram, convolutions, tokens in time."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from anymal.media.audio import open_audio
from anymal.model.encoders.trained import TrainedEncoder, uniform

FLOOR = 1e-5
"""Added to the power of each mel band before the logarithm."""
MIN_HZ = 30.0
CENTRE, SCALE = -6.0, 4.0
"""Bring log-mel values to about zero mean and unit variance."""
PITCH = 4
"""Largest shift of a training sound, in mel bands."""
LEVEL, TILT, CURVE = 1.0, 1.0, 0.7
"""Standard deviations (nats) of random gain, spectral tilt and curvature: other microphones and rooms."""
DECAY = 3.0
"""Largest extra damping (nats) over the window: other rooms, other skins."""
HISS = 3.0
"""Largest level of added noise above the floor (nats)."""
MASK = 8
"""Mel bands that may be blotted out."""


class SoundNetwork(nn.Module):
    """Four 3 x 3 convolutions with GroupNorm and GELU that halve frequency each time and time three times; averaged over frequency."""

    def __init__(self, *, width: int, dim: int, tokens: int, dropout: float) -> None:
        super().__init__()
        plan = ((1, width, (2, 2)), (width, 2 * width, (2, 2)), (2 * width, 4 * width, (2, 1)), (4 * width, dim, (2, 2)))
        self.blocks = nn.Sequential(*(
            nn.Sequential(nn.Conv2d(given, made, 3, padding=1, stride=stride, bias=False), nn.GroupNorm(8, made), nn.GELU())
            for given, made, stride in plan
        ), nn.Dropout(dropout))
        self.tokens = tokens

    def forward(self, mel: Tensor) -> Tensor:
        """(batch, bands, frames) to (batch, tokens, dim)."""
        maps = self.blocks((mel - CENTRE)[:, None] / SCALE)
        pooled: Tensor = functional.adaptive_avg_pool1d(maps.mean(2), self.tokens).transpose(1, 2)
        return pooled


class LogMel(TrainedEncoder):
    """The first `seconds` of a sound at `rate` as a log-mel spectrogram of `bands`, one frame per `hop` samples, and a network on it.

    Architecture: `rate`, `seconds`, `bands`, `window` and `hop` (samples), `width`, `dim`, `tokens`, `dropout`.
    """

    kind, modality = "log_mel", "audio"

    def _build(self, *, rate: int, seconds: float, bands: int, window: int, hop: int, width: int, dim: int, tokens: int, dropout: float) -> None:
        self.rate, self.seconds, self.tokens, self.dim = rate, seconds, tokens, dim
        self._window, self._hop = window, hop
        self._filters = mel_filters(bands, window, rate)
        self.network = SoundNetwork(width=width, dim=dim, tokens=tokens, dropout=dropout)

    def read(self, source: Path | BinaryIO, name: str) -> np.ndarray:
        """One sound file's log-mel spectrogram, (bands, frames)."""
        return self.log_mel(open_audio(source, name, rate=self.rate, seconds=self.seconds))

    def log_mel(self, samples: np.ndarray) -> np.ndarray:
        """(samples,) to (bands, frames); shorter sounds are followed by silence."""
        length = round(self.seconds * self.rate)
        signal = torch.from_numpy(np.pad(samples[:length], (0, max(0, length - len(samples)))))
        power = torch.stft(signal, self._window, self._hop, window=torch.hann_window(self._window), return_complex=True).abs().square()
        mel: np.ndarray = torch.log(self._filters @ power + FLOOR).numpy()
        return mel

    def blank(self) -> np.ndarray:
        """Silence."""
        return self.log_mel(np.zeros(1, dtype=np.float32))

    def picture(self, medium: np.ndarray) -> bytes:
        """The spectrogram, as the network sees it."""
        return mel_picture(medium, self._hop / self.rate)

    def augment(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """Another pitch, onset, loudness, colour and decay, some noise, and a band blotted out."""
        count, bands, frames = batch.shape
        out = torch.full_like(batch, math.log(FLOOR))
        shifts = torch.randint(-PITCH, PITCH + 1, (count,), generator=generator).tolist()
        onsets = torch.randint(0, max(1, frames // 10), (count,), generator=generator).tolist()
        for index, (shift, onset) in enumerate(zip(shifts, onsets, strict=True)):
            source = torch.arange(bands).sub(shift).clamp(0, bands - 1)
            out[index, :, onset:] = batch[index, source, : frames - onset]
        slope = torch.linspace(-1, 1, bands)[None, :, None]
        colour = LEVEL * torch.randn(count, 1, 1, generator=generator) + TILT * torch.randn(count, 1, 1, generator=generator) * slope
        colour = colour + CURVE * torch.randn(count, 1, 1, generator=generator) * slope.square()
        out = out + colour - uniform((count, 1, 1), 0, DECAY, generator) * torch.linspace(0, 1, frames)
        hiss = math.log(FLOOR) + uniform((count, 1, 1), 0, HISS, generator) + 0.3 * torch.randn(out.shape, generator=generator)
        out = torch.logaddexp(out, hiss)
        first = int(torch.randint(0, bands - MASK, (), generator=generator))
        out[:, first : first + int(torch.randint(1, MASK, (), generator=generator))] = out.mean()
        return out


def mel_picture(mel: np.ndarray, seconds: float) -> bytes:
    """A log-mel spectrogram (bands, frames) as a PNG; a frame every `seconds`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 2.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(mel, origin="lower", aspect="auto", cmap="magma", extent=(0, mel.shape[1] * seconds, 0, mel.shape[0]))
    axes.set(xlabel="seconds", ylabel="mel band")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100, metadata={"Software": None})
    return stream.getvalue()


def mel_filters(bands: int, window: int, rate: int) -> Tensor:
    """Triangular filters evenly spaced on the mel scale (O'Shaughnessy's formula), shape (bands, window // 2 + 1)."""
    top = 2595 * math.log10(1 + rate / 2 / 700)
    points = 700 * (10 ** (torch.linspace(2595 * math.log10(1 + MIN_HZ / 700), top, bands + 2) / 2595) - 1)
    frequencies = torch.linspace(0, rate / 2, window // 2 + 1)
    rise = (frequencies - points[:-2, None]) / (points[1:-1] - points[:-2])[:, None]
    fall = (points[2:, None] - frequencies) / (points[2:] - points[1:-1])[:, None]
    return torch.minimum(rise, fall).clamp(min=0)
