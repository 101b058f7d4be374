"""VQA and VizWiz: submission files and annotations.

VQA (v1, v2, OK-VQA): `[{question_id, answer}]` and `{annotations: [{question_id, image_id, answers: [{answer, …}]}]}`.
VizWiz, where each picture has one question: `[{image, answer}]` and `[{image, question, answers: [{answer, …}]}]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from anymal.errors import DataError
from anymal.evaluation.formats.documents import as_number, entries, field, identifier, keyed, read_json, write_json


class Annotation(NamedTuple):
    """What annotators answered to a question, and the picture that it is about."""

    answers: list[str]
    medium: str


def read_answers(path: Path) -> dict[str, str]:
    """Question -> answer, of a submission file.

    Raises:
        DataError: if the file is of another layout, or a question stands twice.
    """
    return _said(path, "question_id")


def write_answers(path: Path, answers: Mapping[str, str]) -> None:
    """Write a submission file, in the order given."""
    write_json(path, [{"question_id": as_number(question), "answer": answer} for question, answer in answers.items()])


def read_annotations(path: Path) -> dict[str, Annotation]:
    """Question -> what its annotators said.

    Raises:
        DataError: if the file is of another layout, a question stands twice or has no answer.
    """
    found = entries(path, read_json(path), "annotations")
    return keyed(((where, identifier(entry, "question_id", where), Annotation(_answers(entry, where), identifier(entry, "image_id", where)))
                  for where, entry in found), "question_id")  # fmt: skip


def read_vizwiz_answers(path: Path) -> dict[str, str]:
    """Picture -> answer, of a submission file; errors as `read_answers`."""
    return _said(path, "image")


def write_vizwiz_answers(path: Path, answers: Mapping[str, str]) -> None:
    """Write a submission file, in the order given."""
    write_json(path, [{"image": image, "answer": answer} for image, answer in answers.items()])


def read_vizwiz_annotations(path: Path) -> dict[str, Annotation]:
    """Picture -> what its annotators said; errors as `read_annotations`."""
    found = entries(path, read_json(path))
    return keyed(((where, image, Annotation(_answers(entry, where), image))
                  for where, entry, image in ((where, entry, identifier(entry, "image", where)) for where, entry in found)), "image")  # fmt: skip


def _said(path: Path, name: str) -> dict[str, str]:
    found = entries(path, read_json(path))
    return keyed(((where, identifier(entry, name, where), field(entry, "answer", where, (str,))) for where, entry in found), name)


def _answers(entry: dict[str, Any], where: str) -> list[str]:
    answers = field(entry, "answers", where, (list,))
    if not answers:
        raise DataError(f"{where}: answers is empty; leave questions without answers out of the references")
    return [field(answer, "answer", f"{where}.answers[{number}]", (str,)) for number, answer in enumerate(answers)]
