"""Motion recordings (accelerometer and gyroscope): decoded within limits, cut to a window, brought to one sampling rate."""

from __future__ import annotations

import contextlib
import csv
import io
import tokenize
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from anymal.errors import DataError
from anymal.media.image import png

MAX_BYTES = 64 * 2**20
"""An hour of CSV at 200 Hz has about this size."""
MAX_SECONDS = 3600.0
MAX_GAP_SECONDS = 0.5
"""Longest stretch without a valid sample that is filled by interpolation."""
CHANNELS = ("ax", "ay", "az", "gx", "gy", "gz")
"""Accelerometer xyz, gyroscope xyz."""
NPY_MAGIC = b"\x93NUMPY"
FLAT = 1e-6
"""A channel that varies by less is flat."""
DAMAGED = (ValueError, OSError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError)
"""What numpy raises for headers that are no headers."""
MISSING = {"", "nan", "null", "none", "na"}
"""How CSV files write a value that was not measured."""


class MotionError(DataError):
    """A recording that cannot be used; `reason` is one word for statistics: empty, unreadable, shape, time, gap, not_finite, constant, too_short or
    too_long."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def open_motion(source: Path | BinaryIO, name: str, *, seconds: float, rate: int) -> np.ndarray:
    """Read the first `seconds` of a recording and resample them linearly to `rate` Hz.

    Formats: .npy, floats of shape (samples, 7): time in seconds, accelerometer xyz, gyroscope xyz; and CSV with a header that names `t` (seconds) or
    `t_ms` (milliseconds), `ax`, `ay`, `az`, `gx`, `gy`, `gz` in any order. Times may be irregular and begin anywhere. Units are the recording's own.

    Returns:
        (6, seconds * rate) float32.

    Raises:
        MotionError: one sentence that begins with `name`, for what is listed there.
    """
    recording = read_motion(source, name)
    return cut_window(recording, name, start=float(recording[0, 0]), seconds=seconds, rate=rate)


def read_motion(source: Path | BinaryIO, name: str) -> np.ndarray:
    """Read a whole recording of a format that `open_motion` describes.

    Returns:
        (samples, 7) float64: times in seconds, strictly increasing and finite; values as recorded, missing ones NaN.

    Raises:
        MotionError: if it is empty, of another form, pickled, too large or too long, or its times do not increase.
    """
    try:
        if isinstance(source, Path) and source.stat().st_size > MAX_BYTES:
            raise _too_large(name)
        with source.open("rb") if isinstance(source, Path) else contextlib.nullcontext(source) as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        why = error.strerror or _first(error)
        raise MotionError(f"{name}: cannot be read ({why}); give a recording in .npy or CSV form", "unreadable") from error
    if len(data) > MAX_BYTES:
        raise _too_large(name)
    if not data:
        raise MotionError(f"{name}: is empty; give a recording in .npy or CSV form", "empty")
    table = _parse_npy(data, name) if data.startswith(NPY_MAGIC) else _parse_csv(data, name)
    table = table[np.isfinite(table[:, 0])]
    if len(table) == 0:
        raise MotionError(f"{name}: holds no sample; record again", "empty")
    steps = np.diff(table[:, 0])
    if len(steps) and steps.min() <= 0:
        row = int(np.argmax(steps <= 0)) + 1
        raise MotionError(f"{name}: its times do not increase (row {row + 1} is at {table[row, 0]:g} s, the one before at {table[row - 1, 0]:g} s); "
                          "sort the rows by time and remove repeated ones", "time")
    length = _duration(table[:, 0])
    if length > MAX_SECONDS:
        raise MotionError(f"{name}: lasts {length:.0f} s, more than the {MAX_SECONDS:.0f} s allowed; cut out the part of interest", "too_long")
    return table


def _too_large(name: str) -> MotionError:
    return MotionError(f"{name}: holds more than the {MAX_BYTES} bytes allowed; cut out the part of interest", "too_long")


def _parse_npy(data: bytes, name: str) -> np.ndarray:
    """(samples, 7) float64; the header is judged before the array is made."""
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        shape, _, dtype = (np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0)(stream)
    except DAMAGED as error:
        raise MotionError(f"{name}: is damaged or no .npy file ({_first(error)}); save the recording again with numpy.save", "unreadable") from error
    if dtype.hasobject:
        raise MotionError(f"{name}: holds pickled objects, which could run code and are refused; save a plain array of floats with numpy.save",
                          "unreadable")
    wanted = f"{1 + len(CHANNELS)} columns: time in seconds, accelerometer xyz, gyroscope xyz"
    if dtype.kind != "f":
        raise MotionError(f"{name}: holds values of type {dtype}; save it as floats with {wanted}", "shape")
    if len(shape) != 2 or shape[1] != 1 + len(CHANNELS):
        found = f"{shape[1]} columns" if len(shape) == 2 else f"an array of shape {shape}"
        raise MotionError(f"{name}: holds {found}; it must have {wanted}", "shape")
    if not 0 <= shape[0] * shape[1] * dtype.itemsize <= len(data) - stream.tell():
        raise MotionError(f"{name}: ends before its {shape[0]} rows do; copy or save it again", "unreadable")
    stream.seek(0)
    with np.errstate(over="ignore"):
        table: np.ndarray = np.load(stream, allow_pickle=False).astype(np.float64)
    return table


def _parse_csv(data: bytes, name: str) -> np.ndarray:
    """(samples, 7) float64."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MotionError(f"{name}: is neither a .npy file nor CSV text; save the recording in one of these forms", "unreadable") from error
    with contextlib.closing(io.StringIO(text, newline="")) as stream:
        header, rows = read_rows(stream, name)
        times = [column for column in ("t", "t_ms") if column in header]
        missing = [column for column in CHANNELS if column not in header]
        if len(times) != 1 or missing:
            shown = ", ".join(header)[:100]
            raise MotionError(f"{name}: its header names {shown!r}; name one of t (seconds) and t_ms (milliseconds), and {', '.join(CHANNELS)}",
                              "shape")
        table = numbers(header, rows, (times[0], *CHANNELS), name)
    if times[0] == "t_ms":
        table[:, 0] /= 1000.0
    return table


