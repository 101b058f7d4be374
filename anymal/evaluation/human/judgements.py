"""What annotators said, read from Label Studio's exports: usable judgements, and all others with the reason why they are not."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anymal.data.label_studio import form_fields, skipped
from anymal.errors import DataError
from anymal.evaluation.human.form import CRITERIA, PREFERENCE, PREFERENCES, SIDES, control
from anymal.evaluation.human.study import Key, digest

MAX_EXPORT_BYTES = 4 * 2**30
REASONS = {
    "not_annotated": "no annotator has submitted the task",
    "missing": "the task is in no export: Label Studio leaves out what nobody annotated",
    "skipped": "the annotator skipped the task",
    "draft": "the annotator did not submit it",
    "superseded": "the same annotator judged the task again later",
    "incomplete": "a question of the form was not answered",
    "unknown_form": "it holds entries that the form does not have",
    "contradictory": "the preference contradicts the points, or equal answers were judged differently",
    "unknown_task": "the task is not one of the study",
    "changed": "the task's texts are not those that were exported",
}
"""Why a task or an annotation does not count."""


@dataclass(frozen=True)
class Judgement:
    """What one annotator said about one sample."""

    sample: str
    annotator: str
    preferred: str
    """`left`, `right` or `tie`."""
    points: Mapping[str, Mapping[str, int]]
    """Side -> criterion -> points."""


@dataclass(frozen=True)
class LeftOut:
    """A task or annotation that does not count: `reason` is one of `REASONS`."""

    sample: str
    annotation: str | None
    reason: str
    detail: str = ""


def read_exports(paths: Sequence[Path], keys: Sequence[Key]) -> dict[str, list[Mapping[str, Any]]]:
    """Study -> its tasks, as Label Studio's export in the format JSON holds them.

    Raises:
        DataError: if an export cannot be read, is of another format, or belongs to none of the studies; or if a study has no export.
    """
    known = {key.name for key in keys}
    tasks: dict[str, list[Mapping[str, Any]]] = {}
    for path in paths:
        exported = _read(path)
        studies = {task["data"]["study"] for task in exported if task["data"].get("study") in known}
        if len(studies) != 1:
            why = "tasks of no study whose key is given" if not studies else f"tasks of {len(studies)} studies"
            raise DataError(f"--export {path}: holds {why}; give the export of one project together with its --key, unchanged")
        tasks.setdefault(studies.pop(), []).extend(exported)
    if missing := [key for key in keys if key.name not in tasks]:
        raise DataError(f"--key: no export belongs to the study of {' and '.join(missing[0].systems)}; add --export with the project's JSON export")
    return tasks


def _read(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        raise DataError(f"--export {path}: no such file; export the project from Label Studio as JSON")
    if (size := path.stat().st_size) > MAX_EXPORT_BYTES:
        raise DataError(f"--export {path}: holds {size} bytes, more than the {MAX_EXPORT_BYTES} that an export may have; use --media files")
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"--export {path}: is not valid JSON ({' '.join(str(error).split())[:100]}); export the project again as JSON") from error
    lists = ("annotations", "drafts")
    if not isinstance(found, list) or not all(
            isinstance(task, dict) and isinstance(task.get("data"), dict) and all(_objects(task.get(name)) for name in lists) for task in found):
        raise DataError(f"--export {path}: is not a list of tasks with their data and annotations; in Label Studio choose JSON, not JSON-MIN")
    return found


def _objects(found: object) -> bool:
    return found is None or (isinstance(found, list) and all(isinstance(entry, dict | int) for entry in found))


def read_judgements(key: Key, tasks: Sequence[Mapping[str, Any]]) -> tuple[list[Judgement], list[LeftOut]]:
    """The judgements of a study that count, and everything that does not. Annotators are known by number; their names are not taken over.

    Of several judgements of one annotator about one task the last one counts.
    """
    judgements: dict[tuple[str, str], tuple[int, Judgement]] = {}
    left_out: list[LeftOut] = []
    seen: set[str] = set()
    for task in tasks:
        number = str(task["data"].get("sample"))
        if task["data"].get("study") != key.name or number not in key.samples:
            left_out.append(LeftOut(number, None, "unknown_task", f"task {task.get('id')}"))
            continue
        seen.add(number)
        if digest(task["data"]) != key.samples[number]["shown"]:
            left_out.append(LeftOut(number, None, "changed"))
            continue
        for entry in _judged(number, task):
            if isinstance(entry, LeftOut):
                left_out.append(entry)
                continue
            place, judgement = entry
            at = (number, judgement.annotator)
            earlier = judgements.get(at)
            if earlier is not None:
                left_out.append(LeftOut(number, str(min(earlier[0], place)), "superseded"))
            judgements[at] = max(earlier or entry, entry, key=lambda found: found[0])
    left_out += [LeftOut(number, None, "missing") for number in sorted(set(key.samples) - seen)]
    left_out.sort(key=lambda entry: (entry.sample, entry.annotation or "", entry.reason, entry.detail))
    return [judgement for _, (_, judgement) in sorted(judgements.items())], left_out


def _judged(number: str, task: Mapping[str, Any]) -> Iterator[LeftOut | tuple[int, Judgement]]:
    """Each annotation of a task with its number, or why it does not count."""
    # Exports name annotations and drafts that they do not hold by their numbers alone.
    annotations = [entry for entry in task.get("annotations") or () if isinstance(entry, dict)]
    for entry in task.get("drafts") or ():
        yield LeftOut(number, str(entry.get("id") if isinstance(entry, dict) else entry), "draft")
    if not annotations:
        yield LeftOut(number, None, "not_annotated")
    for place, entry in enumerate(annotations):
        name = str(entry.get("id"))
        if skipped(entry):
            yield LeftOut(number, name, "skipped")
            continue
        found = _filled_in(number, _annotator(entry), form_fields(entry.get("result")))
        if isinstance(found, Judgement):
            found = _contradiction(found, equal=task["data"][SIDES[0]] == task["data"][SIDES[1]]) or found
        if isinstance(found, Judgement):
            yield entry["id"] if isinstance(entry.get("id"), int) else place, found
        else:
            yield LeftOut(number, name, *found)


def _annotator(entry: Mapping[str, Any]) -> str:
    by = entry.get("completed_by")
    return str(by.get("id")) if isinstance(by, dict) else str(by)


def _filled_in(number: str, annotator: str, fields: Mapping[str, Sequence[object]] | None) -> Judgement | tuple[str, str]:
    """A judgement, or the reason and the detail of why it is none."""
    if fields is None:
        return "unknown_form", "its result is not what Label Studio writes"
    allowed = {PREFERENCE: set(PREFERENCES)}
    allowed |= {control(side, name): set(map(str, criterion.points)) for side in SIDES for name, criterion in CRITERIA.items()}
    if missing := [name for name in allowed if not fields.get(name)]:
        return "incomplete", f"without {', '.join(missing)}"
    for name, choices in allowed.items():
        if len(fields[name]) != 1 or fields[name][0] not in choices:
            return "unknown_form", f"{name} is {', '.join(map(str, fields[name]))[:60]}; one of {', '.join(sorted(choices))} is asked for"
    points = {side: {name: int(str(fields[control(side, name)][0])) for name in CRITERIA} for side in SIDES}
    return Judgement(number, annotator, str(fields[PREFERENCE][0]), points)


def _contradiction(judgement: Judgement, *, equal: bool) -> tuple[str, str] | None:
    """Why a judgement contradicts itself: equal answers that are not alike, or the worse one in some points and the better one in none preferred."""
    left, right = (judgement.points[side] for side in SIDES)
    if equal:
        return None if judgement.preferred == "tie" and left == right else ("contradictory", "the answers are the same, but were not judged alike")
    if judgement.preferred == "tie" or left == right:
        return None
    better, worse = (left, right) if judgement.preferred == "left" else (right, left)
    if all(better[name] <= worse[name] for name in CRITERIA):
        return "contradictory", f"{judgement.preferred} is preferred, but got fewer points and in nothing more"
    return None
