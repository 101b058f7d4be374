"""Ego4D's head-mounted motion with the narrations of its videos (paper, section 3.1: the data of the IMU modality).

Layout, as the dataset's own download tool writes it: `v2/annotations/narration.json` (video id -> `narration_pass_1` and `narration_pass_2` ->
`narrations` -> `timestamp_sec`, `narration_text`) and `v2/imu/VIDEO.csv` with `canonical_timestamp_ms`, `gyro_x` …, `accl_x` … . What the dataset's
documentation of the IMU files warns of is dealt with here: canonical times may be missing (the video was trimmed there), unsorted or far off, and
accelerations may be missing. A narration's text begins with a tag: `#C C` is the camera wearer, `#O` somebody else; `#unsure` marks a guess.

The narrations are read one video at a time, and one CSV file after the other.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from anymal.curation.drops import Drop
from anymal.curation.motions import Found, cut, to_drop
from anymal.errors import DataError
from anymal.media.motion import MotionError, numbers, read_rows

NARRATIONS, RECORDINGS = "v2/annotations/narration.json", "v2/imu"
PASSES = ("narration_pass_1", "narration_pass_2")
COLUMNS = ("canonical_timestamp_ms", "accl_x", "accl_y", "accl_z", "gyro_x", "gyro_y", "gyro_z")
REMEDY = "download both with Ego4D's own tool (--datasets imu annotations), or correct the asset"
MAX_ROWS = 6_000_000
"""8 hours at 200 Hz; 350 MB in memory."""
MAX_CHARACTERS = 300
BLOCK = 2**20
MAX_VIDEO_CHARACTERS = 64 * BLOCK
"""Of the JSON of one video's narrations."""
VIDEO_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
WEARER = re.compile(r"#\s*[Cc]\b[\s:,.]*(?:[Cc]\b)?\s*")
OTHER = re.compile(r"#\s*[Oo]\b")
UNSURE = re.compile(r"#\s*unsure\b", re.IGNORECASE)
TAG = re.compile(r"#\w*")
APOSTROPHE = "'"
LETTERED = re.compile(r"\b(man|woman|lady|boy|girl|person|child|kid|guy|baby)\s+[A-Z]\b", re.IGNORECASE)
"""Narrators tell people apart by letters: "talks to man X"."""


class Ego4d:
    """The reader of that layout; `windows` yields one window per narration, centred on its time."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def windows(self, *, seconds: float, rate: int, step_of: Callable[[str], float]) -> Iterator[Found]:
        """See `anymal.curation.motions.Reader`; narrations decide where windows are, so `step_of` is not used.

        Raises:
            DataError: if the narrations or the folder of recordings is missing, or the narrations are not of the known form.
        """
        folder = self._root / RECORDINGS
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; {REMEDY}")
        for video, document in read_narrations(self._root / NARRATIONS):
            yield from self._video(folder, video, document, seconds, rate)

    def _video(self, folder: Path, video: str, document: Any, seconds: float, rate: int) -> Iterator[Found]:
        recording: np.ndarray | Drop | None = None
        for name, time, text in _narrations(video, document):
            said = clean(text)
            if isinstance(said, Drop):
                yield Found(name, video, said)
            elif time is None:
                yield Found(name, video, Drop("no_time"))
            else:
                if recording is None:
                    recording = read_recording(folder, video)
                motion = recording if isinstance(recording, Drop) else cut(recording, name, start=time - seconds / 2, seconds=seconds, rate=rate)
                yield Found(name, video, motion, captions=(said,), details={"start": round(time - seconds / 2, 3)})


class Ego4dFiles:
    """The files of that layout one by one, for evaluation, which cuts its own windows."""

    def narrations(self, path: Path) -> Iterator[tuple[str, str, float | None, str | None]]:
        """Id, video, seconds (None: it has no time) and sentence (None: see `clean`) of each narration of `narration.json`.

        Raises:
            DataError: as `read_narrations`.
        """
        for video, document in read_narrations(path):
            for name, time, text in _narrations(video, document):
                said = clean(text)
                yield name, video, time, None if isinstance(said, Drop) else said

    def recording(self, path: Path) -> np.ndarray:
        """The recording in `VIDEO.csv`, as `read_recording` gives it.

        Raises:
            DataError: if it cannot be read.
        """
        found = read_recording(path.parent, path.stem)
        if isinstance(found, Drop):
            raise DataError(f"{path}: {found.reason}" + (f" ({found.detail})" if found.detail else "") + f"; {REMEDY}")
        return found


def _narrations(video: str, document: Any) -> Iterator[tuple[str, float | None, str]]:
    """Name, time in seconds (None: it has none) and text of each narration of a video, in the order of the file."""
    for number, field in enumerate(PASSES, start=1):
        passed = document.get(field) if isinstance(document, dict) else None
        entries = passed.get("narrations") if isinstance(passed, dict) else None
        for index, entry in enumerate(entries if isinstance(entries, list) else []):
            known = entry if isinstance(entry, dict) else {}
            time, text = known.get("timestamp_sec"), known.get("narration_text")
            if not isinstance(time, int | float) or isinstance(time, bool) or not math.isfinite(time):
                time = None
            yield f"{video}-{number}-{index:05d}", time, text if isinstance(text, str) else ""


def clean(text: str) -> str | Drop:
    """A narration as a plain sentence about the camera wearer, or the reason to leave it out.

    "#C C picks a cup" becomes "The camera wearer picks a cup."
    """
    text = " ".join(text.replace("_", " ").split())
    if len(text) > MAX_CHARACTERS:
        return Drop("caption_too_long", f"{len(text)} characters")
    if OTHER.match(text):
        return Drop("caption_is_other_person", text)
    if UNSURE.search(text):
        return Drop("unsure", text)
    tag = WEARER.match(text)
    if tag is None:
        return Drop("no_caption", f"no tag #C: {text}" if text else "empty")
    said = TAG.sub(" ", OTHER.sub(" ", text[tag.end() :]))
    said = LETTERED.sub(r"\1", re.sub(r"\bC\b(?=\s|'|$|[.,;])", "the camera wearer", said))
    said = re.sub(r"\s+([.,;])", r"\1", " ".join(said.split())).strip(" .,;:-!?")
    if not re.search(r"[A-Za-z]{2}", said):
        return Drop("no_caption", text)
    return f"The camera wearer{'' if said.startswith(APOSTROPHE) else ' '}{said[0].lower()}{said[1:]}."


def read_recording(folder: Path, video: str) -> np.ndarray | Drop:
    """A video's recording, (samples, 7) float64 as `anymal.media.motion.read_motion` returns it, or the reason why there is none."""
    if not VIDEO_ID.fullmatch(video):
        return Drop("unreadable", f"{video[:60]!r} is no video id")
    path = folder / f"{video}.csv"
    if not path.is_file():
        return Drop("no_recording", path.name)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            header, rows = read_rows(stream, path.name)
            missing = [column for column in COLUMNS if column not in header]
            if missing:
                return Drop("unreadable", f"{path.name}: has no column {missing[0]}")
            table = numbers(header, rows, COLUMNS, path.name, most=MAX_ROWS)
    except MotionError as error:
        return to_drop(error)
    table = table[np.isfinite(table[:, 0])]
    table[:, 0] /= 1000.0
    table = table[np.argsort(table[:, 0], kind="stable")]
    if len(table) < 2:
        return Drop("unreadable", f"{path.name}: holds no sample that has a time in the video")
    return table[np.concatenate([[True], np.diff(table[:, 0]) > 0])]


