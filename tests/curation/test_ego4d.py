"""Ego4D's layout, written here as the dataset's tool writes it: what is said becomes plain sentences, and each bad part is dropped for its reason."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anymal.curation import ego4d
from anymal.curation.ego4d import Ego4d, clean, read_narrations
from anymal.curation.images import Drop
from anymal.curation.motions import Found
from anymal.errors import DataError

HEADER = "component_idx,component_timestamp_ms,canonical_timestamp_ms,gyro_x,gyro_y,gyro_z,accl_x,accl_y,accl_z"
VIDEO = "0a1b2c3d-0000-4000-8000-000000000001"


def narration(time: float | None, text: str) -> dict[str, Any]:
    return {"timestamp_sec": time, "timestamp_frame": 0, "narration_text": text, "annotation_uid": "u"}


def narrate(*first: dict[str, Any], second: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    return {"narration_pass_1": {"narrations": list(first), "summaries": []}, "narration_pass_2": {"narrations": list(second)}, "status": "complete"}


def write_recording(root: Path, video: str, seconds: float = 20.0, rate: float = 200.0, change: Any = None) -> np.ndarray:
    """The CSV of one video; returns its (samples, 7): milliseconds, accelerometer, gyroscope."""
    times = np.arange(round(seconds * rate)) / rate
    table = np.column_stack([times * 1000, np.sin(np.outer(times, np.arange(1, 7)))])
    lines = [HEADER] + [",".join(["0", repr(row[0]), repr(row[0]), *map(repr, row[4:]), *map(repr, row[1:4])]) for row in table.tolist()]
    folder = root / "v2" / "imu"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{video}.csv").write_text("\n".join(change(lines) if change else lines) + "\n", encoding="utf-8")
    return table


def write_narrations(root: Path, document: Any) -> Path:
    path = root / "v2" / "annotations" / "narration.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    (root / "v2" / "imu").mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path


def read(root: Path, rate: int = 200) -> list[Found]:
    return list(Ego4d(root).windows(seconds=5.0, rate=rate, step_of=lambda _: 5.0))


@pytest.mark.parametrize(("text", "sentence"), [
    ("#C C picks a cup", "The camera wearer picks a cup."),
    ("#C C picks a cup.\n", "The camera wearer picks a cup."),
    ("#c c  Opens   the_door ", "The camera wearer opens the door."),
    ("#C walks around", "The camera wearer walks around."),
    ("#C C's hand holds a pan", "The camera wearer's hand holds a pan."),
    ("#C C wipes C's hand on the towel", "The camera wearer wipes the camera wearer's hand on the towel."),
    ("#C C talks to #O man X .", "The camera wearer talks to man."),
    ("#C C cuts the carrot with a knife, then stops!", "The camera wearer cuts the carrot with a knife, then stops."),
    ("#C Cuts the carrot", "The camera wearer cuts the carrot."),
])
def test_narrations_become_plain_sentences(text: str, sentence: str):
    assert clean(text) == sentence


@pytest.mark.parametrize(("text", "reason"), [
    ("#O A man X walks", "caption_is_other_person"), ("#o a lady B talks to C", "caption_is_other_person"), ("#C C holds #unsure", "unsure"),
    ("#unsure", "unsure"), ("#C C picks a #Unsure in the box", "unsure"), ("", "no_caption"), ("#C C", "no_caption"), ("#C C .", "no_caption"),
    ("picks a cup", "no_caption"), ("#Summary C cooked", "no_caption"), ("#C C " + "picks a cup and " * 50, "caption_too_long"),
])
def test_what_is_not_said_of_the_wearer_is_dropped(text: str, reason: str):
    dropped = clean(text)
    assert isinstance(dropped, Drop) and dropped.reason == reason


def test_windows_are_centred_on_the_narrations(tmp_path: Path):
    table = write_recording(tmp_path, VIDEO)
    write_narrations(tmp_path, {VIDEO: narrate(narration(10.0, "#C C picks a cup"), narration(4.0, "#C C stands"),
                                               second=[narration(12.5, "#C C drinks water")])})
    found = read(tmp_path)
    assert [one.captions for one in found] == [(f"The camera wearer {said}.",) for said in ("picks a cup", "stands", "drinks water")]
    assert {one.group for one in found} == {VIDEO} and len({one.name for one in found}) == 3
    for one, start in zip(found, (7.5, 1.5, 10.0), strict=True):
        assert isinstance(one.motion, np.ndarray) and one.motion.shape == (6, 1000) and one.details["start"] == start
        assert np.allclose(one.motion, table[round(start * 200):][:1000, 1:].T, atol=1e-5)
    assert read(tmp_path, 50)[0].motion.shape == (6, 250)  # type: ignore[union-attr]


def spoil(lines: list[str]) -> list[str]:
    """What the documentation warns of: no canonical time, unsorted packets, repeated and far-off times."""
    body = lines[1:]
    body[100:300] = body[200:300] + body[100:200]
    nulls = [f"0,{index}.0,,0,0,0,9,9,9" for index in range(50)] + ["0,1.0,NULL,0,0,0,9,9,9"]
    far = ["0,1.0,1e15,5,5,5,5,5,5", "0,1.0,-1e15,5,5,5,5,5,5"]
    return [lines[0], *nulls, *body, body[500].replace(",", ",", 1), *far]


def test_known_faults_of_the_files_are_mended(tmp_path: Path):
    document = {VIDEO: narrate(narration(4.0, "#C C stands"), narration(10.0, "#C C sits"))}
    write_recording(tmp_path / "whole", VIDEO)
    write_recording(tmp_path / "spoilt", VIDEO, change=spoil)
    for root in ("whole", "spoilt"):
        write_narrations(tmp_path / root, document)
    for whole, spoilt in zip(read(tmp_path / "whole"), read(tmp_path / "spoilt"), strict=True):
        assert np.array_equal(whole.motion, spoilt.motion)  # type: ignore[arg-type]


def blank(first: int, last: int) -> Any:
    """Accelerations missing on these lines."""
    return lambda lines: [line if not first <= at < last else ",".join([*line.split(",")[:6], "", "", ""]) for at, line in enumerate(lines)]


def test_each_bad_part_is_dropped_for_its_reason(tmp_path: Path):
    videos = ["good", "nan", "gaps", "flat", "absent", "empty", "columns", "words", "never"]
    write_recording(tmp_path, "good")
    write_recording(tmp_path, "nan", change=blank(1800, 2200))
    write_recording(tmp_path, "gaps", change=lambda lines: lines[:1900] + lines[2100:])
    write_recording(tmp_path, "flat", change=lambda lines: [lines[0], *(",".join([*line.split(",")[:3], *"000111"]) for line in lines[1:])])
    write_recording(tmp_path, "columns", change=lambda lines: [lines[0].replace("accl_z", "magn_z"), *lines[1:]])
    write_recording(tmp_path, "words", change=lambda lines: [*lines, "0,1.0,1.0,a,b,c,d,e,f"])
    write_recording(tmp_path, "never", change=lambda lines: [lines[0], "0,1.0,,0,0,0,9,9,9"])
    (tmp_path / "v2/imu/empty.csv").write_bytes(b"")
    document = {video: narrate(narration(10.0, "#C C sits")) for video in videos} | {
        "../good": narrate(narration(10.0, "#C C sits")), "odd": 5, "odder": {"narration_pass_1": {"narrations": [3, {}]}},
        "none": {"status": "redacted"},
    }
    document["good"] = narrate(
        narration(10.0, "#C C sits"), narration(1.0, "#C C starts"), narration(19.0, "#C C ends"), narration(None, "#C C walks"),
        narration(float("nan"), "#C C walks"), narration(10.0, "#O A man walks"), narration(10.0, "#C C holds #unsure"), narration(10.0, "sits"))
    write_narrations(tmp_path, document)
    found = read(tmp_path)
    reasons = Counter(one.motion.reason if isinstance(one.motion, Drop) else "kept" for one in found)
    assert reasons == {"kept": 1, "too_short": 2, "no_time": 2, "caption_is_other_person": 1, "unsure": 1, "no_caption": 3, "not_finite": 1, "gap": 1,
                       "constant": 1, "no_recording": 1, "unreadable": 5}
    details = {one.group: one.motion.detail for one in found if isinstance(one.motion, Drop)}
    assert details["columns"] == "columns.csv: has no column accl_z" and "is no video id" in details["../good"]
    assert details["absent"] == "absent.csv" and "no sample that has a time" in details["never"]


def test_one_file_is_read_per_video_and_too_long_ones_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for video in ("a", "b"):
        write_recording(tmp_path, video)
    write_narrations(tmp_path, {video: narrate(*(narration(5.0 + at, "#C C sits") for at in range(3))) for video in ("a", "b", "c")})
    opened: list[str] = []
    original = ego4d.read_recording
    monkeypatch.setattr(ego4d, "read_recording", lambda folder, video: opened.append(video) or original(folder, video))
    assert len(read(tmp_path)) == 9 and opened == ["a", "b", "c"]
    monkeypatch.setattr(ego4d, "MAX_ROWS", 100)
    assert {one.motion.reason for one in read(tmp_path) if isinstance(one.motion, Drop)} == {"unreadable", "no_recording"}


def test_narrations_are_read_one_video_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ego4d, "BLOCK", 16)
    document = {f"v{index}": narrate(narration(index, f'#C C says "{{{index}}}" é')) for index in range(20)} | {"n": 12, "empty": {}}
    path = write_narrations(tmp_path, document)
    expected = [(key, value) for key, value in document.items() if isinstance(value, dict)]
    assert list(read_narrations(path)) == expected
    for form in (json.dumps(document, indent=2), json.dumps({"version": "2", "date": None, "videos": document})):
        path.write_text(form, encoding="utf-8")
        assert list(read_narrations(path)) == expected
    path.write_text("{}", encoding="utf-8")
    assert list(read_narrations(path)) == []


@pytest.mark.parametrize("content", ['{"a": {"b": 1}', '{"a": {"b": ', "", "[1, 2]", '{"a" 1}', "{1: 2}", "nonsense", '{"a": {"b": 1}; "c": {}}'])
def test_damaged_narrations_are_refused(tmp_path: Path, content: str):
    path = write_narrations(tmp_path, content)
    with pytest.raises(DataError, match=r"narration\.json: is cut short or no JSON object of videos; download it again"):
        list(read_narrations(path))


def test_narrations_of_unbounded_length_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ego4d, "MAX_VIDEO_CHARACTERS", 5000)
    monkeypatch.setattr(ego4d, "BLOCK", 1000)
    path = write_narrations(tmp_path, {"a": narrate(*(narration(5.0, "#C C sits") for _ in range(1000)))})
    with pytest.raises(DataError, match="more than the 5000 characters"):
        list(read_narrations(path))
    path.write_bytes('{"é": {}}'.encode("latin-1"))
    with pytest.raises(DataError, match="no UTF-8"):
        list(read_narrations(path))


def test_missing_parts_of_the_layout_are_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"v2/imu: no such folder; download both"):
        read(tmp_path)
    write_recording(tmp_path, VIDEO)
    with pytest.raises(DataError, match=r"v2/annotations/narration\.json: not found; download both"):
        read(tmp_path)


def test_stream_of_narrations_is_not_read_ahead():
    """The second block is asked for only when the first is used up."""
    text = json.dumps({"a": narrate(narration(1.0, "#C C sits")), "b": {"x": "y" * (3 * ego4d.BLOCK)}})
    stream = io.StringIO(text)
    members = ego4d._Members(stream, Path("x")).objects()
    assert next(members)[0] == "a" and stream.tell() <= ego4d.BLOCK
    assert next(members)[0] == "b"
