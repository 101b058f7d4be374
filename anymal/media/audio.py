"""Sounds: decoded within limits to mono samples at one rate, stored as FLAC, drawn as spectrograms, made small for pages."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from anymal.errors import DataError

if TYPE_CHECKING:
    import numpy as np

MAX_BYTES = 2**28
"""Files above this are refused unread."""
MAX_SECONDS = 600
"""Sounds above this are refused from their header, or while decoding where the header is silent or lies."""
MAX_CHANNELS = 8
RATES = (1_000, 384_000)
"""Lowest and highest sampling rate, in Hz."""
SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".m4a", ".webm"})
PREVIEW_RATE, PREVIEW_SECONDS, PREVIEW_BITS = 24_000, 10, 32_000
"""In Hz, seconds, and bits a second: at most 40 KB, and every browser plays it."""
_FORMATS = "wav,w64,aiff,flac,ogg,mp3,caf,au,mov,matroska,webm"
"""Containers that are tried. Play lists and scripts, which make FFmpeg open other files and addresses, are not among them."""


class AudioError(DataError):
    """A file that cannot be used as a sound.

    Attributes:
        reason: `empty`, `unreadable`, `no_audio`, `codec_unknown`, `file_too_large`, `too_long_file`, `too_many_channels` or `not_finite`.
        detail: the message without the file's name.
    """

    def __init__(self, name: str, reason: str, detail: str) -> None:
        super().__init__(f"{name}: {detail}")
        self.reason, self.detail = reason, detail


def open_audio(source: Path | BinaryIO, name: str, *, rate: int, seconds: float | None = None) -> np.ndarray:
    """Decode one sound file to mono: the mean of its channels, resampled.

    A file that ends too early, or is damaged after its start, gives what comes before the damage.

    Args:
        source: WAV, FLAC, Ogg, MP3, AIFF, AU, CAF, MP4 or WebM file; of a video, its first sound track.
        rate: of the result, in Hz.
        seconds: stop decoding there; None for all of it.

    Returns:
        (samples,) float32, -1 to 1, at least one sample.

    Raises:
        AudioError: one sentence that begins with `name`, if the file is empty, no sound, damaged from its start, in a format without decoder,
            larger or longer than the limits of this module, or holds values that are no numbers.
    """
    import av
    import numpy as np

    try:
        with source.open("rb") if isinstance(source, Path) else nullcontext(source) as stream:
            size = stream.seek(0, io.SEEK_END)
            stream.seek(0)
            if size == 0:
                raise AudioError(name, "empty", "holds no byte; give a sound file")
            if size > MAX_BYTES:
                raise AudioError(name, "file_too_large", f"{size} bytes, more than the {MAX_BYTES} allowed; cut it or compress it")
            with av.open(stream, options={"format_whitelist": _FORMATS}, metadata_errors="replace") as container:
                parts = _decode(container, name, rate, seconds)
    except (av.FFmpegError, OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise AudioError(name, "unreadable", f"cannot be read as a sound ({what}); give a WAV, FLAC, Ogg or MP3 file") from error
    samples = np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
    if seconds is not None:
        samples = samples[: round(seconds * rate)]
    if len(samples) == 0:
        raise AudioError(name, "empty", "holds no sample that can be decoded; it is empty or cut short, give the whole file")
    if not np.isfinite(samples).all():
        raise AudioError(name, "not_finite", "holds samples that are no finite numbers; export it again")
    return np.clip(samples, -1.0, 1.0, out=samples)


def _decode(container: Any, name: str, rate: int, seconds: float | None) -> list[np.ndarray]:
    """Chunks of mono samples at `rate`, header checked before the first one."""
    import av

    if not container.streams.audio:
        raise AudioError(name, "no_audio", "holds no sound track; give a sound file or a video with sound")
    stream = container.streams.audio[0]
    if stream.codec_context is None:
        raise AudioError(name, "codec_unknown", "holds sound in a format that FFmpeg has no decoder for; convert it to FLAC")
    _check(name, stream.channels, stream.rate)
    announced = _duration(container, stream)
    if announced is not None and announced > MAX_SECONDS:
        raise AudioError(name, "too_long_file", f"lasts {announced:.0f} seconds, more than the {MAX_SECONDS} allowed; cut it into parts")
    limit = (MAX_SECONDS + 1) * rate if seconds is None else min(seconds, MAX_SECONDS + 1) * rate
    # Packed samples: PyAV 18 reads past the end of planar frames of eight channels.
    resampler = av.AudioResampler(format="flt", rate=rate)
    parts: list[np.ndarray] = []
    count = 0
    for frame in _frames(container, stream):
        if frame is not None:
            _check(name, frame.layout.nb_channels, frame.sample_rate)
        count += _append(parts, resampler.resample(frame))
        if count > limit:
            break
    if count > MAX_SECONDS * rate and (seconds is None or seconds > MAX_SECONDS):
        raise AudioError(name, "too_long_file", f"lasts more than the {MAX_SECONDS} seconds allowed, unlike its header says; cut it into parts")
    return parts


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    """The frames up to the first damage behind a good one, and None at the end, if there was any frame."""
    import av

    decoded = False
    try:
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                if decoded:
                    break
                continue  # junk before the first good frame, as MP3 streams have it
            yield from frames
            decoded = decoded or bool(frames)
    except av.FFmpegError:
        if not decoded:
            raise
    if decoded:
        yield None


def _append(parts: list[np.ndarray], frames: Any) -> int:
    """Down-mix frames of packed samples onto `parts`; how many samples came."""
    mixed = [frame.to_ndarray().reshape(-1, frame.layout.nb_channels).mean(axis=1, dtype="float32") for frame in frames if frame.samples]
    parts.extend(mixed)
    return sum(map(len, mixed))


def _check(name: str, channels: int, rate: int) -> None:
    if channels > MAX_CHANNELS:
        raise AudioError(name, "too_many_channels", f"{channels} channels, more than the {MAX_CHANNELS} allowed; mix it down")
    if channels < 1 or not RATES[0] <= rate <= RATES[1]:
        detail = f"{channels} channels at {rate} Hz in its header, outside {RATES[0]} to {RATES[1]} Hz; the header is damaged, or resample it"
        raise AudioError(name, "unreadable", detail)


def _duration(container: Any, stream: Any) -> float | None:
    """Seconds that the header announces, None if it does not say."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / 1_000_000