def read_narrations(path: Path) -> Iterator[tuple[str, Any]]:
    """Each video's id and its part of `narration.json`, one in memory at a time, in the order of the file.

    Members of the outer object that are no video (`version`, `date` …) are passed over; the videos may lie in a member `videos` of it.

    Raises:
        DataError: if the file is missing, is no JSON object, or one video's part is larger than `MAX_VIDEO_CHARACTERS`.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            yield from _Members(stream, path).objects()
    except FileNotFoundError as error:
        raise DataError(f"{path}: not found; {REMEDY}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no UTF-8 text; download it again") from error


class _Members:
    """Walks through the members of a JSON object without reading it whole."""

    def __init__(self, stream: TextIO, path: Path) -> None:
        self._stream, self._path = stream, path
        self._text, self._at = "", 0
        self._decoder = json.JSONDecoder()

    def objects(self) -> Iterator[tuple[str, Any]]:
        """The members whose value is an object."""
        self._take("{")
        if self._next() == "}":
            self._take("}")
            return
        while True:
            key = self._value()
            if not isinstance(key, str):
                raise self._damaged()
            self._take(":")
            if key == "videos" and self._next() == "{":
                yield from self.objects()
            else:
                value = self._value()
                if isinstance(value, dict):
                    yield key, value
            if self._next() == "}":
                self._take("}")
                return
            self._take(",")

    def _damaged(self) -> DataError:
        return DataError(f"{self._path}: is cut short or no JSON object of videos; download it again")

    def _more(self) -> bool:
        """Read another block and forget what was used."""
        block = self._stream.read(max(BLOCK, len(self._text) - self._at))
        self._text, self._at = self._text[self._at :] + block, 0
        return bool(block)

    def _next(self) -> str:
        """The next character that is no space; it stays."""
        while True:
            while self._at < len(self._text):
                if not self._text[self._at].isspace():
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                raise self._damaged()

    def _take(self, character: str) -> None:
        if self._next() != character:
            raise self._damaged()
        self._at += 1

    def _value(self) -> Any:
        """The next JSON value. Read on until the character after it is there too: without it, 12 may be the beginning of 123."""
        self._next()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except (json.JSONDecodeError, RecursionError):
                end = len(self._text)
            if end < len(self._text):
                self._at = end
                return value
            if len(self._text) - self._at > MAX_VIDEO_CHARACTERS:
                raise DataError(f"{self._path}: one video's narrations hold more than the {MAX_VIDEO_CHARACTERS} characters allowed, or are no JSON; "
                                "download it again")
            if not self._more():
                raise self._damaged()
