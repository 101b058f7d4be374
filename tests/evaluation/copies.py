"""Small media of all kinds, what becomes of them when they are saved again, and shards that hold them."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anymal.data.shards import Sample, ShardWriter
from anymal.media.audio import write_flac
from anymal.media.video import write_mp4

RATE = 16_000


def picture(seed: int) -> Image.Image:
    """Soft colours with a dark and a light patch."""
    generator = np.random.default_rng(seed)
    soft = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((192, 160), Image.Resampling.BICUBIC)
    for grey in (20, 235):
        x, y = generator.integers(10, 120, 2).tolist()
        soft.paste((grey, grey, grey), (x, y, x + int(generator.integers(15, 60)), y + int(generator.integers(15, 35))))
    return soft


def jpeg(image: Image.Image, quality: int = 90, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality, **options)
    return stream.getvalue()


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Without this share of each side."""
    x, y = round(image.width * share), round(image.height * share)
    return image.crop((x, y, image.width - x, image.height - y))


def clip(seed: int, size: tuple[int, int] = (128, 128), *, frames: int = 8) -> bytes:
    """A view that wanders over a picture."""
    whole = picture(seed).resize((256, 224))
    views = [whole.crop((6 * step, 3 * step, 6 * step + 200, 3 * step + 200)).resize(size) for step in range(frames)]
    return write_mp4(views, rate=8)


def wave(seed: int) -> np.ndarray:
    """A struck thing: noise through a resonance, dying away."""
    generator = np.random.default_rng(seed)
    noise = np.convolve(generator.normal(size=RATE), np.sin(np.arange(200) * generator.uniform(0.05, 0.8)) * np.exp(-np.arange(200) / 40), "same")
    sound = noise * np.exp(-np.arange(RATE) / generator.uniform(1500, 5000))
    return (0.4 * sound / np.abs(sound).max()).astype(np.float32)


def flac(samples: np.ndarray, rate: int = RATE) -> bytes:
    return write_flac(samples.astype(np.float32), rate)


def recording(seed: int, seconds: float = 10.0, rate: int = 50) -> np.ndarray:
    """(samples, 7): times, accelerometer and gyroscope of someone who moves to and fro, never twice the same way."""
    generator = np.random.default_rng(seed)
    times = np.arange(round(seconds * rate)) / rate
    smooth = np.exp(-np.linspace(-2, 2, 15) ** 2)
    axes = [np.convolve(generator.normal(size=len(times)), smooth, "same") * scale for scale in (3, 3, 3, 1, 1, 1)]
    return np.column_stack([times, *axes])


def npy(table: np.ndarray) -> bytes:
    """A window, its times from 0 on."""
    stream = io.BytesIO()
    np.save(stream, np.column_stack([table[:, 0] - table[0, 0], table[:, 1:]]).astype(np.float32), allow_pickle=False)
    return stream.getvalue()


def sample(key: str, extension: str, data: bytes, **meta: Any) -> Sample:
    return Sample(key, extension, data, {"captions": [f"This is {key}."], "questions": [], "group": f"group of {key}", **meta})


def shards(folder: Path, split: str, samples: Iterable[Sample]) -> Path:
    with ShardWriter(folder, split, 4) as writer:
        for one in samples:
            writer.write(one)
    return folder
