"""Every benchmark's official layout is read; whatever is not as the layout has it is said with file, record and field."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anymal.curation.ego4d import Ego4dFiles
from anymal.errors import DataError
from anymal.evaluation.benchmarks.declaration import declarations
from anymal.evaluation.benchmarks.plan import Planned, plan
from scripts.benchmark_layouts import SHARED
from tests.evaluation.benchmarks.small import COUNT, knobs

MODALITIES = ["image", "video", "audio", "imu"]


def read(name: str, assets: Path, **changes: Any) -> Planned | str:
    entry = {**knobs(name)["benchmarks"][name], "asset": SHARED.get(name, name), **changes}
    return plan(name, assets, motions=Ego4dFiles(), reads=MODALITIES, conditions=["right"], batch_size=4, pool=10, seed=0, **entry)


def samples(name: str, assets: Path, **changes: Any) -> Any:
    found = read(name, assets, **changes)
    assert isinstance(found, Planned), found
    return found.reading


@pytest.mark.parametrize("name", list(declarations()))
def test_every_layout_is_read_whole(layouts, name):
    reading = samples(name, layouts)
    assert reading.items
    assert reading.unusable == ([] if name != "ego4d_imu" else [
        (f"s{number}-left-1-00001", "no_caption: not about the camera wearer, unsure, or without a time") for number in range(COUNT // 2)])
    assert len({item.id for item in reading.items}) == len(reading.items)
    assert all(item.medium.path.is_file() and item.medium.path.is_relative_to(layouts) and item.references for item in reading.items)
    declared = declarations()[name]
    assert {item.medium.modality for item in reading.items} == ({declared.modality} if declared.modality else set(MODALITIES))
    for item in reading.items:
        assert (item.answer is not None) == declared.options
        if declared.options:
            assert item.references == (item.options[item.answer],)


def test_fields_end_up_where_they_belong(layouts):
    assert samples("coco_captions", layouts).items[0].references == ("A apple.", "One red apple.")
    first = samples("vqav2", layouts).items[0]
    assert (first.id, first.question, first.references, first.kind) == (1000, "What color is the background?", ("red",) * 10, "other")
    assert first.medium.name == "val2014/COCO_val2014_000000000001.jpg"
    assert [item.ocr for item in samples("textvqa_ocr", layouts).items[:2]] == [(), ("cat",)]
    assert samples("textvqa", layouts).items[1].ocr == ()
    assert samples("vizwiz", layouts).items[4].references == ("unanswerable",) * 10
    science = samples("scienceqa", layouts).items
    assert science[0].context.startswith("Look") and science[1].context == "" and science[0].medium.name == "test/1/image.png"
    assert "9999" not in {item.id for item in science}  # no picture
    meme = samples("hateful_memes", layouts).items[1]
    assert (meme.options, meme.references, meme.text, meme.question) == (("yes", "no"), ("yes",), "look at this dog", "")
    pope = samples("pope", layouts).items
    assert {item.kind for item in pope} == {"random", "popular", "adversarial"} and len(pope) == 6 * COUNT
    star = samples("star", layouts).items[0]
    assert (star.medium.start, star.medium.end, star.medium.name) == (0.5, 1.0, "Charades_v1_480/clip-0.mp4#t=0.5,1")
    assert samples("nextqa", layouts).items[0].id == "3000000000_0"
    assert len(samples("clotho", layouts).items[0].references) == 5
    assert samples("audiocaps", layouts).items[0].medium.name == "audio/yt000000000.wav"
    motion = samples("ego4d_imu", layouts).items[0]
    assert (motion.references, motion.medium.start, motion.medium.end) == (("The camera wearer does rows.",), 0.0, 5.0)
    assert samples("mm_it", layouts).items[0].question == "What instrument is it?"


def test_the_right_option_of_how2qa_has_no_fixed_place(layouts):
    items = samples("how2qa", layouts).items
    assert len({item.answer for item in items}) > 1
    assert all(item.options[item.answer] == item.references[0] for item in items)
    assert items[0].medium.end == 1.0


def test_a_place_of_ones_own_names_clips_that_were_cut(layouts):
    items = samples("how2qa", layouts, media="videos/{video_id}.mp4").items
    assert all("#t=" in item.medium.name for item in items)
    assert read("how2qa", layouts, media="videos/{video_id}_{start:g}_{end:g}.mp4") == (
        f"none of the {len(items)} samples of split val can be asked (medium_missing {len(items)})")


def test_missing_media_are_counted_and_named(layouts, tmp_path):
    shutil.copytree(layouts / "vqav2", tmp_path / "vqav2")
    (tmp_path / "vqav2/val2014/COCO_val2014_000000000001.jpg").unlink()
    reading, whole = samples("vqav2", tmp_path), samples("vqav2", layouts)
    assert reading.unusable == [(str(1000 + place), "medium_missing: val2014/COCO_val2014_000000000001.jpg") for place in range(3)]
    assert len(reading.items) + 3 == len(whole.items) and reading.available == whole.available


def test_what_is_not_there_is_said_in_a_sentence(layouts):
    assert read("vqav2", layouts, asset=None) == (
        "no data: benchmark.benchmarks.vqav2.asset is null; name an asset that holds its official files")
    assert read("vqav2", layouts, asset="absent").startswith("no data: the asset absent is not there; name it in ingest.assets")


def _json(file: str, edit: Callable[[Any], Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        document = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(edit(document) or document))

    return change


def _lines(file: str, edit: Callable[[Any], Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        records = [json.loads(line) for line in (folder / file).read_text().splitlines()]
        edit(records[1])
        (folder / file).write_text("".join(json.dumps(record) + "\n" for record in records))

    return change


def _csv(file: str, edit: Callable[[list[list[str]]], Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        rows = list(csv.reader(io.StringIO((folder / file).read_text())))
        edit(rows)
        stream = io.StringIO()
        csv.writer(stream).writerows(rows)
        (folder / file).write_text(stream.getvalue())

    return change


def _text(file: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_text(content) and None


COCO, OCR = "dataset_coco.json", "TextVQA_Rosetta_OCR_v0.2_val.json"
QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"


@pytest.mark.parametrize(("name", "change", "words"), [
    ("coco_captions", _json(COCO, lambda d: {"annotations": []}), r"dataset_coco\.json: has no field 'images'"),
    ("coco_captions", _json(COCO, lambda d: d["images"][2].pop("cocoid") and None), r"images\[2\]: has no field 'cocoid', it has"),
    ("coco_captions", _json(COCO, lambda d: d["images"][0].update(sentences="A cat.")), r"'sentences' must be a list .* it is a text"),
    ("coco_captions", _json(COCO, lambda d: d["images"][0]["sentences"][1].pop("raw") and None), r"sentences\[1\]: has no field 'raw'"),
    ("coco_captions", _json(COCO, lambda d: d["images"][0].update(filename="../../x.jpg", filepath="..")), "outside the asset's folder"),
    ("coco_captions", _text(COCO, "{"), r"dataset_coco\.json: is not valid JSON"),
    ("vqav2", _json(QUESTIONS, lambda d: d["questions"][1].update(question="")), r"questions\[1\]: field 'question' must be a text, it is empty"),
    ("vqav2", _json(QUESTIONS, lambda d: d["questions"][1].update(question_id=None)), r"'question_id' must be an id .* it is nothing"),
    ("vqav2", _json(QUESTIONS, lambda d: d["questions"][1].update(image_id="one")), r"gives no place of its medium by 'val2014/COCO"),
    ("vqav2", _json(ANNOTATIONS, lambda d: d["annotations"].pop() and None), rf"has no entry in {ANNOTATIONS}"),
    ("vqav2", _json(ANNOTATIONS, lambda d: d["annotations"][0].update(answers=[])), r"annotations\[0\]: field 'answers' must be a list"),
    ("vqav2", lambda folder: (folder / ANNOTATIONS).unlink(), r"annotations\.json: no such file; bring the benchmark's official files"),
    ("okvqa", _json("mscoco_val2014_annotations.json", lambda d: d["annotations"][0].pop("question_type") and None), "has no field 'question_type'"),
    ("textvqa", _json("TextVQA_0.5.1_val.json", lambda d: d["data"][0].update(answers=[1])), r"data\[0\]: field 'answers' must hold texts"),
    ("textvqa_ocr", _json(OCR, lambda d: d["data"].pop(1) and None), r"image_id 0+1 has no entry in TextVQA_Ros"),
    ("textvqa_ocr", _json(OCR, lambda d: d["data"][1].update(ocr_tokens=None)), r"'ocr_tokens' must be a list"),
    ("vizwiz", _json("Annotations/val.json", lambda d: {"data": d}), r"val\.json: the file must be a list of records, it is an object"),
    ("vizwiz", _json("Annotations/val.json", lambda d: d.append("x")), r"record\[8\] is a text, not an object"),
    ("scienceqa", _json("problems.json", lambda d: d["1"].update(answer=7)), r"problem 1: field 'answer' must be the number of one of its 3 options"),
    ("scienceqa", _json("problems.json", lambda d: d.pop("2") and None), r"has no problem '2', which pid_splits\.json names"),
    ("scienceqa", _json("pid_splits.json", lambda d: d.pop("test") and None), r"pid_splits\.json: the file: has no field 'test'"),
    ("hateful_memes", _lines("test_seen.jsonl", lambda r: r.update(label="hateful")), r"line 2: field 'label' must be one of 1, 0, it is hateful"),
    ("hateful_memes", _text("test_seen.jsonl", "{}\nnonsense\n"), r"test_seen\.jsonl: line 2 is not valid JSON"),
    ("pope", _lines("output/coco/coco_pope_popular.json", lambda r: r.pop("text")), r"coco_pope_popular\.json: line 2: has no field 'text'"),
    ("how2qa", _csv("how2QA/how2QA_val_release.csv", lambda rows: rows[1].pop()), r"line 2 has 6 fields, not the 7 of video_id, segment"),
    ("how2qa", _csv("how2QA/how2QA_val_release.csv", lambda rows: rows[1].__setitem__(1, "7-18")), r"'segment' must be \[START:END\] .* it is 7-18"),
    ("star", _json("STAR_val.json", lambda d: d[0].update(answer="nothing of it")), r"field 'answer' \(nothing of it\) is none of its choices"),
    ("star", _json("STAR_val.json", lambda d: d[0].update(start="soon")), r"record\[0\]: field 'start' must be a number, it is a text \(soon\)"),
    ("nextqa", _csv("nextqa/val.csv", lambda rows: rows[0].__setitem__(9, "b1")), r"its header has no column 'a1', it has video"),
    ("nextqa", _json("nextqa/map_vid_vidorID.json", lambda d: d.pop("3000000000") and None), r"has no field '3000000000'"),
    ("audiocaps", _csv("dataset/test.csv", lambda rows: rows[0].__setitem__(1, "id")), r"test\.csv: its header has no column 'youtube_id'"),
    ("clotho", _csv("clotho_captions_evaluation.csv", lambda rows: rows[1].__setitem__(3, " ")), r"field 'caption_3' must be a text, it is empty"),
    ("ego4d_imu", _json("ego4d.json", lambda d: d["videos"][0].pop("split_em") and None), r"ego4d\.json: videos\[0\]: has no field 'split_em'"),
    ("ego4d_imu", _text("v2/annotations/narration.json", "[]"), r"narration\.json: is cut short or no JSON object of videos"),
    ("vizwiz", _json("Annotations/val.json", lambda d: d.append(d[0])), r"vizwiz holds sample VizWiz_val_00000000\.jpg 2 times"),
    ("mm_it", _json("test.json", lambda d: d[0]["conversations"].pop() and None), r"test\.json: record\[0\]: .*turns must alternate"),
    ("mm_it_cap", lambda folder: (folder / "captions.json").unlink(), r"captions\.json: no such file"),
])  # fmt: skip
def test_a_wrong_layout_is_named(layouts, tmp_path, name, change, words):
    folder = tmp_path / SHARED.get(name, name)
    shutil.copytree(layouts / folder.name, folder)
    change(folder)
    with pytest.raises(DataError, match=words):
        read(name, tmp_path)


def test_every_benchmark_has_a_broken_layout_above():
    marked = next(mark for mark in test_a_wrong_layout_is_named.pytestmark if mark.name == "parametrize")
    assert {case[0] for case in marked.args[1]} == set(declarations())


def test_the_protocol_places_the_medium_of_an_instruction(layouts, tmp_path):
    shutil.copytree(layouts / "mm_it", tmp_path / "mm_it")
    _json("test.json", lambda d: d[0]["conversations"][0].update(value="Listen.\nWhat does <audio> say?"))(
        tmp_path / "mm_it")
    assert samples("mm_it", tmp_path).items[0].question == "Listen.\nWhat does it say?"
    assert samples("mm_it", layouts).items[0].question == "What instrument is it?"


def test_a_record_about_several_media_is_listed(layouts, tmp_path):
    shutil.copytree(layouts / "mm_it", tmp_path / "mm_it")
    _json("test.json", lambda d: d[0].update(
        image=["a.jpg", "b.jpg"], audio=None, conversations=[{"from": "human", "value": "<image> and <image>?"}, {"from": "gpt", "value": "No."}]))(
        tmp_path / "mm_it")
    reading = samples("mm_it", tmp_path)
    assert [reason for _, reason in reading.unusable] == ["several_media: is about 2 media; this benchmark asks about one"]
