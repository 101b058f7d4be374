"""The predictions folder: everything that scoring needs, in the formats that other tools read.

Per task of a modality (`caption`, `vqa`), in `MODALITY/`: `TASK.jsonl` (one record a line, all conditions), the COCO or VQA reference
files (`caption.references.json`; `vqa.questions.json`, `vqa.annotations.json`) and a result file a condition (`caption.right.json`:
`[{image_id, caption}]`; `vqa.right.json`: `[{question_id, answer}]`). Beside them `protocol.json` and `manifest.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anymal.data.manifest import verify_manifest, write_manifest
from anymal.errors import DataError
from anymal.evaluation.controls import CONDITIONS

PROTOCOL = "protocol.json"

Record = dict[str, Any]


def write_predictions(folder: Path, modality: str, tasks: dict[str, list[Record]], protocol: dict[str, Any]) -> None:
    """Write a predictions folder.

    Args:
        tasks: "caption" and/or "vqa" -> its records, as `anymal.evaluation.predict` makes them.
        protocol: `{"resamples", "seed", "tasks": {task: {"prompt", "protocol"}}}`.
    """
    target = folder / modality
    target.mkdir(parents=True, exist_ok=True)
    for task, records in tasks.items():
        lines = [json.dumps(record, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n" for record in records]
        (target / f"{task}.jsonl").write_text("".join(lines), encoding="utf-8")
        for name, document in (_caption_files if task == "caption" else _vqa_files)(records).items():
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
    tasks = {}
    for task in protocol["tasks"]:
        with (folder / protocol["modality"] / f"{task}.jsonl").open(encoding="utf-8", newline="\n") as lines:
            tasks[task] = [json.loads(line) for line in lines]
    return protocol, tasks


def _caption_files(records: list[Record]) -> dict[str, Any]:
    pairs = [(record["key"], text) for record in records for text in record["references"]]
    files: dict[str, Any] = {f"caption.{c}.json": [{"image_id": r["key"], "caption": r["prediction"][c]} for r in records] for c in CONDITIONS}
    files["caption.references.json"] = {
        "images": [{"id": record["key"]} for record in records],
        "annotations": [{"id": number, "image_id": key, "caption": text} for number, (key, text) in enumerate(pairs)],
    }
    return files


def _vqa_files(records: list[Record]) -> dict[str, Any]:
    files: dict[str, Any] = {f"vqa.{c}.json": [{"question_id": r["question_id"], "answer": r["prediction"][c]} for r in records] for c in CONDITIONS}
    files["vqa.questions.json"] = {"questions": [{"question_id": r["question_id"], "image_id": r["key"], "question": r["question"]} for r in records]}
    files["vqa.annotations.json"] = {
        "annotations": [
            {"question_id": r["question_id"], "image_id": r["key"], "question_type": r["kind"], "multiple_choice_answer": r["references"][0],
             "answers": [{"answer_id": number, "answer": answer} for number, answer in enumerate(r["references"], start=1)]}
            for r in records
        ]
    }  # fmt: skip
    return files
