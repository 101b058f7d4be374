"""Readers and rules of imported instructions, on real files of all modalities and real shards."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from anymal.curation.instruction_media import Known, MediaSettings, locate, preview, read_members
from anymal.curation.instruction_output import statistics
from anymal.curation.instruction_readers import FLAGS, Raw, media_path, read_label_studio, read_llava
from anymal.curation.instructions import REASONS, Imported, Source, TextLimits, import_records, normalise
from anymal.data.manifest import write_manifest
from anymal.data.shards import Sample, ShardWriter
from anymal.errors import ConfigError, DataError
from anymal.media.audio import write_flac
from tests.tiny import MEDIA, clip, motion, picture, sound

TEMPLATES = Path(__file__).parents[2] / "manifests" / "label-studio"
SETTINGS: dict[str, Any] = {
    "max_bytes": 1_000_000, "same_bits": 4, "same_colour": 12.0,
    "image": {"max_pixels": 1_000_000, "min_side": 16, "size": 64, "background": (255, 255, 255), "jpeg_quality": 90, "face_threshold": 0.6},
    "audio": {"rate": 8000, "max_seconds": 2.0}, "video": {"side": 64, "min_side": 16, "rate": 8, "max_seconds": 5.0},
    "imu": {"rate": 50, "seconds": 5.0},
}


def drawing(seed: int) -> bytes:
    """A picture of coloured blocks that no other seed looks like."""
    blocks = np.random.default_rng((seed, 5)).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(blocks).resize((64, 64), Image.Resampling.NEAREST).save(stream, "PNG")
    return stream.getvalue()


def ask(identity: object, media: str | list[str], question: str = "What is it?", answer: str = "A thing.", modality: str = "image",
        **changes: Any) -> dict[str, Any]:
    count = 1 if isinstance(media, str) else len(media)
    said = [{"from": "human", "value": f"<{modality}>" * count + f"\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": identity, modality: media, "conversations": said} | changes


def curate(folder: Path, samples: dict[str, Sequence[Sample]]) -> Path:
    for split, members in samples.items():
        with ShardWriter(folder, split, 4) as writer:
            for sample in members:
                writer.write(sample)
    write_manifest(folder)
    return folder


def sample(key: str, split: str, data: bytes, extension: str = "png", **meta: Any) -> Sample:
    return Sample(key, extension, data, {"split": split, "group": f"group-{key}", "sha256": hashlib.sha256(data).hexdigest(), "questions": [],
                                         "captions": [], **meta})


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    question = [{"question": "What color is it?", "answer": "Green", "kind": "color"}]
    images = curate(tmp_path / "shards" / "image", {
        "train": [sample("seen", "train", drawing(1)), sample("seen-too", "train", drawing(2))], "val": [sample("checked", "val", drawing(3))],
        "test": [sample("secret", "test", drawing(4), questions=question, original="animals/Frog.svg")]})
    sounds = curate(tmp_path / "shards" / "audio", {"train": [sample("drum", "train", write_flac(np.sin(np.arange(800)) / 2, 8000), "flac")]})
    return [images, sounds]


def put(folder: Path, **files: bytes) -> None:
    for name, data in files.items():
        path = folder / "media" / name.replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def bring(folder: Path, records: object, shards: Sequence[Path], *, reader: str = "llava", name: str = "ours", media: bool = True,
          licence: str | None = "CC0-1.0", **changes: Any) -> Imported:
    """Import one source whose records and media lie in `folder`."""
    (folder / "media").mkdir(parents=True, exist_ok=True)
    (folder / "records.json").write_text(json.dumps(records))
    source = Source(name, folder / "records.json", reader, folder / "media" if media else None, "human", "conversation", licence)
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    arguments = {"limits": TextLimits(200, 3, 4), "media": MediaSettings(**SETTINGS), "test_count": 0, "val_fraction": 0.0, "seed": 0, "workers": 2}
    return import_records([source], shards, scratch=scratch, **arguments | changes)


def reasons(imported: Imported) -> dict[str, str | None]:
    return {candidate.name: candidate.drop.reason if candidate.drop else None for candidate in imported.candidates}


def test_every_bad_record_has_its_reason(tmp_path: Path, shards: list[Path]):
    put(tmp_path, good__png=drawing(10), broken__png=b"no picture", copy__png=drawing(4), big__png=b"0" * 1_000_001)
    (tmp_path / "outside.png").write_bytes(drawing(11))
    (tmp_path / "media" / "link.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "media" / "loop.png").symlink_to("loop.png")
    Image.open(io.BytesIO(drawing(4))).resize((128, 128)).save(tmp_path / "media" / "lookalike.jpg", quality=80)
    bad = {
        "not_a_record": [ask("m", "good.png") | {"image": 3}], "roles": [ask("r", "good.png", conversations=[{"from": "gpt", "value": "Hello"}])],
        "no_conversation": [ask("n", "good.png", conversations=[])], "empty_question": [ask("eq", "good.png", question="")],
        "empty_answer": [ask("ea", "good.png", answer=" ")],
        "placeholder_mismatch": [ask("p", "good.png", conversations=[{"from": "human", "value": "Eh?"}, {"from": "gpt", "value": "A."}])],
        "unlabelled": [ask("u", "good.png", origin="martian")], "not_text": [ask("t", "good.png", question="\ud800?")],
        "no_medium": [{"id": "nm", "conversations": [{"from": "human", "value": "Eh?"}, {"from": "gpt", "value": "A."}]}],
        "too_many_media": [ask("tm", ["good.png"] * 5)], "too_long": [ask("tl", "good.png", answer="a" * 201)],
        "answerable_without_medium": [ask("aw", "good.png", answerable_without_medium=True)], "no_consent": [ask("nc", "good.png", consent=False)],
        "duplicate_id": [ask("good", "good.png", question="Another?")],
        "duplicate": [ask("d", "good.png", question="<what>  IS it")],
        "remote_media": [ask(f"re{number}", address) for number, address in enumerate(
            ("s3://bucket/a.png", "https://example.org/a.png", "data:image/png;base64,AA", "file:///etc/passwd"))],
        "path_escapes": [ask(f"pe{number}", name) for number, name in enumerate(
            ("../outside.png", "/etc/passwd", "a/../../x.png", "a\0b", "link.png"))],
        "missing_media": [ask(f"mm{number}", name) for number, name in enumerate(("gone.png", "loop.png", "x" * 300, ".", "drum.flac"))],
        "media_unreadable": [ask("mu", "broken.png"), ask("mb", "big.png")],
        "test_leak": [ask("member", "secret.png"), ask("bytes", "copy.png"), ask("looks", "lookalike.jpg")],
    }
    records = [ask("good", "good.png", question="What is it?"), *(entry for entries in bad.values() for entry in entries)]
    found = bring(tmp_path, records, shards)
    expected = ["kept", *(reason for reason, entries in bad.items() for _ in entries)]
    assert [candidate.drop.reason if candidate.drop else "kept" for candidate in found.candidates] == expected
    assert set(expected) - {"kept"} <= set(REASONS)
    figures = statistics(found)
    assert figures["seen"] == len(records) == figures["kept"] + sum(figures["dropped"].values())


def test_media_are_found_in_files_and_in_shards(tmp_path: Path, shards: list[Path]):
    put(tmp_path, new__png=drawing(20), again__png=drawing(20), known__png=drawing(1))
    found = bring(tmp_path, [
        ask(1, "new.png"), ask(2, "again.png", "Where?"), ask(3, "known.png"), ask(4, "seen-too.png"), ask(5, "folder/drum.flac", modality="audio"),
        ask(6, ["new.png", "seen.png"], "Which?")], shards)
    assert reasons(found) == dict.fromkeys("123456")
    media = [[medium.name.member for medium in candidate.media] for candidate in found.kept]
    assert media[2:5] == [["seen.png"], ["seen-too.png"], ["drum.flac"]]
    assert media[0] == media[1] and media[5] == [media[0][0], "seen.png"]
    assert re.fullmatch(r"ours-(new|again)-[0-9a-f]{12}\.jpg", media[0][0])
    assert [c.instruction.id for c in found.kept if c.instruction] == [f"ours-{number}" for number in range(1, 7)]


@pytest.mark.parametrize("modality", MEDIA)
def test_new_media_of_every_modality_can_be_stored_and_drawn(tmp_path: Path, shards: list[Path], modality: str):
    name, make = MEDIA[modality]
    put(tmp_path, **{name.replace(".", "__"): drawing(30) if modality == "image" else make()})
    found = bring(tmp_path, [ask(1, name, modality=modality)], shards)
    stored = found.kept[0].media[0].stored
    assert stored is not None and hashlib.sha256(stored.path.read_bytes()).hexdigest() == stored.sha256
    drawn = preview(modality, stored.path.read_bytes())
    assert drawn is not None and Image.open(io.BytesIO(drawn[0])).format == drawn[1].upper()
    again = bring(tmp_path, [ask(1, name, modality=modality)], shards, workers=1).kept[0].media[0]
    assert again.stored is not None and (again.name.member, again.stored.sha256) == (found.kept[0].media[0].name.member, stored.sha256)


@pytest.mark.parametrize(("modality", "name", "data", "detail"), [
    ("image", "a.png", picture("red", (2000, 600)), "too_many_pixels"), ("image", "a.png", picture("red", (8, 60)), "too_small"),
    ("image", "a.png", drawing(1)[:300], "truncated"), ("image", "a.png", b"", "empty_file"), ("image", "a.svg", b"<svg", ""),
    ("audio", "a.wav", sound(seconds=2.2), "too_long"), ("audio", "a.wav", b"RIFF", "cannot be read"),
    ("video", "a.mp4", clip(frames=40), "lasts"), ("video", "a.mp4", clip()[:500], ""), ("imu", "a.npy", motion(seconds=9), "too_long"),
    ("imu", "a.npy", motion(seconds=2), "too short"), ("imu", "a.csv", b"a,b\n1,2\n", "header"),
])  # fmt: skip
def test_unusable_media_say_what_is_wrong(tmp_path: Path, *, shards: list[Path], modality: str, name: str, data: bytes, detail: str):
    put(tmp_path, **{name.replace(".", "__"): data}, good__png=drawing(40))
    found = bring(tmp_path, [ask(1, name, modality=modality), ask(2, "good.png")], shards)
    assert reasons(found) == {"1": "media_unreadable", "2": None}
    drop = found.candidates[0].drop
    assert drop is not None and drop.detail.startswith(f"{name}: ") and detail in drop.detail


def test_a_file_is_of_one_modality(tmp_path: Path, shards: list[Path]):
    put(tmp_path, a__mp4=clip(), good__png=drawing(40))
    found = bring(tmp_path, [ask(1, "a.mp4", modality="video"), ask(2, "a.mp4", modality="audio"), ask(3, "good.png")], shards)
    assert reasons(found) == {"1": None, "2": "media_unreadable", "3": None}


def test_a_known_question_about_a_file_of_a_test_samples_name_is_a_leak(tmp_path: Path, shards: list[Path]):
    put(tmp_path, frog__png=drawing(50))
    found = bring(tmp_path, [ask(1, "frog.png", "What color is it??", "green."), ask(2, "frog.png", "Does it jump?", "Yes.")], shards)
    assert reasons(found) == {"1": "test_leak", "2": None}


def test_licences_are_needed(tmp_path: Path, shards: list[Path]):
    found = bring(tmp_path, [ask(1, "seen.png"), ask(2, "seen.png", "Where?", license="MIT")], shards, licence=None, media=False)
    assert reasons(found) == {"1": "unlabelled", "2": None}
    assert found.kept[0].instruction and found.kept[0].instruction.license == "MIT"


def test_splits_share_nothing(tmp_path: Path, shards: list[Path]):
    put(tmp_path, **{f"n{number}__png": drawing(100 + number) for number in range(30)})
    Image.open(io.BytesIO(drawing(100))).resize((128, 128)).save(tmp_path / "media" / "n0-large.jpg")
    records = [ask(f"{number}-{turn}", f"n{number}.png", f"Question {turn}?") for number in range(30) for turn in range(2)]
    records += [ask("large", "n0-large.jpg"), ask("pair", ["n1.png", "n2.png"]), ask("old", "seen.png"), ask("with-old", ["seen.png", "n3.png"]),
                ask("val", "checked.png"), ask("with-val", ["checked.png", "n4.png"]), ask("cut-a", "n5.png", "A?", group="film"),
                ask("cut-b", "n6.png", "B?", group="film")]
    arguments: dict[str, Any] = {"test_count": 12, "val_fraction": 0.3, "seed": 1}
    found = bring(tmp_path, records, shards, **arguments)
    split = {candidate.name: candidate.split for candidate in found.kept}
    assert len(split) == len(records)
    assert sum(name == "test" for name in split.values()) == 12 and {"train", "val"} <= set(split.values())
    assert split["large"] == split["0-0"] == split["0-1"]
    assert split["pair"] == split["1-0"] == split["2-1"]
    assert split["cut-a"] == split["cut-b"] == split["5-0"] == split["6-1"]
    assert split["old"] == split["with-old"] == split["3-0"] != "test"
    assert split["val"] == split["with-val"] == split["4-0"] != "train"
    assert {c.name: c.split for c in bring(tmp_path, records, shards, **arguments | {"workers": 1}).kept} == split
    assert statistics(found)["leaks"] == 0


def test_holding_out_everything_is_refused(tmp_path: Path, shards: list[Path]):
    put(tmp_path, a__png=drawing(60))
    with pytest.raises(DataError, match=r"test_count = 5, .* none is left to train on"):
        bring(tmp_path, [ask(1, "a.png")], shards, test_count=5)


def test_nothing_left_is_refused(tmp_path: Path, shards: list[Path]):
    with pytest.raises(DataError, match=r"all 2 records were dropped, 2 of them for 'missing_media' .* ours/1: a\.png"):
        bring(tmp_path, [ask(1, "a.png"), ask(2, "b.png")], shards)
    with pytest.raises(DataError, match="hold no record at all"):
        bring(tmp_path, [], shards)


def test_no_source_is_no_error(tmp_path: Path):
    found = import_records([], [tmp_path / "nowhere"], limits=TextLimits(9, 9, 9), media=MediaSettings(**SETTINGS), test_count=5, val_fraction=0.1,
                           seed=0, scratch=tmp_path, workers=1)
    assert statistics(found)["seen"] == 0


def test_a_folder_of_media_that_is_not_there_is_named(tmp_path: Path, shards: list[Path]):
    (tmp_path / "records.json").write_text("[]")
    source = Source("ours", tmp_path / "records.json", "llava", tmp_path / "nowhere", "human", "conversation", "MIT")
    with pytest.raises(ConfigError, match=r"sources\.ours\.media: .*nowhere is no folder"):
        import_records([source], shards, limits=TextLimits(9, 9, 9), media=MediaSettings(**SETTINGS), test_count=0, val_fraction=0.0, seed=0,
                       scratch=tmp_path, workers=1)


def test_one_member_in_two_folders_is_refused(tmp_path: Path, shards: list[Path]):
    with pytest.raises(DataError, match="give each curated folder once"):
        bring(tmp_path, [ask(1, "seen.png")], [shards[0], shards[0]], media=False)


def test_members_are_read_back(shards: list[Path]):
    wanted = Known("seen-too.png", "train", "g", shards[0] / "train-00000.tar")
    assert list(read_members([wanted])) == [("seen-too.png", drawing(2))]


# Readers.


def write(path: Path, content: object) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.json", b"no JSON", "not valid JSON"), ("a.json", b"\xff\xfe\x00", "not valid JSON"), ("a.json", b"", "not valid JSON"),
    ("a.json", b"[" * 200_000, "not valid JSON"), ("a.json", {"records": []}, "holds an object, not a list"), ("a.json", 3, "holds a number"),
    ("a.jsonl", b"no\nJSON\n", "none of its 2 lines"), ("b.json", None, "no such file"),
])  # fmt: skip
@pytest.mark.parametrize("read", [read_llava, read_label_studio])
def test_files_that_hold_no_records_are_refused(tmp_path: Path, read: Any, name: str, content: object, message: str):
    path = tmp_path / name if content is None else write(tmp_path / name, content)
    with pytest.raises(DataError, match=message):
        list(read(path))


def test_a_line_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("anymal.curation.instruction_readers.MAX_LINE_BYTES", 10)
    with pytest.raises(DataError, match="line 2 holds more than the 10 bytes"):
        list(read_llava(write(tmp_path / "a.jsonl", b'{"id": 1}\n{"id": 1234567}\n')))


def test_a_file_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("anymal.curation.instruction_readers.MAX_FILE_BYTES", 1)
    with pytest.raises(DataError, match="holds 2 bytes, more than the 1 allowed"):
        list(read_llava(write(tmp_path / "a.json", b"[]")))


def test_lines_of_jsonl_are_records(tmp_path: Path):
    lines = [json.dumps(ask(1, "a.png")), "", "{broken", "[]", json.dumps(ask(2, "b.png"))]
    found = list(read_llava(write(tmp_path / "a.jsonl", ("\ufeff" + "\n".join(lines)).encode())))
    assert [(raw.name, raw.drop and raw.drop.reason) for raw in found] == [
        ("1", None), ("line 3", "not_json"), ("line 4", "not_a_record"), ("2", None)]


def test_llava_habits_are_followed(tmp_path: Path):
    video = ask("v", "a.mp4", modality="image") | {"image": None, "video": "a.mp4"}
    both = ask("b", "a.png") | {"video": "a.mp4"}
    found = list(read_llava(write(tmp_path / "a.json", [video, both])))
    assert found[0].record is not None and found[0].record["conversations"][0]["value"] == "<video>\nWhat is it?" and "image" not in found[0].record
    assert found[1].record is not None and found[1].record["conversations"][0]["value"].startswith("<image>")


def entered(name: str, *values: str, kind: str = "text") -> dict[str, Any]:
    return {"id": name, "from_name": name, "to_name": "medium", "type": "textarea" if kind == "text" else kind, "origin": "manual",
            "value": {kind: list(values)}}


def annotation(number: int, *fields: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"id": number, "completed_by": {"email": "ann@example.org"}, "result": list(fields), "was_cancelled": False, "ground_truth": False,
            "lead_time": 3.1} | changes


def form(question: str = "What?", answer: str = "A cat.") -> tuple[dict[str, Any], dict[str, Any]]:
    return entered("question", question), entered("answer", answer)


def task(number: int, *annotations: dict[str, Any], data: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return {"id": number, "data": data or {"image": "/data/local-files/?d=cats/a.png"}, "annotations": list(annotations), "predictions": []} | changes


def label_studio(tmp_path: Path, *tasks: object) -> list[Raw]:
    return list(read_label_studio(write(tmp_path / "export.json", list(tasks))))


def test_annotations_become_records(tmp_path: Path):
    follow_up = (entered("question_2", "Where?"), entered("answer_2", "On a mat."), entered("rating", "5"))
    found = label_studio(tmp_path, task(7, annotation(1, *form(), *follow_up), annotation(2, *form("<image> who?")),
                                        data={"image": "/data/upload/3/0a%20b.png", "license": "MIT", "group": "g", "id": 9}))
    assert [(raw.name, raw.drop) for raw in found] == [("7-1", None), ("7-2", None)]
    assert found[0].record == {"id": "7-1", "license": "MIT", "group": "g", "image": ["upload/3/0a b.png"], "conversations": [
        {"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."},
        {"from": "human", "value": "Where?"}, {"from": "gpt", "value": "On a mat."}]}
    assert found[1].record is not None and found[1].record["conversations"][0]["value"] == "<image> who?"
    assert "ann@example.org" not in str(found)


def test_what_was_not_submitted_is_counted(tmp_path: Path):
    found = label_studio(
        tmp_path, task(1), task(2, annotation(1, was_cancelled=True)), task(3, drafts=[{"id": 5, "result": list(form())}]),
        task(4, annotation(1, *form()), annotation(2, *form("Truly?"), ground_truth=True)),
        task(5, annotation(1, *form()), annotation(2, *form(), ground_truth=True, was_cancelled=True)),
        task(6, annotation(1, *form(), entered("problems", "no_consent", kind="choices"))),
        task(7, annotation(1, *form(), entered("problems", "answerable_without_medium", kind="choices"))))
    assert [(raw.name, raw.drop and raw.drop.reason) for raw in found] == [
        ("1", "not_annotated"), ("2-1", "skipped"), ("3-draft-5", "draft"), ("4-1", "superseded"), ("4-2", None), ("5-1", None), ("5-2", "skipped"),
        ("6-1", "no_consent"), ("7-1", "answerable_without_medium")]


@pytest.mark.parametrize(("bad", "reason"), [
    ([], "not_a_record"), ({"data": {}}, "not_a_record"), (task(1, annotations="x"), "not_a_record"), (task(1, annotations=[3]), "not_a_record"),
    (task(1, annotation(1, result="x")), "unknown_form"), (task(1, annotation(1, result=[3])), "unknown_form"),
    (task(1, annotation(1, entered("question", "a", "b"))), "unknown_form"), (task(1, annotation(1, *form()), data={"image": 3}), "not_a_record"),
    (task(1, annotation(1, {**entered("question"), "value": {"text": [3]}})), "unknown_form"),
])  # fmt: skip
def test_damaged_tasks_are_counted(tmp_path: Path, bad: object, reason: str):
    assert [raw.drop and raw.drop.reason for raw in label_studio(tmp_path, bad)] == [reason]


def test_an_unfinished_form_is_an_empty_question_or_answer(tmp_path: Path, shards: list[Path]):
    seen = {"image": "/data/local-files/?d=x/seen.png"}
    forms = [(entered("question", "What?"),), (entered("answer", "A."),), (), form()]
    tasks = [task(number, annotation(1, *fields), data=seen) for number, fields in enumerate(forms, start=1)]
    found = bring(tmp_path, tasks, shards, reader="label_studio", media=False)
    assert reasons(found) == {"1-1": "empty_answer", "2-1": "empty_question", "3-1": "no_conversation", "4-1": None}
    assert found.kept[0].media[0].name.member == "seen.png"


def test_the_short_export_gives_the_same_records(tmp_path: Path):
    """JSON-MIN as the converter of Label Studio's SDK 2.0.19 wrote it for these annotations."""
    common = {"image": "/data/local-files/?d=cats/a.png", "annotator": "ann@example.org", "created_at": None, "updated_at": None, "lead_time": 1.0}
    short = label_studio(
        tmp_path, {**common, "id": 1, "annotation_id": 1, "question": "What?", "answer": "A cat.", "question_2": "Where?", "answer_2": "There."},
        {**common, "id": 1, "annotation_id": 2, "question": "Q", "answer": "A", "problems": "answerable_without_medium"},
        {**common, "id": 1, "annotation_id": 3, "question": "Q", "answer": "A", "problems": {"choices": ["other", "no_consent"]}},
        {**common, "id": 1, "annotation_id": 5, "question": {"text": ["Q", "R"]}, "answer": "A"}, {**common, "id": 2, "annotation_id": None})
    full = label_studio(tmp_path, task(1, annotation(1, *form(), entered("question_2", "Where?"), entered("answer_2", "There."))))
    assert short[0] == full[0]
    assert [(raw.name, raw.drop and raw.drop.reason) for raw in short[1:]] == [
        ("1-2", "answerable_without_medium"), ("1-3", "no_consent"), ("1-5", "unknown_form"), ("2", "not_annotated")]


