from __future__ import annotations

import io
import struct
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from anymal.errors import DataError
from anymal.media import video
from anymal.media.video import UnusableVideo, contact_sheet, open_video, to_clip, write_mp4


def counted(number: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A frame whose eight stripes tell its number."""
    stripes = np.array([[60 if number >> bit & 1 == 0 else 200 for bit in range(8)]], dtype=np.uint8)
    return Image.fromarray(stripes).resize(size, Image.Resampling.NEAREST).convert("RGB")


def number_of(frame: Image.Image) -> int:
    stripes = np.asarray(frame.convert("L").resize((8, 1), Image.Resampling.BOX), dtype=int)[0]
    return sum(1 << bit for bit in range(8) if stripes[bit] > 130)


def encode(count: int, *, codec: str = "libx264", kind: str = "mp4", rate: Any = 8, size: tuple[int, int] = (64, 48), key_every: int = 20,
           times: list[int] | None = None, base: Fraction = Fraction(1, 8)) -> bytes:
    """A video of numbered frames; `times` are presentation times in units of `base` seconds."""
    stream = io.BytesIO()
    with av.open(stream, "w", format=kind) as container:
        track: Any = container.add_stream(codec, rate=rate)
        track.width, track.height, track.pix_fmt, track.codec_context.gop_size = *size, "yuv420p", key_every
        if times is not None:
            track.codec_context.time_base = base
        for index in range(count):
            frame = av.VideoFrame.from_image(counted(index, size))
            if times is not None:
                frame.pts, frame.time_base = times[index], base
            container.mux(track.encode(frame))
        container.mux(track.encode())
    return stream.getvalue()


def sound(kind: str = "wav", codec: str = "pcm_s16le") -> bytes:
    stream = io.BytesIO()
    with av.open(stream, "w", format=kind) as container:
        track: Any = container.add_stream(codec, rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(track.encode(frame))
        container.mux(track.encode())
    return stream.getvalue()


def turned(data: bytes, matrix: tuple[int, ...]) -> bytes:
    """The same MP4 with another display matrix, as phones write it."""
    start = data.index(b"tkhd") + 8 + 20 + 16
    assert struct.unpack(">9i", data[start : start + 36])[0] == 65536
    return data[:start] + struct.pack(">9i", *matrix) + data[start + 36 :]


CONTAINERS = [("libx264", "mp4"), ("libvpx-vp9", "webm"), ("libx264", "matroska"), ("mpeg4", "avi"), ("libx264", "mpegts"), ("libx264", "flv")]


@pytest.mark.parametrize(("codec", "kind"), CONTAINERS)
def test_frames_are_those_at_the_middles_of_equal_spans(codec: str, kind: str) -> None:
    data = encode(80, codec=codec, kind=kind)
    assert [number_of(frame) for frame in open_video(io.BytesIO(data), "v", frames=4)] == [10, 30, 50, 70]
    assert [number_of(frame) for frame in open_video(io.BytesIO(data), "v", frames=1)] == [40]


def test_time_counts_not_the_number_of_frames() -> None:
    data = encode(6, times=[0, 1, 2, 3, 4, 40])  # the last frame comes after 4.5 seconds of the one before it
    assert [number_of(frame) for frame in open_video(io.BytesIO(data), "v", frames=2)] == [4, 4]
    assert [number_of(frame) for frame in open_video(io.BytesIO(encode(3)), "v", frames=6)] == [0, 0, 1, 1, 2, 2]


def test_long_videos_are_sought_not_decoded_through(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = 0
    real = video._decoded

    def count(*arguments: Any) -> Any:
        nonlocal decoded
        for frame in real(*arguments):
            decoded += 1
            yield frame

    monkeypatch.setattr(video, "_decoded", count)
    data = encode(100, key_every=5)
    assert [number_of(frame) for frame in open_video(io.BytesIO(data), "v", frames=2)] == [25, 75]
    assert decoded <= 12


def test_a_file_whose_index_misleads_is_decoded_through(monkeypatch: pytest.MonkeyPatch) -> None:
    sought = []

    class Astray:
        """Seeks to the end, whatever it is asked for."""

        def __init__(self, container: Any) -> None:
            self._container = container

        def seek(self, moment: int, *, stream: Any) -> None:
            sought.append(moment)
            self._container.seek(10**9, stream=stream)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._container, name)

    real = video._opened

    @contextmanager
    def astray(file: Any, name: str) -> Any:
        with real(file, name) as (container, stream):
            yield Astray(container), stream

    monkeypatch.setattr(video, "_opened", astray)
    assert [number_of(frame) for frame in open_video(io.BytesIO(encode(40, key_every=5)), "v", frames=4)] == [5, 15, 25, 35]
    assert len(sought) == 1


def test_rotation_is_respected() -> None:
    left = Image.new("RGB", (64, 48), "black")
    left.paste((255, 255, 255), (0, 0, 32, 48))
    data = write_mp4([left] * 4, 8)
    assert np.asarray(open_video(io.BytesIO(data), "v", frames=1)[0])[24, 8].min() > 200
    clockwise = turned(data, (0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 1 << 30))
    frame = open_video(io.BytesIO(clockwise), "v", frames=1)[0]
    assert frame.size == (48, 64)
    pixels = np.asarray(frame)
    assert pixels[8, 24].min() > 200, "the left side is up"
    assert pixels[56, 24].max() < 50
    assert to_clip(io.BytesIO(clockwise), "v", side=64, rate=4, min_side=16, max_seconds=9).width == 48


def test_a_path_works_and_its_name_is_no_address(tmp_path: Path) -> None:
    path = tmp_path / "concat:a.mp4"
    path.write_bytes(encode(8))
    assert len(open_video(path, "v", frames=3)) == 3


def test_written_clips_are_the_same_bytes_and_nearly_the_same_pixels() -> None:
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(12):
        frame = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((64, 48), Image.Resampling.BICUBIC)
        frames.append(frame)
    data = write_mp4(frames, 8)
    assert write_mp4(iter(frames), 8) == data
    read = open_video(io.BytesIO(data), "v", frames=12)
    assert np.abs(np.asarray(read[5], dtype=int) - np.asarray(frames[5], dtype=int)).mean() < 12
    sheet = contact_sheet(read)
    assert sheet == contact_sheet(read)
    with Image.open(io.BytesIO(sheet)) as image:
        assert (image.format, image.size) == ("PNG", (4 * 68 - 4, 3 * 52 - 4))
    with Image.open(io.BytesIO(contact_sheet(read[:2], side=32))) as image:
        assert image.size == (68, 24)


@pytest.mark.parametrize("size", [(64, 48), (96, 64), (32, 32), (256, 144)])
def test_the_same_frames_give_the_same_bytes_whatever_was_in_memory(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    picture = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    frames = [picture.rotate(5 * index) for index in range(8)]
    written, litter = set(), []
    for turn in range(12):
        written.add(write_mp4(frames, 4))
        litter = [rng.integers(0, 255, 200_000 + 7919 * turn, dtype=np.uint8) for _ in range(3)]
    assert len(written) == 1, f"{len(litter)} arrays lay around"


def test_clips_are_brought_to_one_form() -> None:
    data = encode(60, rate=30, size=(640, 360))
    clip = to_clip(io.BytesIO(data), "v", side=128, rate=4, min_side=16, max_seconds=9)
    assert (clip.width, clip.height, clip.frames, clip.seconds) == (128, 72, 8, 2.0)
    assert [number_of(frame) for frame in open_video(io.BytesIO(clip.data), "v", frames=8)] == pytest.approx([0, 7, 15, 22, 30, 37, 45, 52], abs=1)
    assert to_clip(io.BytesIO(data), "v", side=128, rate=4, min_side=16, max_seconds=9) == clip
    for message, change in (("below the 100 asked", {"min_side": 100}), ("lasts 2.0 s, more than the 1 s", {"max_seconds": 1.0})):
        with pytest.raises(UnusableVideo, match=message):
            to_clip(io.BytesIO(data), "v", **({"side": 128, "rate": 4, "min_side": 16, "max_seconds": 9.0} | change))
    with pytest.raises(UnusableVideo, match="at least 2 are needed"):
        to_clip(io.BytesIO(encode(4, rate=30)), "v", side=64, rate=4, min_side=16, max_seconds=9)


def png_of(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(stream, "PNG")
    return stream.getvalue()


def fast_start(data: bytes) -> bytes:
    """The same MP4 with its index before its pictures, as on the web: cut short, its header is still whole."""
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        with av.open(file.name, "w", options={"movflags": "faststart"}) as target, av.open(io.BytesIO(data)) as source:
            track = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(source.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = track
                    target.mux(packet)
        return Path(file.name).read_bytes()


def part(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def damaged(data: bytes) -> bytes:
    at = data.index(b"mdat") + 4 + (len(data) - data.index(b"mdat")) // 3
    return data[:at] + b"\xff" * 400 + data[at + 400 :]


WHOLE = encode(40, key_every=4)
BAD = {
    "empty": (b"", "empty_file", "is empty"),
    "text": (b"this is a text file\n" * 50, "not_a_video", "cannot be read as a video"),
    "header": (b"\x00\x00\x00\x18ftypmp42" + bytes(500), "not_a_video", "cannot be read as a video"),
    "picture": (png_of("red"), "not_a_video", "cannot be read as a video"),
    "playlist": (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n", "not_a_video", "cannot be read as a video"),
    "list": (b"ffconcat version 1.0\nfile /etc/passwd\n", "not_a_video", "cannot be read as a video"),
    "sound": (sound(), "not_a_video", "holds no video stream, only sound; give it as audio"),
    "mp3": (sound("mp3", "libmp3lame"), "not_a_video", "holds no video stream, only sound"),
    "one": (encode(1), "one_frame", "has one frame; give it as a picture"),
    "cut mp4": (part(WHOLE, 0.6), "not_a_video", "cut short"),
    "cut web mp4": (part(fast_start(WHOLE), 0.7), "cut_short", "cut short"),
    "cut webm": (part(encode(40, codec="libvpx-vp9", kind="webm"), 0.7), "cut_short", "cut short"),
    "cut mkv": (part(encode(40, kind="matroska"), 0.9), "cut_short", "cut short"),
    "cut avi": (part(encode(40, codec="mpeg4", kind="avi"), 0.7), "cut_short", "cut short"),
    "damaged": (damaged(encode(40, size=(320, 240), key_every=1)), "cut_short", "damaged or cut short"),
    "codec": (WHOLE.replace(b"avc1", b"zzzz"), "codec_unknown", "its codec is unknown"),
    "ten hours": (encode(10, times=[3600 * 8 * hour for hour in range(10)]), "too_long", "lasts 3[0-9]{4} s, more than the 600 s"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_videos_are_refused_in_a_sentence(case: str) -> None:
    data, reason, message = BAD[case]
    with pytest.raises(UnusableVideo, match=f"^clip.mp4: .*{message}") as caught:
        open_video(io.BytesIO(data), "clip.mp4", frames=4)
    assert caught.value.reason == reason
    assert isinstance(caught.value, DataError)
    assert "\n" not in str(caught.value)
    with pytest.raises(UnusableVideo):
        to_clip(io.BytesIO(data), "clip.mp4", side=64, rate=4, min_side=16, max_seconds=600)


def test_a_cover_is_no_video() -> None:
    stream = io.BytesIO()
    with av.open(stream, "w", format="flac") as container, av.open(io.BytesIO(sound("flac", "flac"))) as source:
        track = container.add_stream_from_template(source.streams.audio[0])
        cover: Any = container.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt, cover.disposition = 8, 8, "rgb24", av.stream.Disposition.attached_pic
        for packet in cover.encode(av.VideoFrame.from_image(counted(0, (8, 8)))):
            container.mux(packet)
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = track
                container.mux(packet)
    with av.open(io.BytesIO(stream.getvalue())) as made:
        assert len(made.streams.video) == 1
    with pytest.raises(UnusableVideo, match="only sound"):
        open_video(io.BytesIO(stream.getvalue()), "song.flac", frames=4)


def test_sizes_and_lengths_are_refused_before_a_frame_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "_decoded", lambda *_: pytest.fail("decoded"))
    for limit, value, message in (("MAX_PIXELS", 3000, "64 x 48 pixels a frame"), ("MAX_SECONDS", 4, "lasts 5 s, more than the 4 s"),
                                  ("MAX_FRAMES", 39, "more than the 39 frames"), ("MAX_BYTES", 100, "more than the 100 allowed")):
        with monkeypatch.context() as patch:
            patch.setattr(video, limit, value)
            with pytest.raises(UnusableVideo, match=message):
                open_video(io.BytesIO(WHOLE), "v", frames=2)


def test_frames_are_checked_again_while_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A header may say less than its frames are: here it says nothing, for the header's check is blind."""
    real, seen = video._check_size, []

    def blind_to_headers(width: int, height: int, name: str) -> None:
        seen.append((width, height))
        if len(seen) > 2:  # the scan's and the decoder's header
            real(width * 10_000, height, name)

    monkeypatch.setattr(video, "_check_size", blind_to_headers)
    with pytest.raises(UnusableVideo, match="640000 x 48 pixels a frame"):
        open_video(io.BytesIO(WHOLE), "v", frames=2)


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UnusableVideo, match=r"v: cannot be opened \(No such file"):
        open_video(tmp_path / "none.mp4", "v", frames=2)
