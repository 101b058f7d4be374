"""Which of two sets of media are near-duplicates: pictures and the frames of clips, sounds, and motions, each compared in its own way."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from anymal.media import likeness
from anymal.media.audio import open_audio
from anymal.media.image import open_image
from anymal.media.motion import read_motion
from anymal.media.video import open_video

FRAMES = 4
"""Of a clip, spread evenly over it; all of them must look alike."""
REACH = 2
"""Pictures whose hashes differ by this many times the bits allowed are looked at for the nearest pair."""
RATE = 16_000
"""Hz at which sounds are compared."""
STEPS = 64
"""Steps into which a motion is parted."""
SMOOTHING = {-1: 1 / 4, 0: 1 / 2, 1: 1 / 4}
"""Weights of the steps around a step: a shift by a part of a step then changes little."""
OVERLAP = STEPS // 2
"""Steps of two motions that must lie upon each other: windows cut from one recording may be shifted by half their length."""

Print = tuple[np.ndarray, ...]
"""What a medium is compared by."""


@dataclass(frozen=True)
class Pair:
    """A held-out medium and another one that are as alike as the thresholds say (`hit`), or the most alike of all that are not."""

    held: int
    other: int
    measures: dict[str, float]
    rank: float
    """Smaller is more alike; for pairs of one kind."""
    hit: bool


class Comparison(Protocol):
    """How media of one kind are compared."""

    name: str
    """Media that are compared by one name can be compared with each other."""

    def describe(self, data: bytes, name: str) -> tuple[str, Print]:
        """A hash of the decoded medium, and what it is compared by.

        Raises:
            DataError: if the medium cannot be decoded.
        """
        ...

    def pairs(self, held: Sequence[Print], others: Sequence[Print]) -> list[Pair]:
        """All hits of two sets, and the most alike other pair, where one is near enough to be looked at."""
        ...


class Pictures:
    """Pictures, and clips by some of their frames: alike if pHash and colour miniature both are, whatever size and format.

    Args:
        frames: of a clip; None for pictures.
        bits: greatest Hamming distance of two 64-bit hashes.
        colour: greatest mean absolute difference of two miniatures, 0 to 255.
    """

    def __init__(self, *, frames: int | None, bits: int, colour: float) -> None:
        self.name = "pictures" if frames is None else "frames"
        self._frames, self._bits, self._colour = frames, bits, colour

    def describe(self, data: bytes, name: str) -> tuple[str, Print]:
        """See `Comparison`; the print is one of `picture_print` a frame."""
        shown = [open_image(io.BytesIO(data), name)] if self._frames is None else open_video(io.BytesIO(data), name, frames=self._frames)
        whole = hashlib.sha256("".join(map(likeness.pixel_hash, shown)).encode()).hexdigest()
        return whole, (np.stack([picture_print(likeness.perceptual_hash(image), likeness.miniature(image)) for image in shown]),)

    def pairs(self, held: Sequence[Print], others: Sequence[Print]) -> list[Pair]:
        """See `Comparison`; of clips, the frames that differ most count."""
        first, second = (np.stack([one[0] for one in prints]) for prints in (held, others))
        codes = [np.ascontiguousarray(side[..., :8]).view(np.uint64)[..., 0] for side in (first, second)]
        bits = np.zeros((len(first), len(second)), dtype=np.uint8)
        for frame in range(first.shape[1]):
            np.maximum(bits, np.bitwise_count(codes[0][:, None, frame] ^ codes[1][None, :, frame]), out=bits)
        found, best = [], None
        for i, j in zip(*(axis.tolist() for axis in np.nonzero(bits <= REACH * self._bits)), strict=True):
            colour = float(np.abs(first[i, :, 8:].astype(np.int16) - second[j, :, 8:]).mean(axis=1).max())
            differing = int(bits[i, j])
            pair = Pair(i, j, {"bits": differing, "colour": round(colour, 3)}, differing / 64 + colour / 255,
                        differing <= self._bits and colour <= self._colour)
            if pair.hit:
                found.append(pair)
            elif best is None or pair.rank < best.rank:
                best = pair
        return _with_best(found, best)


def picture_print(perceptual_hash: str, miniature: np.ndarray) -> np.ndarray:
    """What a picture is compared by, shape (776,) uint8: 8 bytes of its hash and its miniature."""
    return np.concatenate([np.frombuffer(bytes.fromhex(perceptual_hash), dtype=np.uint8), miniature])


class Sounds:
    """Sounds: alike if their waveforms correlate at some shift, whatever level and format; the first second from the start is compared.

    Args:
        correlation: least normalised correlation, 0 to 1. It is computed where the fingerprints are alike (`likeness.ALIKE`).
    """

    name = "sounds"

    def __init__(self, *, correlation: float) -> None:
        self._least = correlation

    def describe(self, data: bytes, name: str) -> tuple[str, Print]:
        """See `Comparison`; the print is the fingerprint and the waveform."""
        wave = open_audio(io.BytesIO(data), name, rate=RATE, seconds=likeness.COMPARED)
        samples = np.round(wave * 32767).astype(np.int16)
        return hashlib.sha256(samples.tobytes()).hexdigest(), (likeness.sound_fingerprint(wave, RATE), samples)

    def pairs(self, held: Sequence[Print], others: Sequence[Print]) -> list[Pair]:
        """See `Comparison`."""
        first, second = (_unit(np.stack([one[0] for one in prints])) for prints in (held, others))
        found, best = [], None
        for i, j in zip(*(axis.tolist() for axis in np.nonzero(first @ second.T >= likeness.ALIKE)), strict=True):
            value = likeness.sound_correlation(held[i][1].astype(np.float32), others[j][1].astype(np.float32))
            pair = Pair(i, j, {"correlation": round(value, 4)}, -value, value >= self._least)
            if pair.hit:
                found.append(pair)
            elif best is None or pair.rank < best.rank:
                best = pair
        return _with_best(found, best)


class Motions:
    """Motions: alike if their changes correlate where at least half of both lies upon each other, whatever scale and rate.

    The accelerometer and the gyroscope count alike: their units, and so their sizes, differ.

    Args:
        correlation: least normalised correlation, -1 to 1.
    """

    name = "motions"

    def __init__(self, *, correlation: float) -> None:
        self._least = correlation

    def describe(self, data: bytes, name: str) -> tuple[str, Print]:
        """See `Comparison`; the print is how the mean of each step differs from that before, shape (6, STEPS - 1)."""
        table = read_motion(io.BytesIO(data), name)
        times, values = table[:, 0], np.nan_to_num(table[:, 1:])
        span = max(float(times[-1] - times[0]), 1e-9) * len(times) / max(len(times) - 1, 1)  # the last sample lasts as long as the others
        places = np.minimum((times - times[0]) / span * STEPS, STEPS - 1).astype(int)
        count = np.maximum(np.bincount(places, minlength=STEPS), 1)
        means = np.stack([np.bincount(places, weights=axis, minlength=STEPS) / count for axis in values.T])
        smooth = sum(np.take(means, np.clip(np.arange(STEPS) + place, 0, STEPS - 1), axis=1) * weight for place, weight in SMOOTHING.items())
        whole = hashlib.sha256(values.astype(np.float32).tobytes()).hexdigest()
        return whole, (np.diff(smooth, axis=1).astype(np.float32),)

    def pairs(self, held: Sequence[Print], others: Sequence[Print]) -> list[Pair]:
        """See `Comparison`."""
        first, second = (np.stack([one[0] for one in prints]) for prints in (held, others))
        found, best = [], None
        values = _overlap_correlation(first, second)
        for i, j in zip(*(axis.tolist() for axis in np.nonzero(values >= self._least)), strict=True):
            found.append(Pair(i, j, {"correlation": round(float(values[i, j]), 4)}, -float(values[i, j]), hit=True))
        left = np.where(values >= self._least, -np.inf, values)
        i, j = divmod(int(np.argmax(left)), left.shape[1])
        if np.isfinite(left[i, j]):
            best = Pair(i, j, {"correlation": round(float(left[i, j]), 4)}, -float(left[i, j]), hit=False)
        return _with_best(found, best)


def _overlap_correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Greatest correlation over the shifts that leave OVERLAP steps, of all pairs: (a, 6, steps) and (b, 6, steps) give (a, b)."""
    steps = first.shape[2]
    size = 1 << (2 * steps - 1).bit_length()
    shifts = np.arange(OVERLAP - steps, steps - OVERLAP + 1)
    best = np.full((len(first), len(second)), -np.inf, dtype=np.float32)
    spectra = [np.fft.rfft(side, size, axis=2).astype(np.complex64) for side in (first, second)]
    energies = [_energies(side, shifts, sign) for side, sign in ((first, 1), (second, -1))]
    for row in range(len(first)):
        total = np.zeros((len(second), len(shifts)), dtype=np.float32)
        for group, axes in enumerate((slice(0, 3), slice(3, 6))):
            product = (spectra[0][row, axes] * np.conj(spectra[1][:, axes])).sum(axis=1)
            crossed = np.fft.irfft(product, size, axis=1)[:, shifts % size]
            total += crossed / np.maximum(np.sqrt(energies[0][row, group] * energies[1][:, group]), 1e-9) / 2
        best[row] = total.max(axis=1)
    return best


def _energies(side: np.ndarray, shifts: np.ndarray, sign: int) -> np.ndarray:
    """Energy of accelerometer and gyroscope in the part that lies upon the other motion at each shift, shape (motions, 2, shifts)."""
    steps = side.shape[2]
    power = np.stack([(side[:, axes] ** 2).sum(axis=1) for axes in (slice(0, 3), slice(3, 6))], axis=1)
    summed = np.concatenate([np.zeros((*power.shape[:2], 1)), power.cumsum(axis=2)], axis=2)
    begin, end = np.maximum(sign * shifts, 0), steps + np.minimum(sign * shifts, 0)
    return np.asarray(summed[:, :, end] - summed[:, :, begin], dtype=np.float32)


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1), dtype=np.float32)


def _with_best(found: list[Pair], best: Pair | None) -> list[Pair]:
    return found if best is None else [*found, best]