@pytest.mark.parametrize(("address", "path"), [
    ("/data/local-files/?d=a%20b/c.png", "a b/c.png"), ("http://localhost:8080/data/local-files/?d=c.png", "c.png"),
    ("/data/upload/12/x-c.png", "upload/12/x-c.png"), ("s3://bucket/c.png", "s3://bucket/c.png"), ("c.png", "c.png"),
    ("/data/local-files/", "/data/local-files/"), ("http://[x/c.png", "http://[x/c.png"),
])  # fmt: skip
def test_addresses_of_label_studio_are_paths(address: str, path: str):
    assert media_path(address) == path


def test_a_fifo_is_no_medium(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.png")
    assert locate("pipe.png", tmp_path) is None


def test_questions_are_compared_by_their_words():
    assert normalise("<image>\nWhat IS  it?") == normalise("what is it")
    assert normalise("Größe?") != normalise("Grose")


@pytest.mark.parametrize("modality", MEDIA)
def test_labelling_configurations_have_what_the_reader_reads(modality: str):
    root = ElementTree.parse(TEMPLATES / f"instructions-{modality}.xml").getroot()
    media = [tag for tag in root.iter() if tag.get("value") == f"${modality}"]
    assert [tag.get("name") for tag in media] == ["medium"]
    controls = {tag.get("name"): tag for tag in root.iter() if tag.get("toName")}
    turns = [f"{field}{number}" for number in ("", "_2", "_3") for field in ("question", "answer")]
    assert list(controls) == [*turns, "problems"]
    assert {tag.get("toName") for tag in controls.values()} == {"medium"}
    assert [choice.get("alias") for choice in controls["problems"]] == list(FLAGS)
    assert [name for name, tag in controls.items() if tag.get("required") == "true"] == ["question", "answer"]
