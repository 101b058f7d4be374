"""Instruction files: what a record must be, and that what was written is read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anymal.data.instructions import Instruction, InvalidRecordError, MediumName, parse_instruction, read_instructions, write_instructions
from anymal.errors import DataError

LABELS = {"origin": "human", "kind": "conversation", "source": "us", "license": "CC0-1.0"}


def said(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


def record(*texts: str, **changes: Any) -> dict[str, Any]:
    return {"id": "1", "image": "a.jpg", "conversations": said(*(texts or ("<image>\nWhat is it?", "A cat."))), **LABELS} | changes


def test_media_stand_in_the_order_of_their_placeholders():
    parsed = parse_instruction(record("<audio> or <image>?", "Both.", "And <image>?", "No.", image=["a.jpg", "b.jpg"], audio="s.flac"))
    assert parsed.media == (MediumName("audio", "s.flac"), MediumName("image", "a.jpg"), MediumName("image", "b.jpg"))
    assert [medium.key for medium in parsed.media] == ["s", "a", "b"]
    assert parsed.turns == (("<audio> or <image>?", "Both."), ("And <image>?", "No."))


@pytest.mark.parametrize("question", ["<image>\nWhat is it?", "What is it?\n<image>", "What is <image> then?"])
def test_a_placeholder_may_stand_anywhere_in_a_question(question: str):
    assert parse_instruction(record(question, "A cat.")).turns[0][0] == question


def test_labels_come_from_the_record_first():
    bare = {field: value for field, value in record(license="MIT").items() if field in ("id", "image", "conversations", "license")}
    assert parse_instruction(bare, **LABELS).license == "MIT"
    assert parse_instruction(bare, **LABELS).origin == "human"


@pytest.mark.parametrize(("bad", "reason"), [
    ("text", "not_a_record"), ({}, "not_a_record"), (record(id=None), "not_a_record"), (record(id=True), "not_a_record"),
    (record(id=""), "not_a_record"), (record(image=3), "not_a_record"), (record(image=["a.jpg", None]), "not_a_record"),
    (record(image=""), "not_a_record"), (record(conversations=[]), "no_conversation"), (record(conversations="hello"), "no_conversation"),
    (record(conversations=["hello"]), "roles"), (record(conversations=[{"from": "human"}]), "roles"), (record("<image> what?"), "roles"),
    (record("<image> a?", "b", "c?"), "roles"), (record(conversations=said("<image>a?", "b")[::-1]), "roles"),
    (record(conversations=[{"from": "system", "value": "x"}, *said("<image>a?", "b")]), "roles"),
    (record("<image>\n", "A cat."), "empty_question"), (record("<image>what?", "  "), "empty_answer"),
    (record("What?", "A cat."), "placeholder_mismatch"), (record("<image><image> what?", "A cat."), "placeholder_mismatch"),
    (record("<audio> what?", "A cat."), "placeholder_mismatch"), (record("<image> what?", "<image> a cat"), "placeholder_mismatch"),
    (record(license=None), "unlabelled"), (record(license=""), "unlabelled"), (record(kind=3), "unlabelled"), (record(origin="robot"), "unlabelled"),
])  # fmt: skip
def test_bad_records_have_a_reason(bad: object, reason: str):
    with pytest.raises(InvalidRecordError) as caught:
        parse_instruction(bad)
    assert caught.value.reason == reason


def test_what_is_written_is_read_back(tmp_path: Path):
    made = [parse_instruction(record(id=str(number))) for number in range(3)]
    made.append(parse_instruction(record("<image> ü <image>?", "–", id="two", image=["b.jpg", "a.jpg"])))
    assert write_instructions(tmp_path / "train.json", made) == 4
    assert read_instructions(tmp_path, "train") == made
    assert len((tmp_path / "train.json").read_text(encoding="utf-8").splitlines()) == 6


def test_no_instruction_is_a_valid_file(tmp_path: Path):
    assert write_instructions(tmp_path / "val.json", []) == 0
    assert read_instructions(tmp_path, "val") == []


def test_media_of_several_modalities_keep_their_places(tmp_path: Path):
    media = (MediumName("imu", "m.npy"), MediumName("image", "a.jpg"), MediumName("imu", "n.npy"))
    made = Instruction("x", media, (("<imu><image><imu>?", "yes"),), "template", "pair", "us", "MIT")
    write_instructions(tmp_path / "train.json", [made])
    assert read_instructions(tmp_path, "train") == [made]


@pytest.mark.parametrize(("text", "message"), [
    (None, "no such file"), ("[", "not valid JSON"), ("{}", "list of records"), (json.dumps([record(), record()]), "comes twice"),
    (json.dumps([record(license="")]), "lacks license"),
])  # fmt: skip
def test_damaged_files_are_refused(tmp_path: Path, text: str | None, message: str):
    if text is not None:
        (tmp_path / "train.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_instructions(tmp_path, "train")
