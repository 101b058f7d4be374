"""From official files to samples: a function a family, or a layout; `declarations.yaml` says which, and which field holds what.

Every reader raises `DataError` naming file, record and field where a file is not as its official layout has it. A sample whose medium is not there
is listed, not an error: many people have only some of a benchmark's media.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import partial

from anymal.data.instructions import InvalidRecordError, parse_instruction
from anymal.errors import DataError
from anymal.evaluation.benchmarks.items import Item, Layout, Reading
from anymal.evaluation.benchmarks.rows import NAMES, Row, csv_rows, json_rows, line_rows, read_json
from anymal.model.modalities import placeholder

SEGMENT = re.compile(r"\[\s*([0-9.]+)\s*:\s*([0-9.]+)\s*\]")
SHORTEST_SEGMENT = 0.5
"""Seconds. Some segments of How2QA begin where they end."""
HOW2QA = ("video_id", "segment", "wrong_1", "wrong_2", "wrong_3", "question", "right")


def karpathy(layout: Layout) -> Reading:
    """COCO in Karpathy's split: `images` with `split`, `cocoid` and `sentences`."""
    reading = Reading()
    for row in json_rows(layout.files["records"], "images"):
        if row.text("split") == layout.split:
            name, captions = row.name("cocoid"), row.texts("sentences", "raw")
            layout.add(reading, row, partial(Item, name, references=tuple(filter(None, captions))), name=name)
    return reading


def captions_table(layout: Layout) -> Reading:
    """A CSV file with one caption or several a line; lines of one medium are one sample."""
    columns = layout.fields["captions"]
    owners: dict[str, tuple[Row, list[str]]] = {}
    for row in csv_rows(layout.files["records"], needed=[layout.fields["id"], *columns]):
        said = owners.setdefault(row.text(layout.fields["id"]), (row, []))[1]
        said += [row.text(column) for column in columns]
    reading = Reading()
    for name, (row, captions) in owners.items():
        layout.add(reading, row, partial(Item, name, references=tuple(captions)), name=name)
    return reading


def narrations(layout: Layout) -> Reading:
    """Ego4D: each narration about the camera wearer with the motion around its time, of the videos that `ego4d.json` puts into the split."""
    field, half = layout.fields["split"], layout.fields["seconds"] / 2
    videos = {row.text("video_uid"): row for row in json_rows(layout.files["videos"], "videos")}
    wanted = {video for video, row in videos.items() if row.text(field, empty=True) == layout.split}
    reading = Reading()
    for name, video, seconds, sentence in layout.motions.narrations(layout.files["records"]):
        if video not in wanted:
            continue
        if seconds is None or sentence is None:
            reading.unusable.append((name, "no_caption: not about the camera wearer, unsure, or without a time"))
            continue
        layout.add(reading, videos[video], partial(Item, name, references=(sentence,)), name=name,
                   values={"video": video}, start=seconds - half, end=seconds + half)
    return reading


def vqa(layout: Layout) -> Reading:
    """The VQA family: questions, and the annotators' answers in them or in a file of their own."""
    fields, truths = layout.fields, layout.fields["truths"]
    asked = json_rows(layout.files["questions"], fields["records"])
    answered = {row.name(fields["id"]): row for row in asked}
    if "annotations" in layout.files:
        answered = {row.name(truths["id"]): row for row in json_rows(layout.files["annotations"], truths["records"])}
    read: dict[str | int, tuple[str, ...]] = {}
    if fields["ocr"] is not None:
        ocr = fields["ocr"]
        for row in json_rows(layout.files["ocr"], ocr["records"]):
            # A picture without words has an empty list.
            read[row.name(ocr["id"])] = () if row.get(ocr["tokens"]) == [] else tuple(row.texts(ocr["tokens"]))
    reading = Reading()
    for row in asked:
        name = row.name(fields["id"])
        if name not in answered:
            raise row.wrong(f"question {name} has no entry in {layout.files['annotations'].name}")
        truth = answered[name]
        tokens: tuple[str, ...] = ()
        if fields["ocr"] is not None:
            if (owner := row.name(fields["ocr"]["id"])) not in read:
                raise row.wrong(f"{fields['ocr']['id']} {owner} has no entry in {layout.files['ocr'].name}")
            tokens = read[owner]
        question, answers = row.text(fields["question"]), tuple(truth.texts(truths["answers"], truths["answer"]))
        kind = None if truths["kind"] is None else truth.text(truths["kind"])
        layout.add(reading, row, partial(Item, name, question=question, references=answers, kind=kind, ocr=tokens), name=name)
    return reading


def labelled(layout: Layout) -> Reading:
    """Pictures with a yes or no to say, a record a line; samples of several files are told apart by the file's name in the declaration."""
    fields = layout.fields
    labels = {str(label): said for label, said in fields["labels"].items()}
    reading = Reading()
    for kind, path in layout.files.items():
        for row in line_rows(path):
            label = row.get(fields["label"])
            if isinstance(label, bool) or str(label) not in labels:
                raise row.wrong(f"field '{fields['label']}' must be one of {', '.join(labels)}, it is {str(label)[:40]}")
            name = row.name(fields["id"])
            several = len(layout.files) > 1
            said, number = labels[str(label)], f"{kind}-{name}" if several else name
            question = "" if fields["question"] is None else row.text(fields["question"])
            text = "" if fields["text"] is None else row.text(fields["text"], empty=True)
            make = partial(Item, number, question=question, references=(said,), options=("yes", "no"), answer=int(said == "no"), text=text,
                           kind=kind if several else None)
            layout.add(reading, row, make, name=number)
    return reading


