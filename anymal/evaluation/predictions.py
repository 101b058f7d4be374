"""The predictions folder: everything that scoring needs, in the formats that other tools read.

Per task (`caption`; `vqa` or `qa`), in `MODALITY/` ("mixed" for questions about several media): `TASK.jsonl` (one record a line, all
conditions), the COCO or VQA reference files (`caption.references.json`; `qa.questions.json`, `qa.annotations.json`) and a result file a
condition (`caption.right.json`: `[{image_id, caption}]`; `qa.right.json`: `[{question_id, answer}]`), where `image_id` is the sample's
key whatever its modality. Beside them `previews/MODALITY/KEY.png` (and `KEY.mp3` of sounds), `protocol.json` and `manifest.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anymal.data.manifest import verify_manifest, write_manifest
from anymal.errors import DataError
from anymal.evaluation.previews import FOLDER

PROTOCOL = "protocol.json"
TASKS = ("caption", "vqa", "qa")
MIXED = "mixed"

Record = dict[str, Any]


def write_predictions(folder: Path, modality: str, tasks: dict[str, list[Record]], protocol: dict[str, Any]) -> None:
    """Write a predictions folder; its previews must be there already.

    Args:
        modality: a modality or "mixed".
        tasks: "caption", "vqa" or "qa" -> its records, as `anymal.evaluation.predict` and `anymal.evaluation.mixed` make them.
        protocol: `{"seed", "tasks": {task: {"prompt", "protocol", "vocabulary"}}}`; the vocabulary is the labels of the split (captions),
            the answers by modality (mixed), or null.
    """
    target = folder / modality
    target.mkdir(parents=True, exist_ok=True)
    for task, records in tasks.items():
        lines = [json.dumps(record, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n" for record in records]
        (target / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")
        for name, document in (_caption_files if task == "caption" else _question_files)(task, records).items():
            (target / name).write_text(json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    document = {"modality": modality, **protocol}
    (folder / PROTOCOL).write_text(json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    write_manifest(folder)


def read_predictions(folder: Path) -> tuple[dict[str, Any], dict[str, list[Record]]]:
    """Read a predictions folder: its protocol, and task -> records.

    Raises:
        DataError: if a file is missing, extra or changed, or the folder is no predictions folder.
    """
    verify_manifest(folder)
    if not (folder / PROTOCOL).is_file():
        raise DataError(f"{folder}: has no {PROTOCOL}; it is not a predictions folder, run evaluate")
    protocol: dict[str, Any] = json.loads((folder / PROTOCOL).read_text(encoding="utf-8"))
    unknown = sorted(set(protocol["tasks"]) - set(TASKS))
    if unknown:
        raise DataError(f"{folder / PROTOCOL}: task '{unknown[0]}' cannot be scored; known tasks: {', '.join(TASKS)}; run evaluate again")
    tasks = {}
    for task in protocol["tasks"]:
        with (folder / protocol["modality"] / f"{task}.jsonl").open(encoding="utf-8", newline="\n") as lines:
            tasks[task] = [json.loads(line) for line in lines]
    return protocol, tasks


def preview_path(folder: Path, modality: str, key: str) -> Path:
    """Where the picture of a medium is, if there is one."""
    return folder / FOLDER / modality / f"{key}.png"


def sound_path(folder: Path, modality: str, key: str) -> Path:
    """Where the sound of a medium is, if it has one and there is a picture of it."""
    return preview_path(folder, modality, key).with_suffix(".mp3")


def _caption_files(task: str, records: list[Record]) -> dict[str, Any]:
    pairs = [(record["key"], text) for record in records for text in record["references"]]
    files: dict[str, Any] = {
        f"{task}.{c}.json": [{"image_id": r["key"], "caption": r["prediction"][c]} for r in records] for c in records[0]["prediction"]}
    files[f"{task}.references.json"] = {
        "images": [{"id": record["key"]} for record in records],
        "annotations": [{"id": number, "image_id": key, "caption": text} for number, (key, text) in enumerate(pairs)],
    }
    return files


def _question_files(task: str, records: list[Record]) -> dict[str, Any]:
    files: dict[str, Any] = {
        f"{task}.{c}.json": [{"question_id": r["question_id"], "answer": r["prediction"][c]} for r in records] for c in records[0]["prediction"]}
    files[f"{task}.questions.json"] = {"questions": [{"question_id": r["question_id"], **_about(r), "question": r["question"]} for r in records]}
    files[f"{task}.annotations.json"] = {"annotations": [{"question_id": r["question_id"], **_about(r), **_truth(r)} for r in records]}
    return files


def _about(record: Record) -> dict[str, Any]:
    return {"media": record["keys"]} if "keys" in record else {"image_id": record["key"]}


def _truth(record: Record) -> dict[str, Any]:
    references = record["references"]
    if isinstance(references, dict):  # one answer for each of several media
        return {"answers": references}
    answers = [{"answer_id": number, "answer": answer} for number, answer in enumerate(references, start=1)]
    return {"question_type": record["kind"], "multiple_choice_answer": references[0], "answers": answers}
