"""Which annotations count, and that every other one is listed with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anymal.errors import DataError
from anymal.evaluation.human.judgements import REASONS, read_exports, read_judgements
from anymal.evaluation.human.study import Key, digest
from tests.human.material import Task, choice, judged, write


def a_task(number: int, **changes: Any) -> Task:
    data = {"study": "s1", "sample": f"{number:05d}", "question": "Which colour?", "left": f"left {number}", "right": f"right {number}", "image": "x"}
    return {"id": 100 + number, "data": data | changes, "annotations": [], "drafts": []}


def a_key(*tasks: Task) -> Key:
    entry = {"left": "a", "branch": "image.qa", "id": "x", "kind": "", "project": "image"}
    return Key("s1", ("a", "b"), {task["data"]["sample"]: {**entry, "shown": digest(task["data"])} for task in tasks})


def left_out(*tasks: Task, known: tuple[Task, ...] = ()) -> list[tuple[str, str | None, str]]:
    judgements, found = read_judgements(a_key(*(known or tasks)), tasks)
    assert not judgements
    return [(entry.sample, entry.annotation, entry.reason) for entry in found]


def without(task: Task, name: str) -> Task:
    annotation = task["annotations"][-1]
    return {**task, "annotations": [{**annotation, "result": [entry for entry in annotation["result"] if entry["from_name"] != name]}]}


def replaced(task: Task, name: str, *values: str) -> Task:
    changed = without(task, name)
    changed["annotations"][0]["result"] += [choice(name, value) for value in values]
    return changed


def test_judgements_are_read_and_names_are_not():
    task = judged(a_task(1), 7, "left", {"recognition": (1, 0)}, completed_by={"id": 7, "email": "ann@example.org"})
    (found,), nothing = read_judgements(a_key(task), [task])
    assert (found.sample, found.annotator, found.preferred, nothing) == ("00001", "7", "left", [])
    assert found.points == {"left": {"recognition": 1, "response": 2, "integrity": 2}, "right": {"recognition": 0, "response": 0, "integrity": 0}}
    assert "ann@" not in repr(found)


@pytest.mark.parametrize(("task", "annotation", "reason"), [
    (a_task(1), None, "not_annotated"),
    (judged(a_task(1), 1, "left", was_cancelled=True), "1", "skipped"),
    (without(judged(a_task(1), 1, "left"), "preference"), "1", "incomplete"),
    (without(judged(a_task(1), 1, "left"), "right_integrity"), "1", "incomplete"),
    (replaced(judged(a_task(1), 1, "left"), "left_response", "1"), "1", "unknown_form"),
    (replaced(judged(a_task(1), 1, "left"), "preference", "left", "right"), "1", "unknown_form"),
    (judged(a_task(1), 1, "left", result="x"), "1", "unknown_form"),
    (judged(a_task(1), 1, "left", {name: (0, 2) for name in ("recognition", "response", "integrity")}), "1", "contradictory"),
    (judged(a_task(1), 1, "right", {"recognition": (2, 1), "response": (2, 2), "integrity": (2, 2)}), "1", "contradictory"),
    (judged(a_task(1, left="same", right="same"), 1, "left"), "1", "contradictory"),
    (judged(a_task(1, left="same", right="same"), 1, "tie", {"recognition": (1, 2)}), "1", "contradictory"),
])  # fmt: skip
def test_what_does_not_count_is_listed_with_its_reason(task, annotation, reason):
    assert left_out(task) == [("00001", annotation, reason)]


@pytest.mark.parametrize("task", [
    judged(a_task(1), 1, "tie", {"recognition": (2, 1)}),
    judged(a_task(1), 1, "left", {"recognition": (2, 2), "response": (2, 2), "integrity": (2, 2)}),
    judged(a_task(1), 1, "right", {"recognition": (2, 1), "response": (0, 2)}),
    judged(a_task(1, left="same", right="same"), 1, "tie"),
])  # fmt: skip
def test_what_is_no_contradiction_counts(task):
    judgements, found = read_judgements(a_key(task), [task])
    assert (len(judgements), found) == (1, [])


def test_drafts_unknown_changed_and_missing_tasks_are_listed():
    drafted = {**a_task(1), "drafts": [{"id": 9}, 10]}
    stranger, changed = judged(a_task(2), 1, "left"), judged(a_task(3), 1, "left")
    edited = {**changed, "data": changed["data"] | {"left": "left 3, and better"}}
    other = {**a_task(5), "data": a_task(5)["data"] | {"study": "s2"}}
    found = left_out(drafted, stranger, edited, other, known=(drafted, changed, a_task(4), a_task(5)))
    assert found == [("00001", None, "not_annotated"), ("00001", "10", "draft"), ("00001", "9", "draft"), ("00002", None, "unknown_task"),
                     ("00003", None, "changed"), ("00004", None, "missing"), ("00005", None, "missing"), ("00005", None, "unknown_task")]
    assert {reason for _, _, reason in found} <= set(REASONS)


def test_of_two_judgements_of_one_annotator_the_later_counts():
    task = judged(judged(judged(a_task(1), 1, "left", number=5), 1, "right", number=3), 2, "right", number=4)
    judgements, found = read_judgements(a_key(task), [task])
    assert [(entry.annotator, entry.preferred) for entry in judgements] == [("1", "left"), ("2", "right")]
    assert [(entry.annotation, entry.reason) for entry in found] == [("3", "superseded")]


@pytest.mark.parametrize(("content", "said"), [
    ("{", "is not valid JSON"), ("{}", "choose JSON, not JSON-MIN"), ('[{"id": 1, "image": "x", "preference": "left"}]', "choose JSON, not JSON-MIN"),
    ("[3]", "is not a list of tasks"), ('[{"data": {}, "annotations": "x"}]', "is not a list of tasks"), ("[]", "tasks of no study whose key"),
    ('[{"data": {"study": "s3"}}]', "tasks of no study"), ('[{"data": {"study": "s1"}}, {"data": {"study": "s2"}}]', "tasks of 2 studies"),
])  # fmt: skip
def test_exports_that_cannot_be_scored_are_named(tmp_path: Path, content: str, said: str):
    (tmp_path / "export.json").write_text(content)
    with pytest.raises(DataError, match=rf"--export .*export.json: .*{said}"):
        read_exports([tmp_path / "export.json"], [Key("s1", ("a", "b"), {}), Key("s2", ("c", "d"), {})])


def test_each_study_gets_its_exports_and_needs_one(tmp_path: Path):
    paths = [write(tmp_path / f"{place}.json", [a_task(place) if place < 3 else {**a_task(1), "data": {"study": "s2"}}]) for place in (1, 2, 3)]
    keys = [Key("s1", ("a", "b"), {}), Key("s2", ("c", "d"), {})]
    found = read_exports(paths, keys)
    assert {study: len(tasks) for study, tasks in found.items()} == {"s1": 2, "s2": 1}
    with pytest.raises(DataError, match="--key: no export belongs to the study of c and d"):
        read_exports(paths[:2], keys)
    with pytest.raises(DataError, match="no such file"):
        read_exports([tmp_path / "none.json"], keys)


def test_a_byte_order_mark_does_no_harm(tmp_path: Path):
    (tmp_path / "export.json").write_text("\ufeff" + json.dumps([a_task(1)]), encoding="utf-8")
    assert len(read_exports([tmp_path / "export.json"], [Key("s1", ("a", "b"), {})])["s1"]) == 1