def read_rows(stream: io.TextIOBase, name: str) -> tuple[list[str], Iterator[list[str]]]:
    """The header of a CSV file, in lower case, and its rows as they are read.

    Raises:
        MotionError: if there is no header, or a column is named twice.
    """
    rows = csv.reader(stream, strict=True)
    try:
        header = [column.strip().lower() for column in next(rows, [])]
    except (csv.Error, UnicodeDecodeError) as error:
        raise MotionError(f"{name}: is no CSV text ({_first(error)}); save it again", "unreadable") from error
    if not any(header):
        raise MotionError(f"{name}: has no header; the first line must name the columns", "shape")
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise MotionError(f"{name}: names the column {twice[0]!r} twice; keep one", "shape")
    return header, rows


def numbers(header: list[str], rows: Iterator[list[str]], columns: tuple[str, ...], name: str, most: int | None = None) -> np.ndarray:
    """Columns of a CSV file as (rows, columns) float64, missing values NaN; empty lines are passed over.

    Args:
        most: rows above which the file is refused.

    Raises:
        MotionError: naming the line that has a field too few or one that is no number, or saying that there are too many.
    """
    places = [header.index(column) for column in columns]
    values = array("d")
    try:
        for line, row in enumerate(rows, start=2):
            if not row:
                continue
            if len(row) != len(header):
                raise MotionError(f"{name}: line {line} has {len(row)} fields, the header {len(header)}; correct or remove the line", "unreadable")
            for place in places:
                field = row[place].strip()
                try:
                    values.append(float(field) if field.lower() not in MISSING else np.nan)
                except ValueError as error:
                    raise MotionError(f"{name}: line {line} has {field[:40]!r} for {header[place]}, which is no number; correct or remove the line",
                                      "unreadable") from error
            if most is not None and len(values) > most * len(places):
                raise MotionError(f"{name}: has more than the {most} rows allowed; split it", "too_long")
    except (csv.Error, UnicodeDecodeError) as error:
        raise MotionError(f"{name}: is no CSV text ({_first(error)}); save it again", "unreadable") from error
    return np.frombuffer(values, dtype=np.float64).reshape(-1, len(columns)).copy()


