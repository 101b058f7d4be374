"""Readers of instruction data: LLaVA's conversation JSON and the exports of Label Studio projects that use the configurations of
`manifests/label-studio`. A new kind of source is one function here and one entry in `READERS`.

A reader yields every record that it meets, usable or not, in the file's order: what is wrong with one is said in its `drop` and counted later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anymal.curation.drops import Drop
from anymal.data.label_studio import form_fields, media_path, skipped
from anymal.errors import DataError
from anymal.model.modalities import modalities, placeholder

MAX_FILE_BYTES = 4 * 2**30
"""Of a file of records: ten times LLaVA's largest. Such a file is parsed as a whole; .jsonl is read line by line."""
MAX_LINE_BYTES = 16 * 2**20

ANSWERABLE, NO_CONSENT = "answerable_without_medium", "no_consent"
FLAGS = {ANSWERABLE: "the annotator marked it so", NO_CONSENT: "the annotator saw a person who has not agreed"}
"""What annotators tick under `problems`, by the aliases of the labelling configurations."""
_TURN = re.compile(r"(question|answer)(?:_([1-9][0-9]?))?")
"""Names of the text fields: `question`, `answer`, and `question_2`, `answer_2`, … of further turns."""


@dataclass(frozen=True)
class Raw:
    """One record as it was found: `record` is in LLaVA's form, or `drop` says why there is none."""

    name: str
    """Its id, or its place in the file."""
    record: Mapping[str, Any] | None
    drop: Drop | None = None


def read_llava(path: Path) -> Iterator[Raw]:
    """Records of LLaVA's JSON (a list) or JSONL.

    Two habits of published files are followed: a field that is null counts as absent, and where a record names files of one modality other than
    images, `<image>` stands for those. A record may hold `answerable_without_medium: true` or `consent: false`, and a
    `group` (a video that clips were cut from) that its split keeps together.

    Raises:
        DataError: if the file cannot be read or holds no JSON list.
    """
    for place, document in _documents(path):
        if isinstance(document, Drop):
            yield Raw(place, None, document)
            continue
        if not isinstance(document, dict):
            yield Raw(place, None, Drop("not_a_record", f"is {_kind(document)}, not an object"))
            continue
        record = {field: value for field, value in document.items() if value is not None}
        name = str(record["id"]) if isinstance(record.get("id"), str | int) else place
        drop = None
        if record.get(ANSWERABLE) is True:
            drop = Drop(ANSWERABLE, "its record says so")
        elif record.get("consent") is False:
            drop = Drop(NO_CONSENT, "its record says so")
        yield Raw(name, None if drop else _own_placeholders(record), drop)


def _own_placeholders(record: dict[str, Any]) -> dict[str, Any]:
    named = [modality for modality in modalities() if modality in record]
    conversations = record.get("conversations")
    if len(named) != 1 or named == ["image"] or not isinstance(conversations, list):
        return record
    said = [turn for turn in conversations if isinstance(turn, dict) and isinstance(turn.get("value"), str)]
    if {found for turn in said for found in placeholder().findall(turn["value"])} != {"image"}:
        return record
    replaced = [turn | {"value": turn["value"].replace("<image>", f"<{named[0]}>")} for turn in said]
    return record | {"conversations": replaced if len(said) == len(conversations) else conversations}


def read_label_studio(path: Path) -> Iterator[Raw]:
    """Annotations of a Label Studio export, in full (JSON) or short form (JSON-MIN): each is a record `TASK-ANNOTATION`.

    Where a task has annotations that are marked as ground truth, the others are left out. What models predicted is not read. The names of the
    annotators are not taken over. `license` and `group` of a task's data are.

    Raises:
        DataError: as `read_llava`.
    """
    for place, task in _documents(path):
        if isinstance(task, Drop):
            yield Raw(place, None, task)
        elif not isinstance(task, dict) or not isinstance(task.get("id"), str | int):
            yield Raw(place, None, Drop("not_a_record", "is not an object with an id"))
        elif isinstance(task.get("data"), dict):
            yield from _full(task)
        else:
            yield _short(task)


def _full(task: Mapping[str, Any]) -> Iterator[Raw]:
    """All annotations and drafts of a task of the full export."""
    annotations, drafts = task.get("annotations") or [], task.get("drafts") or []
    if not isinstance(annotations, list) or not isinstance(drafts, list) or not all(isinstance(entry, dict) for entry in [*annotations, *drafts]):
        yield Raw(f"{task['id']}", None, Drop("not_a_record", "its annotations or drafts are no lists of objects"))
        return
    if not annotations and not drafts:
        yield Raw(f"{task['id']}", None, Drop("not_annotated"))
    truths = [entry for entry in annotations if entry.get("ground_truth") is True and not skipped(entry)]
    for number, entry in enumerate(annotations, start=1):
        name = f"{task['id']}-{entry.get('id', number)}"
        if skipped(entry):
            yield Raw(name, None, Drop("skipped"))
        elif truths and entry.get("ground_truth") is not True:
            yield Raw(name, None, Drop("superseded", f"annotation {truths[0].get('id')} is the ground truth"))
        else:
            yield _form(name, task["data"], form_fields(entry.get("result")))
    for number, draft in enumerate(drafts, start=1):
        yield Raw(f"{task['id']}-draft-{draft.get('id', number)}", None, Drop("draft"))


