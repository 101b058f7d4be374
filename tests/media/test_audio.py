"""Sounds as files come: formats, channels, damage, lies in headers, and limits."""

from __future__ import annotations

import io
import struct
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from anymal.errors import DataError
from anymal.media import audio
from anymal.media.audio import AudioError, open_audio, preview, spectrogram, write_flac

RATE = 8000
TONE = (np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE) * 0.5).astype(np.float32)


def wav(samples: np.ndarray = TONE, *, rate: int = RATE, channels: int = 1, width: int = 2) -> bytes:
    """`samples` in each channel of a PCM file."""
    kind = {1: np.uint8, 2: np.dtype("<i2"), 4: np.dtype("<i4")}[width]
    whole = (samples * 127 + 128) if width == 1 else samples * (2.0 ** (8 * width - 1) - 1)
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(np.repeat(whole, channels).astype(kind).tobytes())
    return stream.getvalue()


def float_wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    data = samples.astype("<f4").tobytes()
    header = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 3, 1, rate, rate * 4, 4, 32, b"data", len(data))
    return header + data


def encoded(codec: str, container: str, layout: str, rate: int = 48_000) -> bytes:
    tone = (np.sin(2 * np.pi * 440 * np.arange(rate) / rate) * 0.5).astype(np.float32)
    stream = io.BytesIO()
    with av.open(stream, "w", format=container) as file:
        track: Any = file.add_stream(codec, rate=rate, layout=layout)
        channels = av.AudioLayout(layout).nb_channels
        for start in range(0, rate, 960):
            frame = av.AudioFrame.from_ndarray(np.repeat(tone[start : start + 960], channels)[None], format="flt", layout=layout)
            frame.sample_rate, frame.pts = rate, start
            file.mux(track.encode(frame))
        file.mux(track.encode(None))
    return stream.getvalue()


def vorbis_in_wav() -> bytes:
    """A WAV file that says it holds Ogg Vorbis, as some drum samples named .ogg do."""
    data = wav()
    return data[:20] + struct.pack("<H", 0x674F) + data[22:]


def announcing(flac: bytes, samples: int) -> bytes:
    """A FLAC file whose header says how many samples it has; 0 says nothing."""
    changed = bytearray(flac)
    changed[21] = (changed[21] & 0xF0) | samples >> 32
    changed[22:26] = struct.pack(">I", samples & 0xFFFFFFFF)
    return bytes(changed)


def read(data: bytes, **knobs: Any) -> np.ndarray:
    return open_audio(io.BytesIO(data), "x.wav", **({"rate": RATE} | knobs))


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("channels", [1, 2, 3, 5, 8])
def test_widths_and_channels(width: int, channels: int) -> None:
    samples = read(wav(channels=channels, width=width))
    assert samples.dtype == np.float32
    assert samples.shape == TONE.shape
    assert np.abs(samples - TONE).max() < 0.02


@pytest.mark.parametrize(("codec", "container", "layout"), [
    ("libopus", "ogg", "7.1"), ("libopus", "ogg", "mono"), ("libopus", "webm", "stereo"), ("pcm_f32le", "wav", "7.1"), ("pcm_f32le", "caf", "stereo"),
])
def test_other_formats(codec: str, container: str, layout: str) -> None:
    samples = read(encoded(codec, container, layout), rate=16_000)
    assert abs(len(samples) - 16_000) < 400
    assert np.abs(np.fft.rfft(samples[2000:10_000])).argmax() == 440 * 8000 // 16_000


def test_channels_are_averaged() -> None:
    left_only = np.stack([TONE, np.zeros_like(TONE)], axis=1)
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setparams((2, 2, RATE, 0, "NONE", ""))
        file.writeframes((left_only * 32767).astype("<i2").tobytes())
    assert np.abs(read(stream.getvalue()) - TONE / 2).max() < 1e-3


@pytest.mark.parametrize("rate", [8000, 11_025, 44_100, 96_000])
def test_resampling_keeps_pitch_and_length(rate: int) -> None:
    samples = read(wav(np.sin(2 * np.pi * 1000 * np.arange(rate) / rate) * 0.5, rate=rate), rate=16_000)
    assert abs(len(samples) - 16_000) <= 32
    assert np.abs(np.fft.rfft(samples[:15_000])).argmax() == pytest.approx(1000 * 15_000 / 16_000, abs=1)
    assert np.abs(samples[1000:15_000]).max() == pytest.approx(0.5, abs=0.01)


def test_stops_at_seconds() -> None:
    assert np.array_equal(read(wav(), seconds=0.25), read(wav())[:2000])
    assert len(read(wav(), seconds=5)) == RATE


def test_too_loud_is_clipped() -> None:
    samples = read(float_wav(TONE * 6))
    assert samples.max() == 1.0
    assert samples.min() == -1.0


def test_path_and_stream_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "tone.wav"
    path.write_bytes(wav())
    stream = io.BytesIO(wav())
    assert np.array_equal(open_audio(path, "a", rate=RATE), open_audio(stream, "b", rate=RATE))
    assert not stream.closed


