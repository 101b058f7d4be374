"""Motion recordings: every form that is read gives the same window, every one that is not says why in one sentence."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anymal.errors import DataError
from anymal.media import motion
from anymal.media.motion import MAX_BYTES, MotionError, cut_window, open_motion, read_motion, traces

COLUMNS = "t,ax,ay,az,gx,gy,gz"


def recording(seconds: float = 6.0, rate: float = 50.0, start: float = 0.0) -> np.ndarray:
    """(samples, 7): six sines of different speed."""
    times = np.arange(round(seconds * rate)) / rate
    values = np.sin(np.outer(times, np.arange(1, 7)))
    return np.column_stack([times + start, values]).astype(np.float64)


def npy(table: Any, **settings: Any) -> io.BytesIO:
    stream = io.BytesIO()
    np.save(stream, table, **settings)
    return io.BytesIO(stream.getvalue())


def text(table: np.ndarray, header: str = COLUMNS) -> io.BytesIO:
    lines = [header, *(",".join(f"{value:.9g}" for value in row) for row in table)]
    return io.BytesIO(("\n".join(lines) + "\n").encode())


def test_window_is_the_recording_itself_at_its_own_rate():
    table = recording().astype(np.float32)
    window = open_motion(npy(table), "walk.npy", seconds=5, rate=50)
    assert window.shape == (6, 250) and window.dtype == np.float32
    assert np.allclose(window, table[:250, 1:].T, atol=1e-6)


def test_all_forms_give_the_same_window(tmp_path: Path):
    table = recording(start=1e6)
    shuffled = [6, 0, 3, 2, 1, 5, 4]
    names = [COLUMNS.split(",")[place] for place in shuffled]
    milliseconds = table.copy()
    milliseconds[:, 0] = (milliseconds[:, 0] - 1e6) * 1000
    file = tmp_path / "a.npy"
    np.save(file, np.asfortranarray(table))
    expected = open_motion(npy(table), "a", seconds=5, rate=200)
    assert expected.shape == (6, 1000)
    for source in (file, text(milliseconds[:, shuffled], ", ".join(names).replace("t,", "T_MS,").replace(" ,", ",")),
                   text(milliseconds, COLUMNS.replace("t,", "t_ms,"))):
        assert np.allclose(open_motion(source, "a", seconds=5, rate=200), expected, atol=1e-5)


def test_irregular_times_are_resampled_linearly():
    times = np.array([0.0, 0.3, 0.5, 0.9, 1.2])
    table = np.column_stack([times, *[times * slope for slope in range(1, 7)]])
    window = open_motion(npy(table), "a", seconds=1.0, rate=10)
    assert np.allclose(window, np.outer(np.arange(1, 7), np.arange(10) / 10), atol=1e-6)


def test_longer_recording_gives_its_first_window_and_ignores_what_comes_later():
    table = recording(20)
    table[600:, 3] = np.nan
    assert np.allclose(open_motion(npy(table), "a", seconds=5, rate=50), table[:250, 1:].T, atol=1e-6)


def test_short_runs_of_missing_values_are_interpolated():
    table = recording()
    whole = open_motion(npy(table), "a", seconds=5, rate=50)
    table[100:110, 2] = np.nan
    table[0:3, 4] = np.inf
    table[40, 1] = 1e300  # more than float32 holds
    mended = open_motion(npy(table), "a", seconds=5, rate=50)
    assert np.isfinite(mended).all() and np.abs(mended - whole)[:, 3:].max() < 0.1
    assert np.array_equal(mended[[2, 4, 5]], whole[[2, 4, 5]]) and (mended[3, :3] == whole[3, 3]).all()
    blanks = text(table).getvalue().replace(b"nan", b"")
    assert np.allclose(open_motion(io.BytesIO(blanks), "a", seconds=5, rate=50), mended, atol=1e-5)


def test_sensors_that_are_recorded_in_turns_are_brought_together():
    table = recording(6, 100)
    table[::2, 1:4], table[1::2, 4:] = np.nan, np.nan
    assert np.abs(open_motion(npy(table), "a", seconds=5, rate=100) - recording(6, 100)[:500, 1:].T)[:, 1:-1].max() < 0.01


def bad(change: str) -> Any:  # noqa: PLR0911, PLR0912 (one per case)
    table = recording()
    match change:
        case "empty":
            return io.BytesIO()
        case "no rows":
            return npy(table[:0])
        case "header only":
            return io.BytesIO(COLUMNS.encode())
        case "16 channels":
            return npy(np.zeros((300, 17)))
        case "no time":
            return npy(table[:, 1:])
        case "3 dimensions":
            return npy(np.zeros((2, 3, 7)))
        case "integers":
            return npy(np.zeros((300, 7), dtype=np.int64))
        case "pickled":
            return npy(np.array({"a": 1}, dtype=object), allow_pickle=True)
        case "pickle":
            return io.BytesIO(pickle.dumps({"a": table}))
        case "cut":
            return io.BytesIO(npy(table).getvalue()[:-100])
        case "bad header":
            return io.BytesIO(b"\x93NUMPY\x01\x00\x10\x00{'descr': nonsense")
        case "nested header":
            return io.BytesIO(b"\x93NUMPY\x01\x00\x10\x27" + b"(" * 0x2710)
        case "negative":
            return io.BytesIO(npy(table).getvalue().replace(b"(300, 7)", b"(-30, 7)"))
        case "missing column":
            return text(table, COLUMNS.replace("gz", "mz"))
        case "two clocks":
            return text(np.column_stack([table, table[:, 0]]), COLUMNS + ",t_ms")
        case "column twice":
            return text(np.column_stack([table, table[:, 0]]), COLUMNS + ",ax")
        case "words":
            return io.BytesIO(text(table).getvalue() + b"1,2,3,four,5,6,7\n")
        case "ragged":
            return io.BytesIO(text(table).getvalue() + b"1,2,3\n")
        case "binary":
            return io.BytesIO(os.urandom(4096))
        case "nan":
            table[50:120, 5] = np.nan
        case "all nan":
            table[:, 1:] = np.nan
        case "inf":
            table[50:120, 5] = -np.inf
        case "constant":
            table[:, 1:] = [0, 0, 1, 0, 0, 0]
        case "backwards":
            table[7, 0] = 0.01
        case "same time":
            table[7, 0] = table[6, 0]
        case "gap":
            table = np.concatenate([table[:100], table[150:]])
        case "milliseconds":
            table[:, 0] *= 1000
        case "short":
            table = table[:240]
        case "one sample":
            table = table[:1]
        case "10 hours":
            table = recording(36_000, 2)
        case _:
            raise AssertionError(change)
    return npy(table)


@pytest.mark.parametrize(("change", "reason", "sentence"), [
    ("empty", "empty", "is empty"),
    ("no rows", "empty", "holds no sample"),
    ("header only", "empty", "holds no sample"),
    ("16 channels", "shape", "17 columns; it must have 7"),
    ("no time", "shape", "6 columns; it must have 7 columns: time in seconds"),
    ("3 dimensions", "shape", r"shape \(2, 3, 7\)"),
    ("integers", "shape", "type int64"),
    ("pickled", "unreadable", "pickled objects"),
    ("pickle", "unreadable", "neither a .npy file nor CSV"),
    ("cut", "unreadable", "ends before its 300 rows do"),
    ("bad header", "unreadable", "damaged"),
    ("nested header", "unreadable", "damaged"),
    ("negative", "unreadable", "ends before its -30 rows do|damaged"),
    ("missing column", "shape", "its header names"),
    ("two clocks", "shape", "name one of t"),
    ("column twice", "shape", "'ax' twice"),
    ("words", "unreadable", "line 302 has 'four' for az"),
    ("ragged", "unreadable", "line 302 has 3 fields, the header 7"),
    ("binary", "unreadable", "neither a .npy file nor CSV|no CSV"),
    ("nan", "not_finite", "not finite for 1.42 s"),
    ("all nan", "not_finite", "not finite for 5.00 s"),
    ("inf", "not_finite", "not finite for 1.42 s"),
    ("constant", "constant", "all six channels are constant"),
    ("backwards", "time", r"row 8 is at 0.01 s, the one before at 0.12 s"),
    ("same time", "time", "do not increase"),
    ("gap", "gap", "a gap of 1.02 s"),
    ("milliseconds", "too_long|gap", "lasts 6000 s"),
    ("short", "too_short", "lasts 4.80 s, too short for 5 s"),
    ("one sample", "too_short", "too short"),
    ("10 hours", "too_long", "lasts 36000 s, more than the 3600 s allowed"),
])
def test_bad_recordings_are_refused_in_one_sentence(change: str, reason: str, sentence: str):
    with pytest.raises(MotionError, match=sentence) as caught:
        open_motion(bad(change), "walk.npy", seconds=5, rate=50)
    message = str(caught.value)
    assert isinstance(caught.value, DataError) and caught.value.reason in reason.split("|")
    assert message.startswith("walk.npy: ") and "\n" not in message and ";" in message


def test_too_large_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "big.csv"
    with file.open("wb") as stream:
        stream.truncate(MAX_BYTES + 1)
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("was read"))
    with pytest.raises(MotionError, match=f"big.csv: holds more than the {MAX_BYTES} bytes"):
        read_motion(file, "big.csv")
    monkeypatch.setattr(motion, "MAX_BYTES", 1000)
    with pytest.raises(MotionError, match="more than the 1000 bytes"):
        read_motion(npy(recording()), "stream")


def test_files_that_are_not_there_are_named(tmp_path: Path):
    for path, message in ((tmp_path / "no.csv", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(MotionError, match=rf"walk: cannot be read \({message}.*\); give a recording"):
            open_motion(path, "walk", seconds=5, rate=50)


def test_array_is_not_made_when_the_header_promises_too_much():
    data = bytearray(npy(recording()).getvalue())
    data = data.replace(b"(300, 7)", b"(9999999999, 7)".ljust(8))
    with pytest.raises(MotionError, match=r"ends before its 9999999999 rows do|damaged"):
        read_motion(io.BytesIO(bytes(data)), "a")


def test_windows_from_the_middle_and_beyond_the_ends():
    table = recording(10)
    window = cut_window(table, "a", start=4.0, seconds=5, rate=50)
    assert np.allclose(window, table[200:450, 1:].T, atol=1e-6)
    assert cut_window(table, "a", start=5.0, seconds=5, rate=50).shape == (6, 250)
    for start in (-0.5, 5.5, 50.0, -50.0):
        with pytest.raises(MotionError, match="too short") as caught:
            cut_window(table, "a", start=start, seconds=5, rate=50)
        assert caught.value.reason == "too_short"


def test_traces_are_a_picture_and_the_same_bytes_each_time():
    window = open_motion(npy(recording()), "a", seconds=5, rate=50)
    picture = traces(window, 50)
    assert picture == traces(window, 50) != traces(window[::-1], 50)
    with Image.open(io.BytesIO(picture)) as image:
        assert image.format == "PNG" and image.size == (400, 240)
