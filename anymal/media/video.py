"""Videos: frames sampled by presentation time, decoded within limits, upright, RGB; and clips and contact sheets written.

Files are read as data: a playlist, or a container that names other files, is refused, so that a video cannot make the reader open anything else.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av
from av.codec.context import Flags
from av.error import FFmpegError
from av.stream import Disposition
from PIL import Image

from anymal.errors import DataError
from anymal.media.image import png

MAX_BYTES = 500_000_000
MAX_SECONDS = 600
MAX_PIXELS = 10_000_000
"""Per frame: 4K passes, 8K does not."""
PART_SIDE, PART_RATE = 640, 8
"""Longest side in pixels and frames a second of parts that are cut out of videos."""
MAX_FRAMES = 40_000
"""In the whole video: ten minutes at 60 frames a second and a reserve."""

FORMATS = "mov,matroska,avi,mpeg,mpegts,flv,asf,gif,ogg,wav,mp3,flac,aac"
"""Containers that may be opened (FFmpeg's names). Those of sounds are here so that a sound is called one; playlists are not."""
SHEET_SIDE = 160
_REMEDY = "give an MP4, WebM or MKV file"
_NO_VIDEO = f"cannot be read as a video: it is no video, damaged, or cut short; {_REMEDY}"
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


class UnusableVideo(DataError):
    """A video that cannot be used; `reason` is one word for counting."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Timeline:
    """When the frames are shown, known without decoding: presentation times in units of `base` seconds."""

    times: list[int]
    """Of all frames, in order, each once."""
    keys: list[int]
    """Of those where decoding can start."""
    end: int
    base: Fraction

    @property
    def seconds(self) -> float:
        """From the first frame's appearance to the last one's end."""
        return float((self.end - self.times[0]) * self.base)

    def shown_at(self, moment: Fraction) -> int:
        """Time of the frame on screen at a moment (same units)."""
        return self.times[max(0, bisect_right(self.times, moment) - 1)]


@dataclass(frozen=True)
class Clip:
    """A video as stored: H.264 in MP4, its pixels' size, its frames and length in seconds."""

    data: bytes
    width: int
    height: int
    frames: int
    seconds: float


def open_video(source: Path | BinaryIO, name: str, *, frames: int) -> list[Image.Image]:
    """Open and check a video and decode `frames` frames of it, upright RGB: those on screen at the middles of as many equal spans of time.

    No more than these frames and two decoded ones are held. Decoding starts at the last key frame before a wanted one where the file can seek.
    A video of fewer frames gives some of them twice.

    Raises:
        UnusableVideo: a sentence that begins with `name`, if the file is empty, no video, damaged, cut short, of one frame only, of an unknown
            codec, or beyond the limits of this module; lengths and sizes are refused before a frame is decoded.
    """
    with _file(source, name) as file:
        timeline = _scan(file, name)
        span = timeline.end - timeline.times[0]
        wanted = [timeline.shown_at(timeline.times[0] + Fraction((2 * index + 1) * span, 2 * frames)) for index in range(frames)]
        # A file whose index misleads is decoded from its beginning instead.
        found = _frames_at(file, name, wanted, timeline.keys) or _frames_at(file, name, wanted, [])
    if not found:
        raise UnusableVideo("not_a_video", f"{name}: none of its frames can be decoded; {_REMEDY}")
    return [found[moment] for moment in wanted]


def to_clip(source: Path | BinaryIO, name: str, *, side: int, rate: int, min_side: int, max_seconds: float) -> Clip:
    """A video brought to the form of shards: at most `side` pixels long, `rate` frames a second, no sound, H.264; one frame in memory at a time.

    Raises:
        UnusableVideo: as `open_video`, and if it is longer than `max_seconds`, shorter than two frames, or a side is below `min_side` pixels.
    """
    with _file(source, name) as file:
        timeline = _scan(file, name)
        if timeline.seconds > max_seconds:
            raise UnusableVideo("too_long", f"{name}: lasts {timeline.seconds:.1f} s, more than the {max_seconds:g} s allowed; cut it into clips")
        count = round(timeline.seconds * rate)
        if count < 2:
            raise UnusableVideo("too_short", f"{name}: lasts {timeline.seconds:.2f} s, which at {rate} frames a second gives {count}; "
                                             "at least 2 are needed")
        moments = [timeline.times[0] + Fraction(index, rate) / timeline.base for index in range(count)]
        pictures = _scaled(_upright_at(file, name, moments), name, side, min_side)
        first = next(pictures, None)
        if first is None:
            raise UnusableVideo("not_a_video", f"{name}: none of its frames can be decoded; {_REMEDY}")
        data = write_mp4(_chain(first, pictures), rate)
    return Clip(data, first.width, first.height, count, count / rate)


def cut_video(source: Path | BinaryIO, name: str, *, start: float, end: float) -> bytes:
    """The part of a video between two moments (seconds from its beginning) as a video of its own, scaled to `PART_SIDE` and `PART_RATE`.

    Raises:
        UnusableVideo: as `open_video`, and if the video ends before the part begins.
    """
    with _file(source, name) as file:
        timeline = _scan(file, name)
        until = min(end, timeline.seconds)
        if not 0 <= start < until:
            raise UnusableVideo("too_short", f"{name}: lasts {timeline.seconds:.2f} s, and the part from {start:g} s to {end:g} s is asked for; "
                                             "give the whole video")
        count = max(2, round((until - start) * PART_RATE))
        moments = [timeline.times[0] + (Fraction(start) + Fraction(index, PART_RATE)) / timeline.base for index in range(count)]
        return write_mp4(_scaled(_upright_at(file, name, moments), name, PART_SIDE, 2), PART_RATE)


def write_mp4(frames: Iterable[Image.Image], rate: int) -> bytes:
    """RGB frames of one size (even sides) as H.264 in MP4, `rate` a second; the same frames give the same bytes."""
    stream = io.BytesIO()
    # One thread and no tags: what threads share out and what a muxer stamps would differ from run to run.
    with av.open(stream, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        # Of frames below 128 pixels, x264 gives other bytes from one time to the next with its macroblock tree (seen with its build 165).
        options = {"preset": "veryfast", "crf": "20", "x264-params": "mbtree=0"}
        video: Any = container.add_stream("libx264", rate=rate, options=options)
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1
        video.codec_context.flags |= Flags.bitexact
        for index, frame in enumerate(frames):
            if index == 0:
                assert frame.width % 2 == frame.height % 2 == 0, "4:2:0 halves the sides for colour"
                video.width, video.height = frame.size
            picture = av.VideoFrame.from_image(frame)
            picture.pts, picture.time_base = index, Fraction(1, rate)
            container.mux(video.encode(picture))
        container.mux(video.encode())
    return stream.getvalue()


def contact_sheet(frames: Sequence[Image.Image], side: int = SHEET_SIDE) -> bytes:
    """The frames row by row in their order, each at most `side` pixels long, as a PNG for people; the same frames give the same bytes."""
    small = []
    for frame in frames:
        picture = frame.copy()
        picture.thumbnail((side, side))
        small.append(picture)
    columns = min(len(small), 4)
    width, height = max(picture.width for picture in small) + 4, max(picture.height for picture in small) + 4
    sheet = Image.new("RGB", (columns * width - 4, -(-len(small) // columns) * height - 4), "white")
    for index, picture in enumerate(small):
        sheet.paste(picture, (index % columns * width, index // columns * height))
    return png(sheet)


@contextmanager
def _file(source: Path | BinaryIO, name: str) -> Iterator[BinaryIO]:
    """The source as an open file of a size within the limits."""
    with ExitStack() as stack:
        try:
            # Opened here, for FFmpeg would take some names for addresses.
            file = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
            size = file.seek(0, io.SEEK_END)
        except OSError as error:
            raise UnusableVideo("unreadable", f"{name}: cannot be opened ({error.strerror}); give a video file") from error
        if size == 0:
            raise UnusableVideo("empty_file", f"{name}: is empty; {_REMEDY}")
        if size > MAX_BYTES:
            raise UnusableVideo("file_too_large", f"{name}: holds {size} bytes, more than the {MAX_BYTES} allowed; cut it into clips")
        file.seek(0)
        if _ends_early(file.read(4096), size):
            raise UnusableVideo("cut_short", f"{name}: is cut short; copy or fetch it again")
        yield file


def _ends_early(head: bytes, size: int) -> bool:
    """Whether a Matroska or WebM file is shorter than its segment says (FFmpeg reads on to the end and calls that whole)."""
    if not head.startswith(_EBML):
        return False
    header, used = _vint(head[4:])
    start = 4 + used + header
    if head[start : start + 4] != _SEGMENT:
        return False
    length, used = _vint(head[start + 4 :])
    unknown = (1 << 7 * used) - 1
    return length != unknown and start + 4 + used + length > size


def _vint(data: bytes) -> tuple[int, int]:
    """A variable-length number of EBML and the bytes it takes."""
    used = 9 - data[0].bit_length() if data and data[0] else 1
    return int.from_bytes(data[:used], "big") & ((1 << 7 * used) - 1), used


def _refuse(url: str, _flags: int, _options: dict[str, str]) -> Any:
    raise PermissionError(f"refers to {url}")


@contextmanager
def _opened(file: BinaryIO, name: str) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream, checked from the header."""
    file.seek(0)
    try:
        container: Any = av.open(file, "r", container_options={"format_whitelist": FORMATS}, io_open=_refuse)
    except (FFmpegError, ValueError, OSError) as error:
        raise UnusableVideo("not_a_video", f"{name}: {_NO_VIDEO}") from error
    with container:
        if not container.streams:
            raise UnusableVideo("not_a_video", f"{name}: {_NO_VIDEO}")
        # The cover of a piece of music is a video stream to FFmpeg.
        streams = [stream for stream in container.streams if stream.type == "video" and not stream.disposition & Disposition.attached_pic]
        if not streams:
            sound = any(stream.type == "audio" for stream in container.streams)
            raise UnusableVideo("not_a_video", f"{name}: holds no video stream{', only sound; give it as audio' if sound else f'; {_REMEDY}'}")
        stream = streams[0]
        if stream.codec_context is None:
            raise UnusableVideo("codec_unknown", f"{name}: its codec is unknown; convert it to H.264 in MP4")
        _check_size(stream.codec_context.width, stream.codec_context.height, name)
        if (container.duration or 0) / av.time_base > MAX_SECONDS:
            _refuse_length(container.duration / av.time_base, name)
        stream.thread_type = "NONE"
        yield container, stream


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise UnusableVideo("too_many_pixels", f"{name}: {width} x {height} pixels a frame, more than the {MAX_PIXELS} allowed; scale it down")


def _refuse_length(seconds: float, name: str) -> None:
    raise UnusableVideo("too_long", f"{name}: lasts {seconds:.0f} s, more than the {MAX_SECONDS} s allowed; cut it into clips")


def _scan(file: BinaryIO, name: str) -> Timeline:
    """Read the whole file's packets, decoding none: a header may be wrong about length and number of frames, or say nothing."""
    times: set[int] = set()
    keys: list[int] = []
    packets = 0
    begin: Any = None
    end: Any = None
    with _opened(file, name) as (container, stream):
        base: Fraction = stream.time_base
        longest = MAX_SECONDS / base
        try:
            for packet in container.demux(stream):
                moment = packet.dts if packet.pts is None else packet.pts
                if packet.size == 0 or moment is None:
                    continue
                packets += 1
                if packet.is_corrupt:
                    raise UnusableVideo("cut_short", f"{name}: is damaged or cut short; copy or fetch it again")
                if packet.is_discard:
                    continue
                times.add(moment)
                until = moment + (packet.duration or 0)
                begin, end = (moment, until) if begin is None else (min(begin, moment), max(end, until))
                if packet.is_keyframe:
                    keys.append(moment)
                if packets > MAX_FRAMES:
                    raise UnusableVideo("too_long", f"{name}: has more than the {MAX_FRAMES} frames allowed; cut it into clips")
                if end - begin > longest:
                    _refuse_length(float((end - begin) * base), name)
        except FFmpegError as error:
            raise UnusableVideo("cut_short", f"{name}: is damaged or cut short; copy or fetch it again") from error
        if packets < stream.frames:
            raise UnusableVideo("cut_short", f"{name}: is cut short, {packets} of {stream.frames} frames are there; copy or fetch it again")
    if len(times) <= 1:
        found = "one frame; give it as a picture" if times else f"no frame; {_REMEDY}"
        raise UnusableVideo("one_frame" if times else "not_a_video", f"{name}: has {found}")
    ordered = sorted(times)
    if end <= ordered[-1]:  # the last frame's length is not stored: that of the one before it
        end = 2 * ordered[-1] - ordered[-2]
    return Timeline(ordered, sorted(keys), end, base)


def _decoded(container: Any, stream: Any, name: str) -> Iterator[Any]:
    """Frames that have a time, in order, checked again: a stream may change its size."""
    try:
        for count, frame in enumerate(container.decode(stream), start=1):
            if count > MAX_FRAMES:
                raise UnusableVideo("too_long", f"{name}: has more than the {MAX_FRAMES} frames allowed; cut it into clips")
            _check_size(frame.width, frame.height, name)
            if frame.pts is not None:
                yield frame
    except FFmpegError as error:
        raise UnusableVideo("cut_short", f"{name}: is damaged or cut short: a frame cannot be decoded; copy or fetch it again") from error


def _frames_at(file: BinaryIO, name: str, wanted: Sequence[int], keys: Sequence[int]) -> dict[int, Image.Image]:
    """The frames on screen at the wanted times, by time; nothing if seeking to the key frames does not lead there."""
    found: dict[int, Image.Image] = {}
    with _opened(file, name) as (container, stream):
        decoder = _decoded(container, stream, name)
        shown: Any = None
        ahead: Any = None
        reached = None
        for moment in sorted(set(wanted)):
            start = keys[bisect_right(keys, moment) - 1] if keys and keys[0] <= moment else None
            if start is not None and (reached is None or start > reached):
                try:
                    container.seek(start, stream=stream)
                except FFmpegError:
                    return {}
                decoder, shown, ahead = _decoded(container, stream, name), None, None
            while shown is None or shown.pts < moment:
                ahead = ahead or next(decoder, None)
                if ahead is None or ahead.pts > moment:
                    break
                shown, ahead = ahead, None
            if shown is None:
                return {}
            reached = (ahead or shown).pts
            found[moment] = _upright(shown)
    return found


def _upright_at(file: BinaryIO, name: str, moments: Sequence[Fraction]) -> Iterator[Image.Image]:
    """The frames on screen at ever later moments, decoding from the beginning."""
    with _opened(file, name) as (container, stream):
        decoder = _decoded(container, stream, name)
        shown = next(decoder, None)
        ahead = next(decoder, None)
        picture: Image.Image | None = None
        for moment in moments:
            while ahead is not None and ahead.pts <= moment:
                shown, ahead, picture = ahead, next(decoder, None), None
            if shown is None:
                return
            picture = picture or _upright(shown)
            yield picture


def _upright(frame: Any) -> Image.Image:
    """A decoded frame as RGB, turned as the file's rotation says."""
    picture: Image.Image = frame.to_image()
    turn = _TURNS.get(frame.rotation % 360)
    return picture if turn is None else picture.transpose(turn)


def _scaled(pictures: Iterable[Image.Image], name: str, side: int, min_side: int) -> Iterator[Image.Image]:
    """All frames at the first one's size, scaled down to `side` if longer, and to even sides."""
    size: tuple[int, int] | None = None
    for picture in pictures:
        if size is None:
            scale = min(1.0, side / max(picture.size))
            size = (max(2, 2 * round(picture.width * scale / 2)), max(2, 2 * round(picture.height * scale / 2)))
            if min(size) < min_side:
                raise UnusableVideo("too_small", f"{name}: {size[0]} x {size[1]} pixels as stored, a side below the {min_side} asked for")
        yield picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC)


def _chain(first: Image.Image, rest: Iterable[Image.Image]) -> Iterator[Image.Image]:
    yield first
    yield from rest