BAD = {
    "empty": (b"", "empty", "holds no byte"),
    "text": (b"these are words\n" * 100, "unreadable", "cannot be read as a sound"),
    "noise": (np.random.default_rng((0, 1)).bytes(5000), "unreadable", "cannot be read as a sound"),
    "header cut": (wav()[:30], "unreadable", "cannot be read as a sound"),
    "no samples": (wav(np.zeros(0)), "empty", "no sample"),
    "flac cut before its first frame": (write_flac(TONE, RATE)[:60], "unreadable", "cannot be read as a sound"),
    "not a number": (float_wav(np.where(np.arange(RATE) == 77, np.nan, TONE)), "not_finite", "no finite numbers"),
    "infinite": (float_wav(np.where(np.arange(RATE) == 77, np.inf, TONE)), "not_finite", "no finite numbers"),
    "16 channels": (wav(channels=16), "too_many_channels", "16 channels, more than the 8 allowed"),
    "4 MHz": (wav(rate=4_000_000), "unreadable", "4000000 Hz"),
    "601 seconds": (wav(np.zeros(601 * RATE)), "too_long_file", "lasts 601 seconds"),
    "says 10 hours": (announcing(write_flac(TONE, RATE), 36_000 * RATE), "too_long_file", "lasts 36000 seconds"),
    "Vorbis in WAV": (vorbis_in_wav(), "codec_unknown", "no decoder"),
    "play list": (b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///tmp/tone.wav\n", "unreadable", "cannot be read as a sound"),
    "script": (b"ffconcat version 1.0\nfile tone.wav\n", "unreadable", "cannot be read as a sound"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_files_are_one_sentence(what: str) -> None:
    data, reason, words = BAD[what]
    with pytest.raises(AudioError) as caught:
        read(data)
    assert caught.value.reason == reason
    assert str(caught.value).startswith("x.wav: ")
    assert str(caught.value) == f"x.wav: {caught.value.detail}"
    assert words in caught.value.detail
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, DataError)


def test_long_file_is_refused_whatever_is_asked_of_it() -> None:
    with pytest.raises(AudioError, match="lasts 601 seconds"):
        read(BAD["601 seconds"][0], seconds=1)


def test_header_that_hides_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = announcing(write_flac(np.tile(TONE, 3), RATE), 0)
    assert len(read(silent)) == 3 * RATE
    monkeypatch.setattr(audio, "MAX_SECONDS", 1)
    with pytest.raises(AudioError, match="unlike its header says") as caught:
        read(silent)
    assert caught.value.reason == "too_long_file"
    assert len(read(silent, seconds=0.5)) == RATE // 2


def test_decoding_stops_soon_after_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "MAX_SECONDS", 2)
    taken: list[int] = []
    append = audio._append
    monkeypatch.setattr(audio, "_append", lambda parts, frames: taken.append(append(parts, frames)) or taken[-1])
    with pytest.raises(AudioError, match="lasts more than"):
        read(announcing(write_flac(np.tile(TONE, 30), RATE), 0))
    assert sum(taken) < 5 * RATE


def test_streamed_wav_without_a_length() -> None:
    data = wav()
    unknown = data[:4] + b"\xff\xff\xff\xff" + data[8:40] + b"\xff\xff\xff\xff" + data[44:]
    assert np.array_equal(read(unknown), read(data))


def test_cut_short_gives_what_is_there() -> None:
    long = np.tile(TONE, 5)
    data = write_flac(long, RATE)
    samples = read(data[: len(data) * 2 // 3])
    assert RATE < len(samples) < 5 * RATE
    assert np.abs(samples[:RATE] - TONE).max() < 1e-4


def test_large_file_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "MAX_BYTES", 1000)
    with pytest.raises(AudioError, match="more than the 1000 allowed") as caught:
        read(wav())
    assert caught.value.reason == "file_too_large"


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.wav", tmp_path):
        with pytest.raises(AudioError, match=r"^name: cannot be read as a sound"):
            open_audio(path, "name", rate=RATE)


def test_picture_is_no_sound() -> None:
    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG")
    with pytest.raises(AudioError, match="cannot be read as a sound"):
        read(stream.getvalue())


def test_video_without_sound() -> None:
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as file:
        track: Any = file.add_stream("mpeg4", rate=10)
        track.width, track.height, track.pix_fmt = 32, 32, "yuv420p"
        file.mux(track.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), dtype=np.uint8), format="rgb24")))
        file.mux(track.encode(None))
    with pytest.raises(AudioError, match="holds no sound track"):
        read(stream.getvalue())


def test_flac_keeps_16_bits_and_its_bytes() -> None:
    whole = np.random.default_rng((0, 3)).integers(-32768, 32768, 10_001)
    data = write_flac(whole / 32768, RATE)
    assert data == write_flac(whole / 32768, RATE)
    assert np.array_equal(np.round(read(data) * 32768), whole)
    assert len(read(write_flac(np.full(1, 2.0), RATE))) == 1


def test_spectrogram() -> None:
    from PIL import Image

    data = spectrogram(TONE, RATE)
    assert data == spectrogram(TONE, RATE)
    assert data != spectrogram(TONE * 0.01, RATE)
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "PNG"
    assert spectrogram(np.zeros(1), RATE).startswith(b"\x89PNG")


def test_a_preview_is_small_sounds_the_same_and_has_the_same_bytes_again():
    small = preview(io.BytesIO(wav()), "tone")
    assert small == preview(io.BytesIO(wav()), "tone") and b"Lav" not in small
    heard = open_audio(io.BytesIO(small), "tone", rate=RATE)
    assert len(heard) / RATE == pytest.approx(1, abs=0.1)
    spectrum = np.abs(np.fft.rfft(heard))
    assert np.argmax(spectrum) * RATE / len(heard) == pytest.approx(440, abs=5)
    long = preview(io.BytesIO(wav(np.tile(TONE, 30))), "long")
    assert 35_000 < len(long) <= 41_000, "ten seconds of it"
    with pytest.raises(AudioError, match=r"^nothing: holds no byte"):
        preview(io.BytesIO(), "nothing")