def cut_window(recording: np.ndarray, name: str, *, start: float, seconds: float, rate: int) -> np.ndarray:
    """Resample one window of a recording linearly to a uniform grid. Missing or infinite values of at most `MAX_GAP_SECONDS` are filled.

    Args:
        recording: (samples, 7) as `read_motion` returns it.
        start: of the window, on the recording's clock, in seconds.

    Returns:
        (6, seconds * rate) float32.

    Raises:
        MotionError: if the window is not covered, or holds a longer gap, longer runs of missing values, or nothing but flat channels.
    """
    times, end = recording[:, 0], start + seconds
    # One sample before the window and one after it, where there are such, for the interpolation at its ends.
    first = max(0, int(np.searchsorted(times, start, side="right")) - 1)
    last = int(np.searchsorted(times, end, side="left")) + 1
    rows = recording[first:last]
    period = float(np.median(np.diff(rows[:, 0]))) if len(rows) > 1 else 0.0
    # The last sample stands for one period: 250 samples at 50 Hz are 5 s. Half a period is what jittered clocks are off by.
    missing = max(times[0] - start, end - times[-1] - period)
    if len(rows) < 2 or missing > period / 2 + 1e-9:
        raise MotionError(f"{name}: lasts {_duration(times):.2f} s, too short for {seconds:g} s from {start - times[0]:g} s on; record longer",
                          "too_short")
    with np.errstate(over="ignore"):
        values = rows[:, 1:].astype(np.float32)
    # Each channel has its own: some recorders write accelerometer and gyroscope in turns.
    finite = np.isfinite(values)
    gap = _longest_gap(rows[:, 0], start, end, period)
    if gap > MAX_GAP_SECONDS:
        raise MotionError(f"{name}: has a gap of {gap:.2f} s in its times, more than the {MAX_GAP_SECONDS:g} s allowed (times are read as seconds); "
                          "choose a part without gaps", "gap")
    gap = max(_longest_gap(rows[present, 0], start, end, period) for present in finite.T)
    if gap > MAX_GAP_SECONDS:
        raise MotionError(f"{name}: has values that are missing or not finite for {min(gap, seconds):.2f} s, more than the {MAX_GAP_SECONDS:g} s "
                          "allowed; choose a part that is whole", "not_finite")
    grid = start + np.arange(round(seconds * rate)) / rate
    filled = [np.interp(grid, rows[present, 0], channel[present]) for present, channel in zip(finite.T, values.T, strict=True)]
    motion = np.stack(filled).astype(np.float32)
    if np.ptp(motion, axis=1).max() < FLAT:
        raise MotionError(f"{name}: all six channels are constant; the sensor was off or at fault", "constant")
    return motion


def _longest_gap(times: np.ndarray, start: float, end: float, period: float) -> float:
    """Longest stretch of [start, end] in seconds without a sample; infinite if there is none at all."""
    if len(times) == 0:
        return float("inf")
    inner = float(np.diff(times).max()) if len(times) > 1 else 0.0
    return max(inner, float(times[0]) - start, end - float(times[-1]) - period)


def _duration(times: np.ndarray) -> float:
    """Seconds from the first sample to the end of the last."""
    return float(times[-1] - times[0] + np.median(np.diff(times))) if len(times) > 1 else 0.0


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:100]


def traces(motion: np.ndarray, rate: int) -> bytes:
    """A window (6, samples) as a PNG for people: accelerometer above, gyroscope below; the same bytes for the same values."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    seconds = np.arange(motion.shape[1]) / rate
    for axes, name, channels in zip(figure.subplots(2, 1, sharex=True), ("accelerometer", "gyroscope"), (motion[:3], motion[3:]), strict=True):
        for channel, axis, color in zip(channels, "xyz", ("tab:red", "tab:green", "tab:blue"), strict=True):
            axes.plot(seconds, channel, label=axis, color=color, linewidth=0.9)
        axes.set_ylabel(name)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="x-small", frameon=False)
    axes.set_xlabel("time (s)")
    stream = io.BytesIO()
    figure.savefig(stream, dpi=80, format="png", metadata={"Software": None})
    # 32 colours take a quarter of the bytes, which a report of many windows feels.
    return png(Image.open(stream).convert("RGB").quantize(32))