def _short(task: Mapping[str, Any]) -> Raw:
    """A line of JSON-MIN: the task's data and the values of the controls side by side, one entry as itself and several in an object or a list."""
    if task.get("annotation_id") is None:
        return Raw(f"{task['id']}", None, Drop("not_annotated"))
    fields: dict[str, list[object]] = {}
    for control in task:
        if _TURN.fullmatch(control) or control == "problems":
            parts = task[control] if isinstance(task[control], list) else [task[control]]
            for part in parts:
                entered = part.get("text", part.get("choices")) if isinstance(part, dict) else part
                fields.setdefault(control, []).extend(entered if isinstance(entered, list) else [entered])
    return _form(f"{task['id']}-{task['annotation_id']}", task, fields)


def _form(name: str, data: Mapping[str, Any], fields: Mapping[str, Sequence[object]] | None) -> Raw:
    """A filled-in form as a record of LLaVA's: media before the first question, unless the annotator placed them."""
    if fields is None:
        return Raw(name, None, Drop("unknown_form", "its result is not what Label Studio writes"))
    turns: dict[int, dict[str, str]] = {}
    for control, entered in fields.items():
        found = _TURN.fullmatch(control)
        if found is None:
            continue
        if len(entered) != 1 or not isinstance(entered[0], str):
            return Raw(name, None, Drop("unknown_form", f"{control} holds {len(entered)} entries or no text; one text is asked for"))
        turns.setdefault(int(found.group(2) or 1), {})[found.group(1)] = entered[0]
    for flag, meaning in FLAGS.items():
        if flag in fields.get("problems", []):
            return Raw(name, None, Drop(flag, meaning))
    record: dict[str, Any] = {"id": name}
    record |= {field: data[field] for field in ("license", "group") if isinstance(data.get(field), str)}
    wanted = []
    for modality in modalities():
        if data.get(modality) is not None:
            given = data[modality] if isinstance(data[modality], list) else [data[modality]]
            if not all(isinstance(value, str) for value in given):
                return Raw(name, None, Drop("not_a_record", f"its data's {modality!r} must be an address or a list of them"))
            record[modality] = [media_path(value) for value in given]
            wanted += [f"<{modality}>"] * len(given)
    said = [(number, turns[number].get("question", ""), turns[number].get("answer", "")) for number in sorted(turns)]
    if said and not any(placeholder().search(question) for _, question, _ in said):
        number, question, answer = said[0]
        said[0] = (number, "\n".join([*wanted, question]), answer)
    record["conversations"] = [{"from": role, "value": text} for _, question, answer in said for role, text in (("human", question), ("gpt", answer))]
    return Raw(name, record)


READERS: dict[str, Callable[[Path], Iterator[Raw]]] = {"llava": read_llava, "label_studio": read_label_studio}


def _documents(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, document) of each record; a line of JSONL that is no JSON is a `Drop`."""
    try:
        if not path.is_file():
            raise DataError(f"{path}: no such file; correct the source's `file`, or bring the asset in with ingest")
        if path.suffix.lower() == ".jsonl":
            yield from _lines(path)
            return
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{path}: holds {path.stat().st_size} bytes, more than the {MAX_FILE_BYTES} allowed; split it, or give it as .jsonl")
        documents = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); correct the source's `file`") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not valid JSON ({_first(error)}); export it again, or name it .jsonl if it has a record a line") from error
    if not isinstance(documents, list):
        raise DataError(f"{path}: holds {_kind(documents)}, not a list of records; correct the source's `file` or `reader`")
    for number, document in enumerate(documents, start=1):
        yield f"record {number}", document


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    good = number = 0
    with path.open("rb") as stream:
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{path}: line {number} holds more than the {MAX_LINE_BYTES} bytes allowed; it is no file of a record a line")
            if not line.strip():
                continue
            try:
                yield f"line {number}", json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                good += 1
            except (ValueError, RecursionError) as error:
                yield f"line {number}", Drop("not_json", _first(error))
    if number and not good:
        raise DataError(f"{path}: none of its {number} lines is valid JSON; export it again")


def _kind(document: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(document), "a number")


def _first(error: BaseException) -> str:
    return " ".join(str(error).split())[:100]
