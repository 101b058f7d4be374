"""Reference files of single benchmarks: POPE's yes/no questions and ScienceQA's problems."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from anymal.errors import DataError
from anymal.evaluation.formats.documents import entries, field, identifier, keyed, read_json

MOST_OPTIONS = 26
"""An option has a letter."""


class YesNo(NamedTuple):
    """Whether yes is right, and the picture that is asked about."""

    yes: bool
    medium: str


class Problem(NamedTuple):
    """The texts of the options, and the place of the right one."""

    options: list[str]
    answer: int


def read_pope(path: Path) -> dict[str, YesNo]:
    """Question -> what is right, of `coco_pope_*.json`: a line a question, `{question_id, image, text, label}`.

    Raises:
        DataError: if the file is of another layout, a question stands twice, or a label is neither yes nor no.
    """
    document = read_json(path)
    triples = []
    for where, entry in entries(path, [document] if isinstance(document, dict) else document):
        label = field(entry, "label", where, (str,))
        if label not in {"yes", "no"}:
            raise DataError(f"{where}: label must be yes or no, found '{label}'")
        triples.append((where, identifier(entry, "question_id", where), YesNo(label == "yes", identifier(entry, "image", where))))
    return keyed(triples, "question_id")


def read_scienceqa(path: Path) -> dict[str, Problem]:
    """Problem -> its options and answer, of `problems.json`: `{id: {choices, answer, …}}`, all splits together.

    Raises:
        DataError: if the file is of another layout, or an answer is no option's place.
    """
    document = read_json(path)
    if not isinstance(document, dict) or not document:
        raise DataError(f"{path}: must be an object of problems by id")
    found = {}
    for name, entry in document.items():
        where = f"{path}: {name}"
        choices, answer = field(entry, "choices", where, (list,)), field(entry, "answer", where, (int,))
        if not all(isinstance(choice, str) for choice in choices) or not MOST_OPTIONS >= len(choices) > 1:
            raise DataError(f"{where}: choices must be 2 to {MOST_OPTIONS} texts, found {len(choices)} entries")
        if not 0 <= answer < len(choices):
            raise DataError(f"{where}: answer {answer} is no place in choices, which has {len(choices)}")
        found[name] = Problem(choices, answer)
    return found
