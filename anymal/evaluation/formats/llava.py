"""LLaVA's `answers.jsonl`: a line an answer, `{question_id, prompt, text, answer_id, model_id, metadata}`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from anymal.evaluation.formats.documents import as_number, entries, field, identifier, keyed, read_json, write_lines


def read_answers(path: Path) -> dict[str, str]:
    """Question -> answer.

    Raises:
        DataError: if the file is of another layout, or a question stands twice.
    """
    document = read_json(path)
    found = entries(path, [document] if isinstance(document, dict) else document)
    return keyed(((where, identifier(entry, "question_id", where), field(entry, "text", where, (str,))) for where, entry in found), "question_id")


def write_answers(path: Path, answers: Iterable[tuple[str, str, str]], *, model: str) -> None:
    """Write triples of question, prompt and answer, in the order given.

    `answer_id`, which is random in LLaVA, is made of the model's name and the question.
    """
    write_lines(path, ({"question_id": as_number(question), "prompt": prompt, "text": text, "answer_id": f"{model}-{question}", "model_id": model,
                        "metadata": {}} for question, prompt, text in answers))  # fmt: skip