def scienceqa(layout: Layout) -> Reading:
    """ScienceQA: `problems.json` by id and `pid_splits.json`; questions without a picture are no part of this benchmark."""
    problems, splits = read_json(layout.files["records"]), read_json(layout.files["splits"])
    for path, document in ((layout.files["records"], problems), (layout.files["splits"], splits)):
        if not isinstance(document, dict):
            raise DataError(f"{path}: must be an object, it is {NAMES.get(type(document), 'a value')}; give the benchmark's official file")
    reading = Reading()
    for pid in Row(layout.files["splits"], "the file", splits).texts(layout.split):
        if pid not in problems:
            raise DataError(f"{layout.files['records']}: has no problem '{pid}', which {layout.files['splits'].name} names; give the official files")
        row = Row(layout.files["records"], f"problem {pid}", problems[pid])
        if row.get("image") is None:
            continue
        options, answer = tuple(row.texts("choices")), row.get("answer")
        _choice(layout, reading, row, name=pid, options=options, answer=answer, question=row.text("question"), context=row.text("hint", empty=True),
                kind=row.text("subject"), values={"pid": pid})
    return reading


def how2qa(layout: Layout) -> Reading:
    """How2QA: lines without a header; the right answer is the last, so the options' order is drawn by a hash of the line."""
    reading = Reading()
    for number, row in enumerate(csv_rows(layout.files["records"], columns=HOW2QA), start=1):
        found = SEGMENT.fullmatch(row.text("segment"))
        if found is None:
            raise row.wrong(f"field 'segment' must be [START:END] in seconds, it is {row.text('segment')[:40]}")
        start, end = float(found[1]), float(found[2])
        options = [row.text(column) for column in ("wrong_1", "wrong_2", "wrong_3", "right")]
        order = [place for _, place in sorted((hashlib.sha256(f"{layout.seed}:{number}:{place}".encode()).digest(), place) for place in range(4))]
        _choice(layout, reading, row, name=number, options=[options[place] for place in order], answer=order.index(3),
                question=row.text("question"), start=start, end=max(end, start + SHORTEST_SEGMENT))
    return reading


def star(layout: Layout) -> Reading:
    """STAR: `choices` with `choice_id` and `choice`, and the right one's text as `answer`; the part of the video from `start` to `end`."""
    reading = Reading()
    for row in json_rows(layout.files["records"], None):
        name, options = row.text("question_id"), tuple(row.texts("choices", "choice"))
        if (said := row.text("answer")) not in options:
            raise row.wrong(f"field 'answer' ({said[:60]}) is none of its choices")
        start, end = row.number("start"), row.number("end")
        _choice(layout, reading, row, name=name, options=options, answer=options.index(said), question=row.text("question"),
                kind=name.partition("_")[0], start=start, end=max(end, start + SHORTEST_SEGMENT))
    return reading


def nextqa(layout: Layout) -> Reading:
    """NExT-QA: options `a0` to `a4`, the right one's number as `answer`; `map_vid_vidorID.json` says where a video is."""
    places = Row(layout.files["map"], "the file", read_json(layout.files["map"]))
    letters = [f"a{number}" for number in range(5)]
    reading = Reading()
    for row in csv_rows(layout.files["records"], needed=["video", "question", "answer", "qid", "type", *letters]):
        video, answer = row.text("video"), row.number("answer")
        _choice(layout, reading, row, name=f"{video}_{row.text('qid')}", options=[row.text(letter) for letter in letters], answer=int(answer),
                question=row.text("question"), kind=row.text("type"), values={"vidor": places.text(video)})
    return reading


def conversations(layout: Layout) -> Reading:
    """Our instructions (LLaVA's JSON): the first question about one medium, of any modality, and its answer."""
    reading = Reading()
    defaults = {"origin": "human", "kind": "instruction", "source": "unknown", "license": "unknown"}
    for row in json_rows(layout.files["records"], None):
        try:
            one = parse_instruction({field: value for field, value in row.values.items() if value is not None}, **defaults)
        except InvalidRecordError as error:
            raise row.wrong(str(error)) from error
        if len(one.media) != 1:
            reading.unusable.append((one.id, f"several_media: is about {len(one.media)} media; this benchmark asks about one"))
            continue
        question, answer = one.turns[0]
        make = partial(Item, one.id, question=_without_place(question), references=(answer,), kind=one.kind)
        medium = one.media[0]
        layout.add(reading, row, make, name=one.id, modality=medium.modality, values={"file": medium.member})
    return reading


READERS: dict[str, Callable[[Layout], Reading]] = {
    reader.__name__: reader for reader in (
        karpathy, captions_table, narrations, vqa, labelled, scienceqa, how2qa, star, nextqa, conversations)}


def _without_place(question: str) -> str:
    """A question whose medium the protocol places: its placeholder is left out where it stands alone on a line, and `it` within a sentence."""
    lines = [line for line in question.split("\n") if placeholder().sub("", line).strip()]
    return placeholder().sub("it", "\n".join(lines)).strip()


def _choice(layout: Layout, reading: Reading, row: Row, *, name: str | int, options: Sequence[str], answer: object, question: str,
            context: str = "", kind: str | None = None, values: dict[str, str] | None = None, start: float | None = None,
            end: float | None = None) -> None:
    """Add a question with options."""
    if len(options) < 2 or not all(options):
        raise row.wrong(f"has {len(options)} options, some of them empty" if options and not all(options) else f"has {len(options)} options")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(options):
        raise row.wrong(f"field 'answer' must be the number of one of its {len(options)} options, from 0, it is {str(answer)[:40]}")
    make = partial(Item, name, question=question, references=(options[answer],), options=tuple(options), answer=answer, kind=kind, context=context)
    layout.add(reading, row, make, name=name, values=values, start=start, end=end)
