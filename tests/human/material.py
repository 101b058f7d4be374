"""Predictions of two made-up systems with their media, and Label Studio's exports as a project of theirs would have them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from anymal.data.manifest import write_manifest
from anymal.data.shards import Sample, ShardWriter
from anymal.evaluation.human.form import CRITERIA, PREFERENCE, SIDES, control
from anymal.evaluation.predictions import write_predictions
from tests import tiny

EXTENSIONS = {"image": "png", "audio": "wav", "video": "mp4", "imu": "npy"}
COLOURS = ("red", "green", "blue")
Task = dict[str, Any]


def content(modality: str, index: int) -> bytes:
    """A medium; no two are the same."""
    colour = f"rgb({index % 256}, {index * 7 % 256}, {index * 31 % 256})"
    made: dict[str, Callable[[], bytes]] = {
        "image": lambda: tiny.picture(colour, (96, 64)), "audio": lambda: tiny.sound(200.0 + 5 * index),
        "video": lambda: tiny.clip((colour, "white")), "imu": lambda: tiny.motion(0.5 + 0.01 * index)}
    return made[modality]()


def key(modality: str, index: int) -> str:
    """A key that tells what is in the medium, as curated ones do."""
    return f"{modality}-{COLOURS[index % 3]}-{index:03d}"


def make_shards(folder: Path, modality: str, count: int) -> Path:
    """Media of a test split."""
    with ShardWriter(folder, "test", 7) as writer:
        for index in range(count):
            meta = {"split": "test", "source": "made", "license": "CC0-1.0", "captions": [], "questions": [], "duration": 5.0, "rate": 50}
            writer.write(Sample(key(modality, index), EXTENSIONS[modality], content(modality, index), meta))
    write_manifest(folder)
    return folder


def predictions(folder: Path, modality: str, answer: Callable[[int], str], count: int, *, task: str = "qa", **changes: Any) -> Path:
    """What a system said about each medium, as the stage evaluate writes it."""
    records = []
    for index in range(count):
        record: dict[str, Any] = {"key": key(modality, index), "prediction": {"right": answer(index)}, "references": [COLOURS[index % 3]],
                                  "source": "made", "label": None, "kind": ("colour", "count")[index % 2]}
        if task != "caption":
            record |= {"question": "Which colour is it?", "question_id": f"{key(modality, index)}-0"}
        records.append(record | changes)
    write_predictions(folder, modality, {task: records}, {"seed": 0, "tasks": {task: {"prompt": "", "protocol": "", "vocabulary": None}}})
    return folder


def judged(
    task: Task, annotator: int, preferred: str, points: Mapping[str, tuple[int, int]] | None = None, *, number: int = 1, **changes: Any
) -> Task:
    """A task with an annotation added to it.

    Args:
        points: criterion -> points of the left and of the right answer; by default the preferred one gets all and the other none.
    """
    full = {name: criterion.most for name, criterion in CRITERIA.items()}
    by_preference = {name: tuple(most if preferred in (side, "tie") else 0 for side in SIDES) for name, most in full.items()}
    given = {**by_preference, **(points or {})}
    result = [choice(control(side, name), str(given[name][place])) for place, side in enumerate(SIDES) for name in CRITERIA]
    annotation = {"id": number, "completed_by": annotator, "was_cancelled": False, "ground_truth": False,
                  "result": [*result, choice(PREFERENCE, preferred)], **changes}
    return {**task, "annotations": [*task.get("annotations", []), annotation]}


def choice(name: str, value: str) -> Task:
    """One answer on the form as Label Studio stores it."""
    return {"id": f"r-{name}", "type": "choices", "from_name": name, "to_name": "left", "origin": "manual", "value": {"choices": [value]}}


def tasks(out: Path, project: str) -> list[Task]:
    """The tasks of a project as an export has them: numbered, and annotated by nobody."""
    exported: list[Task] = json.loads((out / project / "tasks.json").read_text(encoding="utf-8"))
    return [{**task, "id": number, "annotations": [], "drafts": [], "predictions": []} for number, task in enumerate(exported, start=1)]


def write(path: Path, document: object) -> Path:
    """A JSON file."""
    path.write_text(json.dumps(document), encoding="utf-8")
    return path
