"""Parts of media, and which samples stand in for each other."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from anymal.errors import DataError
from anymal.evaluation.benchmarks.items import Item, Medium
from anymal.evaluation.benchmarks.media import Library, distinct
from anymal.evaluation.benchmarks.running import pools
from anymal.media.video import cut_video, open_video
from tests.tiny import clip


@pytest.fixture(scope="module")
def film() -> bytes:
    """A second of red, one of green, one of blue."""
    return clip(("red", "green", "blue"), frames=8, rate=8)


def colours(data: bytes) -> list[str]:
    means = [np.asarray(frame).mean(axis=(0, 1)) for frame in open_video(io.BytesIO(data), "part", frames=4)]
    return [("red", "green", "blue")[int(np.argmax(mean))] for mean in means]


@pytest.mark.parametrize(("start", "end", "seen"), [
    (0.0, 1.0, ["red"] * 4), (1.0, 2.0, ["green"] * 4), (0.5, 2.5, ["red", "green", "green", "blue"]), (2.0, 99.0, ["blue"] * 4),
    (1.2, 1.3, ["green"] * 4)])
def test_a_part_of_a_video_shows_what_is_in_it(film, start, end, seen):
    assert colours(cut_video(io.BytesIO(film), "film", start=start, end=end)) == seen
    assert cut_video(io.BytesIO(film), "film", start=start, end=end) == cut_video(io.BytesIO(film), "film", start=start, end=end)


@pytest.mark.parametrize("start", [3.0, 50.0, -1.0])
def test_a_part_that_is_not_there_is_refused(film, start):
    with pytest.raises(DataError, match=r"film: lasts 3\.00 s, and the part from .* is asked for; give the whole video"):
        cut_video(io.BytesIO(film), "film", start=start, end=start + 1)


class Recordings:
    """A recording of ten seconds at 50 Hz whose first channel is the time."""

    def __init__(self):
        self.read: list[Path] = []

    def recording(self, path):
        self.read.append(path)
        if path.name == "bad.csv":
            raise DataError(f"{path}: has no column gyro_x")
        times = np.arange(500)[:, None] / 50
        return np.concatenate([times, times, np.sin(times), *([np.ones_like(times)] * 4)], axis=1)


def test_a_window_of_a_recording_starts_at_zero_and_is_read_once(tmp_path):
    motions = Recordings()
    library = Library(None, tmp_path, motions)  # type: ignore[arg-type]
    for start in (0.0, 4.0):
        found = np.load(library._source(Medium("imu", "a", Path("a.csv"), start, start + 5)), allow_pickle=False)
        assert found.shape == (1000, 7) and found[0, 0] == 0
        assert found[:, 1] == pytest.approx(start + np.arange(1000) / 200, abs=1e-3)
    for _ in range(2):
        with pytest.raises(DataError, match="has no column gyro_x"):
            library._source(Medium("imu", "b", Path("bad.csv"), 0.0, 5.0))
    assert motions.read == [Path("a.csv"), Path("bad.csv")]


def test_pools_keep_files_whole_and_leave_none_alone():
    items = [Item(number, Medium("image", str(number // 3), Path(str(number // 3)))) for number in range(63)]
    for size, sizes in ((4, [12, 12, 12, 12, 15]), (21, [63]), (50, [63]), (2, None)):
        found = pools(items, limit=None, size=size, seed=1)
        assert sorted(item.id for pool in found for item in pool) == list(range(63))
        if sizes is not None:
            assert sorted(map(len, found)) == sizes
        for pool in found:
            assert len({item.medium.name for item in pool}) >= 2
    windows = [Item(number, Medium("imu", f"{number // 9}#{number}", Path(str(number // 9)))) for number in range(63)]
    assert sorted(map(len, pools(windows, limit=None, size=10, seed=1))) == [18, 18, 27]
    assert pools(items, limit=10, size=4, seed=1) != pools(items, limit=10, size=4, seed=2)
    assert sum(map(len, pools(items, limit=10, size=4, seed=1))) == 10


def test_each_medium_comes_once():
    media = [Medium("image", name, Path(name)) for name in "abacb"]
    assert [medium.name for medium in distinct(media)] == ["a", "b", "c"]