def write_flac(samples: np.ndarray, rate: int) -> bytes:
    """A mono FLAC file of 16 bits, the same bytes for the same samples.

    Args:
        samples: (samples,) float, -1 to 1.
        rate: in Hz.
    """
    import av
    import numpy as np

    whole = np.clip(np.round(samples * 32768.0), -32768, 32767).astype(np.int16)
    target = io.BytesIO()
    with av.open(target, "w", format="flac", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("flac", rate=rate, layout="mono", format="s16")
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        stream.codec_context.open()
        block = stream.codec_context.frame_size
        for start in range(0, len(whole), block):
            frame = av.AudioFrame.from_ndarray(whole[None, start : start + block], format="s16", layout="mono")
            frame.sample_rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return target.getvalue()


def preview(source: Path | BinaryIO, name: str) -> bytes:
    """A small MP3 of the beginning of a sound, for people to hear; the same bytes for the same file.

    Raises:
        AudioError: as `open_audio`.
    """
    import av

    samples = open_audio(source, name, rate=PREVIEW_RATE, seconds=PREVIEW_SECONDS)
    target = io.BytesIO()
    # Neither tags nor the header with the encoder's version: its upgrade would change the bytes.
    options = {"fflags": "+bitexact", "id3v2_version": "0", "write_xing": "0"}
    with av.open(target, "w", format="mp3", container_options=options) as container:
        stream = container.add_stream("libmp3lame", rate=PREVIEW_RATE, layout="mono", format="fltp")
        stream.bit_rate = PREVIEW_BITS
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        stream.codec_context.open()
        block = stream.codec_context.frame_size
        for start in range(0, len(samples), block):
            frame = av.AudioFrame.from_ndarray(samples[None, start : start + block], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = PREVIEW_RATE, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return target.getvalue()


def spectrogram(samples: np.ndarray, rate: int) -> bytes:
    """Short-time spectrum as a PNG for people: time to the right, frequency upwards, 0 to -80 dB of full scale; the same bytes for the same samples.

    Args:
        samples: (samples,) float, -1 to 1.
        rate: in Hz.
    """
    import matplotlib as mpl
    import numpy as np

    mpl.use("Agg")
    from matplotlib.figure import Figure

    width = 1024 if rate >= 32_000 else 512
    padded = np.pad(np.asarray(samples, dtype=np.float32), (0, max(0, width - len(samples))))
    hop = max(width // 4, (len(padded) - width) // 400 + 1)  # at most 400 columns, however long the sound is
    starts = np.arange(0, len(padded) - width + 1, hop)
    window = np.hanning(width).astype(np.float32)
    power = np.abs(np.fft.rfft(padded[starts[:, None] + np.arange(width)] * window, axis=1)) / (window.sum() / 2)
    level = 20 * np.log10(np.maximum(power, 1e-4))
    figure = Figure(figsize=(4, 2.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(level.T, origin="lower", aspect="auto", cmap="magma", vmin=-80, vmax=0, extent=(0, len(padded) / rate, 0, rate / 2000))
    axes.set(xlabel="seconds", ylabel="kHz")
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=90, metadata={"Software": None})
    return target.getvalue()
