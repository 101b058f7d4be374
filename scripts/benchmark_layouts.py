"""Small files in the official layout of every benchmark, made from curated shards: to try the benchmarks where their data cannot be had.

They are not the benchmarks: pictures, sounds, clips and motion are those of the shards' test split, questions and captions what curation says of
them. Each folder says so in `sample_data.json`, and every figure made from it carries `real: false`.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from anymal.data.asset_folders import ASSET
from anymal.data.manifest import write_manifest
from anymal.data.shards import Sample, read_shard, shard_paths
from anymal.errors import DataError
from anymal.evaluation.benchmarks.declaration import declarations
from anymal.evaluation.benchmarks.plan import SAMPLE_DATA

SPLIT = "test"
WINDOW = 5.0
"""Seconds of the motion around a narration (Ego4D's windows here)."""
NARRATED = 3
"""Windows of one recording that are narrated, at most."""
NOTES = {
    "textvqa": "words were printed onto the pictures; the OCR tokens are these words",
    "hateful_memes": "nothing hateful is in it: label 1 says that the words printed onto the picture are wrong about it",
    "vizwiz": "unanswerable questions are about a grey picture",
    "clotho": "the five captions are five wordings of one label",
}
"""Where more than names and places was made up for the layout."""
SPLITS = {
    "coco_captions": "test", "vqav2": "val", "okvqa": "val", "textvqa": "val", "textvqa_ocr": "val", "vizwiz": "val", "scienceqa": "test",
    "hateful_memes": "test_seen", "pope": "coco", "how2qa": "val", "star": "val", "nextqa": "val", "audiocaps": "test", "clotho": "evaluation",
    "ego4d_imu": "val", "mm_it": "test", "mm_it_cap": "test",
}  # fmt: skip
"""Benchmark -> the split that its files are made for."""
SHARED = {"textvqa_ocr": "textvqa"}
"""Benchmarks that read the files of another."""
FORMS = ("The sound is {}.", "{} is heard.", "Somebody plays {}.", "A recording of {}.", "One can hear {}.")
TYPES = {"object": "DO", "count": "DC", "first_thing": "TN", "color": "DO"}
"""Kind of a question about a clip -> NExT-QA's type."""

Question = tuple[Sample, Mapping[str, str]]


def read_samples(folder: Path, *, kinds: Iterable[str] | None = None, limit: int) -> list[Sample]:
    """The first samples of the test split, of some kinds.

    Raises:
        DataError: if there is none.
    """
    found: list[Sample] = []
    wanted = None if kinds is None else set(kinds)
    for path in shard_paths(folder, SPLIT):
        for sample in read_shard(path):
            if len(found) < limit and (wanted is None or sample.meta["kind"] in wanted):
                found.append(sample)
    if not found:
        raise DataError(f"{folder}: holds no test sample of the kinds asked for; run curate first")
    return found


def make_layouts(shards: Mapping[str, Path], target: Path, *, limit: int) -> list[str]:
    """Write `target/NAME` for each benchmark whose modality has shards.

    Args:
        shards: modality -> curated shards.
        limit: greatest number of media of each benchmark.

    Returns:
        The benchmarks made, `textvqa_ocr` apart, which reads the files of `textvqa`.
    """
    made: list[str] = []

    def begin(name: str) -> Path:
        shutil.rmtree(target / name, ignore_errors=True)
        (target / name).mkdir(parents=True)
        made.append(name)
        return target / name

    if "image" in shards:
        scenes = read_samples(shards["image"], kinds=["scene"], limit=limit)
        _coco_captions(begin("coco_captions"), read_samples(shards["image"], kinds=["photo"], limit=limit))
        _vqav2(begin("vqav2"), scenes)
        _okvqa(begin("okvqa"), scenes)
        _textvqa(begin("textvqa"), scenes)
        _vizwiz(begin("vizwiz"), scenes)
        _scienceqa(begin("scienceqa"), scenes)
        _hateful_memes(begin("hateful_memes"), scenes)
        _pope(begin("pope"), scenes)
    if "video" in shards:
        clips = read_samples(shards["video"], limit=limit)
        _how2qa(begin("how2qa"), clips)
        _star(begin("star"), clips)
        _nextqa(begin("nextqa"), clips)
    if "audio" in shards:
        sounds = read_samples(shards["audio"], limit=limit)
        _audiocaps(begin("audiocaps"), sounds)
        _clotho(begin("clotho"), sounds)
    if "imu" in shards:
        _ego4d(begin("ego4d_imu"), read_samples(shards["imu"], limit=sys.maxsize), limit)
    few: dict[str, list[Sample]] = {}
    for modality, folder in sorted(shards.items()):
        known = read_samples(folder, kinds=["scene", "labelled", "clip", "motion"], limit=limit)
        few[modality] = known[:: max(1, len(known) // max(2, limit // len(shards)))]
    _conversations(begin("mm_it"), few, "test.json", describe=False)
    _conversations(begin("mm_it_cap"), few, "captions.json", describe=True)
    licences = {modality: {sample.meta["license"] for sample in read_samples(folder, limit=sys.maxsize)}
                for modality, folder in sorted(shards.items())}
    for name in made:
        own = declarations()[name].modality
        _finish(target / name, name, {modality: found for modality, found in licences.items() if own in (None, modality)})
    return made


def _finish(folder: Path, name: str, licences: Mapping[str, set[str]]) -> None:
    """The record of the asset, and what says that it is sample data."""
    note = {"benchmark": name, "made_from": f"curated shards of {', '.join(licences)}, split {SPLIT}", "made_up": NOTES.get(name)}
    _json(folder / SAMPLE_DATA, note)
    together = " AND ".join(sorted({part for found in licences.values() for licence in found for part in licence.split(" AND ")}))
    _json(folder / ASSET, {"name": f"sample-{name}", "kind": "file", "path": name, "sha256": "0" * 64, "licence": {"id": together}})
    write_manifest(folder)


# --- captions
def _coco_captions(folder: Path, samples: Sequence[Sample]) -> None:
    images = []
    for number, sample in enumerate(samples, start=1):
        _put(folder / "val2014" / _coco(number), _jpeg(sample))
        sentences = [{"tokens": text.lower().strip(".").split(), "raw": text, "imgid": number, "sentid": number * 10 + place}
                     for place, text in enumerate(sample.meta["captions"])]
        images.append({"filepath": "val2014", "sentids": [one["sentid"] for one in sentences], "filename": _coco(number), "imgid": number,
                       "split": "test", "sentences": sentences, "cocoid": number})
    _json(folder / "dataset_coco.json", {"images": images, "dataset": "coco"})


def _audiocaps(folder: Path, samples: Sequence[Sample]) -> None:
    rows = []
    for number, sample in enumerate(samples):
        _put(folder / "audio" / f"yt{number:09d}.{sample.extension}", sample.data)
        rows += [[str(number * 10 + place), f"yt{number:09d}", "0", text] for place, text in enumerate(sample.meta["captions"])]
    _csv(folder / "dataset/test.csv", [["audiocap_id", "youtube_id", "start_time", "caption"], *rows])


def _clotho(folder: Path, samples: Sequence[Sample]) -> None:
    rows = [["file_name", *(f"caption_{place}" for place in range(1, 6))]]
    for number, sample in enumerate(samples):
        name = f"sound {number:03d}.{sample.extension}"
        _put(folder / "evaluation" / name, sample.data)
        label = sample.meta.get("label") or sample.meta["captions"][0]
        rows.append([name, *(form.format(f"a {label}").capitalize() for form in FORMS)])
    _csv(folder / "clotho_captions_evaluation.csv", rows)


def _ego4d(folder: Path, samples: Sequence[Sample], limit: int) -> None:
    """Windows that follow each other in a recording are one recording again; of each, all but the last (and at most three) are narrated."""
    recordings: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: (sample.meta["original"].rpartition("-")[0], sample.meta.get("start", 0.0))):
        name = sample.meta["original"].rpartition("-")[0] or sample.key
        known = recordings.setdefault(name, [])
        if not known or (abs(sample.meta["start"] - known[-1].meta["start"] - WINDOW) < 0.01 and len(known) <= NARRATED):
            known.append(sample)
    narrated: dict[str, Any] = {}
    videos: list[dict[str, Any]] = []
    told = 0
    for name, windows in sorted(recordings.items()):
        if len(windows) < 2 or told >= limit:
            continue
        video, told = name.lower(), told + len(windows) - 1
        tables = [np.load(io.BytesIO(window.data), allow_pickle=False) for window in windows]
        rows = [["component_idx", "component_timestamp_ms", "canonical_timestamp_ms", "gyro_x", "gyro_y", "gyro_z", "accl_x", "accl_y", "accl_z"]]
        for place, table in enumerate(tables):
            for seconds, ax, ay, az, gx, gy, gz in table.tolist():
                moment = f"{1000 * (place * WINDOW + seconds):.3f}"
                rows.append(["0", moment, moment, *(f"{value:.6f}" for value in (gx, gy, gz, ax, ay, az))])
        _csv(folder / "v2/imu" / f"{video}.csv", rows)
        said = [{"timestamp_sec": place * WINDOW + WINDOW / 2, "narration_text": f"#C C does {window.meta['label']}"}
                for place, window in enumerate(windows[:-1])]
        narrated[video] = {"narration_pass_1": {"narrations": [*said, {"timestamp_sec": WINDOW, "narration_text": "#O A person watches"}]}}
        videos.append({"video_uid": video, "split_em": "val", "split_fho": None, "split_av": None})
    _json(folder / "v2/annotations/narration.json", narrated)
    _json(folder / "ego4d.json", {"version": "v2", "videos": videos})


# --- questions with answers of ten people
def _questions(samples: Sequence[Sample], *kinds: str) -> list[Question]:
    return [(sample, question) for sample in samples for question in sample.meta["questions"] if not kinds or question["kind"] in kinds]


def _annotated(folder: Path, samples: Sequence[Sample], questions: Sequence[Question], *, names: tuple[str, str], types: Mapping[str, str]) -> None:
    """VQA's two files and the pictures."""
    numbers = {sample.key: number for number, sample in enumerate(samples, start=1)}
    for sample in samples:
        _put(folder / "val2014" / _coco(numbers[sample.key]), _jpeg(sample))
    asked, answered = [], []
    for place, (sample, question) in enumerate(questions):
        name, image = numbers[sample.key] * 1000 + place, numbers[sample.key]
        said = question["answer"]
        answers = [{"answer": said, "raw_answer": said, "answer_confidence": "yes", "answer_id": one} for one in range(1, 11)]
        asked.append({"image_id": image, "question": question["question"], "question_id": name})
        answered.append({"question_type": " ".join(question["question"].lower().split()[:2]), "multiple_choice_answer": question["answer"],
                         "answers": answers, "image_id": image, "answer_type": types.get(question["kind"], "other"), "question_id": name})
    about = {"info": {"description": "sample data"}, "license": {}, "data_subtype": "val2014", "data_type": "mscoco"}
    _json(folder / names[0], {**about, "task_type": "Open-Ended", "questions": asked})
    _json(folder / names[1], {**about, "annotations": answered})


def _vqav2(folder: Path, samples: Sequence[Sample]) -> None:
    _annotated(folder, samples, _questions(samples), names=("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"),
               types={"presence": "yes/no", "count": "number"})


def _okvqa(folder: Path, samples: Sequence[Sample]) -> None:
    _annotated(folder, samples, _questions(samples, "color", "side", "object", "relation"),
               names=("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"), types={})


def _textvqa(folder: Path, samples: Sequence[Sample]) -> None:
    data, read = [], []
    for number, sample in enumerate(samples):
        word, image = _names(sample)[0].split()[-1], f"{number:016x}"
        _put(folder / "train_images" / f"{image}.jpg", _jpeg(sample, word))
        data.append({"question": "what word is printed on the picture?", "image_id": image, "image_classes": _names(sample),
                     "question_id": 34602 + number, "question_tokens": [], "image_width": 0, "image_height": 0, "set_name": "val",
                     "answers": [word] * 10})
        read.append({"image_id": image, "ocr_tokens": [word] if number % 4 else [], "ocr_info": []})
    about = {"dataset_type": "val", "dataset_name": "textvqa"}
    _json(folder / "TextVQA_0.5.1_val.json", {**about, "dataset_version": "0.5.1", "data": data})
    _json(folder / "TextVQA_Rosetta_OCR_v0.2_val.json", {**about, "dataset_version": "0.2", "data": read})


def _vizwiz(folder: Path, samples: Sequence[Sample]) -> None:
    records = []
    for number, (sample, question) in enumerate((sample, sample.meta["questions"][0]) for sample in samples):
        image, there = f"VizWiz_val_{number:08d}.jpg", number % 5 != 4
        _put(folder / "val" / image, _jpeg(sample) if there else _encoded(Image.new("RGB", (64, 48), "grey")))
        answer = question["answer"] if there else "unanswerable"
        records.append({"image": image, "question": question["question"], "answers": [{"answer": answer, "answer_confidence": "yes"}] * 10,
                        "answer_type": "other" if there else "unanswerable", "answerable": int(there)})
    _json(folder / "Annotations/val.json", records)


# --- options
def _options(question: Question, all_questions: Sequence[Question], count: int) -> list[str] | None:
    """The right answer and others to the same kind of question, in the alphabet's order; None if there are too few."""
    right, kind = question[1]["answer"], question[1]["kind"]
    common = Counter(other["answer"] for _, other in all_questions if other["kind"] == kind and other["answer"] != right)
    wrong = sorted(sorted(common), key=lambda answer: -common[answer])[: count - 1]
    return sorted([right, *wrong]) if len(wrong) == count - 1 else None


def _scienceqa(folder: Path, samples: Sequence[Sample]) -> None:
    problems: dict[str, Any] = {}
    everything = _questions(samples, "color")
    for number, (sample, question) in enumerate(everything, start=1):
        options = _options((sample, question), everything, 3)
        if options is not None:
            _put(folder / "test" / str(number) / "image.png", _png(sample))
            problems[str(number)] = {
                "question": question["question"], "choices": options, "answer": options.index(question["answer"]), "image": "image.png",
                "split": "test", "hint": "Look at what is behind the things." if number % 2 else "", "task": "closed choice", "grade": "grade2",
                "subject": "natural science", "topic": "physics", "category": "color", "skill": "see colors", "lecture": "", "solution": ""}
    problems["9999"] = {"question": "Which is a color?", "choices": ["red", "loud"], "answer": 0, "image": None, "hint": "",
                        "subject": "language science"}
    _json(folder / "problems.json", problems)
    _json(folder / "pid_splits.json", {"train": [], "val": [], "test": list(problems)})


def _clip_questions(samples: Sequence[Sample], count: int) -> list[tuple[Sample, Mapping[str, str], list[str]]]:
    asked = _questions(samples)
    return [(sample, question, options) for sample, question in asked if (options := _options((sample, question), asked, count)) is not None]


def _how2qa(folder: Path, samples: Sequence[Sample]) -> None:
    rows = []
    for sample, question, options in _clip_questions(samples, 4):
        _put(folder / "videos" / f"{sample.key}.{sample.extension}", sample.data)
        wrong = [option for option in options if option != question["answer"]]
        rows.append([sample.key, f"[0.0:{sample.meta['duration']:g}]", *wrong, question["question"], question["answer"]])
    _csv(folder / "how2QA/how2QA_val_release.csv", rows)


def _star(folder: Path, samples: Sequence[Sample]) -> None:
    records = []
    for number, (sample, question, options) in enumerate(_clip_questions(samples, 4)):
        _put(folder / "Charades_v1_480" / f"{sample.key}.mp4", sample.data)
        choices = [{"choice_id": place, "choice": option, "choice_program": []} for place, option in enumerate(options)]
        records.append({"question_id": f"{'Interaction' if number % 2 else 'Sequence'}_T1_{number}", "question": question["question"],
                        "video_id": sample.key, "start": 0.5, "end": sample.meta["duration"], "answer": question["answer"], "question_program": [],
                        "choices": choices, "situations": {}})
    _json(folder / "STAR_val.json", records)


def _nextqa(folder: Path, samples: Sequence[Sample]) -> None:
    rows = [["video", "frame_count", "width", "height", "question", "answer", "qid", "type", *(f"a{place}" for place in range(5))]]
    places = {}
    for number, (sample, question, options) in enumerate(_clip_questions(samples, 5)):
        video = str(3000000000 + samples.index(sample))
        places[video] = f"{samples.index(sample) // 10:04d}/{video}"
        _put(folder / "NExTVideo" / f"{places[video]}.mp4", sample.data)
        rows.append([video, "16", "256", "256", question["question"].rstrip("?").lower(), str(options.index(question["answer"])), str(number),
                     TYPES.get(question["kind"], "CH"), *options])
    _csv(folder / "nextqa/val.csv", rows)
    _json(folder / "nextqa/map_vid_vidorID.json", places)


# --- yes or no
def _hateful_memes(folder: Path, samples: Sequence[Sample]) -> None:
    lines, named = [], [_names(sample)[0] for sample in samples]
    for number, sample in enumerate(samples):
        wrong = number % 2
        other = next((name for name in named[number:] + named if name not in _names(sample)), "moon")
        text = f"look at this {other if wrong else named[number]}"
        _put(folder / "img" / f"{number:05d}.png", _png(sample, text))
        lines.append({"id": number, "img": f"img/{number:05d}.png", "label": wrong, "text": text})
    _jsonl(folder / "test_seen.jsonl", lines)


def _pope(folder: Path, samples: Sequence[Sample]) -> None:
    counted = Counter(name for sample in samples for name in _names(sample))
    popular = sorted(counted, key=lambda name: (-counted[name], name))
    files: dict[str, list[dict[str, Any]]] = {"random": [], "popular": [], "adversarial": []}
    for number, sample in enumerate(samples):
        _put(folder / "val2014" / _coco(number), _jpeg(sample))
        there = _names(sample)
        absent = [name for name in popular if name not in there] or ["moon"]
        # Adversarial in POPE: absent things that often come with those that are there. Here: the neighbour in the alphabet.
        beside = min(absent, key=lambda name, first=there[0]: (name < first, name))
        wrong = {"random": absent[(7 * number) % len(absent)], "popular": absent[0], "adversarial": beside}
        for kind, records in files.items():
            for label, name in (("yes", there[number % len(there)]), ("no", wrong[kind])):
                records.append({"question_id": len(records) + 1, "image": _coco(number), "text": f"Is there a {name} in the image?", "label": label})
    for kind, records in files.items():
        _jsonl(folder / "output/coco" / f"coco_pope_{kind}.json", records)


# --- our own instructions
def _conversations(folder: Path, samples: Mapping[str, Sequence[Sample]], file: str, *, describe: bool) -> None:
    records = []
    for modality, members in samples.items():
        for sample in members:
            name = f"media/{sample.key}.{sample.extension}"
            _put(folder / name, sample.data)
            question = "Describe it in detail." if describe else sample.meta["questions"][0]["question"]
            answer = " ".join(sample.meta["captions"]) if describe else sample.meta["questions"][0]["answer"]
            records.append({"id": f"{modality}-{sample.key}", modality: name, "origin": "human", "kind": "detail" if describe else "conversation",
                            "source": "sample data", "license": sample.meta["license"],
                            "conversations": [{"from": "human", "value": f"<{modality}>\n{question}"}, {"from": "gpt", "value": answer}]})
    _json(folder / file, records)


# --- files
def _names(sample: Sample) -> list[str]:
    """Things on a scene, or its caption's last word."""
    return [entry["name"] for entry in sample.meta["objects"]] or [sample.meta["captions"][0].strip(" .").split()[-1]]


def _coco(number: int) -> str:
    return f"COCO_val2014_{number:012d}.jpg"


def _picture(sample: Sample, text: str | None) -> Image.Image:
    with Image.open(io.BytesIO(sample.data)) as found:
        picture = found.convert("RGB")
    if text is not None:
        font = ImageFont.load_default(size=max(12, picture.height // 8))
        ImageDraw.Draw(picture).text((picture.width // 20, picture.height // 20), text, fill="white", font=font, stroke_width=2, stroke_fill="black")
    return picture


def _jpeg(sample: Sample, text: str | None = None) -> bytes:
    """The picture as a JPEG file; the shards' own bytes where they are one."""
    return sample.data if text is None and sample.extension in ("jpg", "jpeg") else _encoded(_picture(sample, text))


def _png(sample: Sample, text: str | None = None) -> bytes:
    return _encoded(_picture(sample, text), "PNG")


def _encoded(picture: Image.Image, kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return stream.getvalue()


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _json(path: Path, document: Any) -> None:
    _put(path, json.dumps(document, ensure_ascii=False, indent=1).encode())


def _jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    _put(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())


def _csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n").writerows(rows)
    _put(path, stream.getvalue().encode())
