"""lmms-eval's files: `*_samples_TASK.jsonl` (a line a sample) and `*_results.json`.

A sample has `doc_id`, `target` (text), `filtered_resps` (what was said, after the task's filter), `resps` where the filter changed something,
`input` (the prompt), and each metric by name. `doc` and `arguments` are there in some versions only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anymal.errors import DataError
from anymal.evaluation.bootstrap import Figure
from anymal.evaluation.formats import documents
from anymal.evaluation.formats.documents import as_number, entries, identifier, read_json, write_json, write_lines

FILTER = "none"
OWN = frozenset({"doc_id", "target", "doc", "arguments", "resps", "filtered_resps", "input", "doc_hash", "prompt_hash", "target_hash"})


@dataclass(frozen=True)
class Sample:
    """One sample: what was said and expected; its metrics that are numbers; the whole line, for fields that only some tasks have."""

    doc_id: str
    said: str
    target: str
    prompt: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    line: dict[str, Any] = field(default_factory=dict)


def read_samples(path: Path) -> list[Sample]:
    """The samples of a file, in its order.

    Raises:
        DataError: if a line is of another layout, or a sample was not answered in text (tasks scored by likelihood).
    """
    document = read_json(path)
    found = []
    for where, line in entries(path, [document] if isinstance(document, dict) else document):
        said = documents.field(line, "filtered_resps", where, (list, str))
        while isinstance(said, list) and said:
            said = said[0]
        if not isinstance(said, str):
            raise DataError(f"{where}: filtered_resps must hold what was said as text; samples that were scored by likelihood cannot be scored again")
        target = documents.field(line, "target", where, (str, int, list))
        prompt = line.get("input")
        scores = {name: float(value) for name, value in line.items() if name not in OWN and isinstance(value, int | float)}
        found.append(Sample(identifier(line, "doc_id", where), said, target if isinstance(target, str) else json.dumps(target, ensure_ascii=False),
                            prompt if isinstance(prompt, str) else "", scores, line))  # fmt: skip
    return found


def named_by(samples: Iterable[Sample], name: str, path: Path) -> dict[str, Sample]:
    """Samples by an identifier of the data set's own.

    Args:
        name: the field, with dots where it lies deeper: `doc_id`, `doc.question_id`, `submission.image`.
        path: for messages.

    Raises:
        DataError: if a sample lacks it, or two share it.
    """
    triples = []
    for number, sample in enumerate(samples, start=1):
        where, node, (*folders, last) = f"{path} entry {number}", sample.line, name.split(".")
        for folder in folders:
            node = documents.field(node, folder, where, (dict,))
        triples.append((where, identifier(node, last, where), sample))
    return documents.keyed(triples, name)


def write_samples(path: Path, samples: Iterable[Sample]) -> None:
    """Write a file of samples in the fields that lmms-eval writes."""
    write_lines(path, (
        {"doc_id": as_number(sample.doc_id), "target": sample.target, "filtered_resps": [sample.said], **sample.scores, "input": sample.prompt}
        for sample in samples))  # fmt: skip


def read_results(path: Path) -> dict[str, dict[str, float]]:
    """Task -> metric -> value, of a file of results; the name of a filter stays where it is not the plain one (`accuracy,strict`).

    Raises:
        DataError: if the file is of another layout.
    """
    results = documents.field(read_json(path), "results", str(path), (dict,))
    found: dict[str, dict[str, float]] = {}
    for task, values in results.items():
        if not isinstance(values, dict):
            raise DataError(f"{path}: results.{task} must be an object")
        found[task] = {name.removesuffix(f",{FILTER}"): float(value) for name, value in values.items()
                       if "," in name and isinstance(value, int | float) and not isinstance(value, bool)}  # fmt: skip
    return found


def write_results(path: Path, figures: Mapping[str, Mapping[str, Figure]], *, model: str, prompts: Mapping[str, str]) -> None:
    """Write a file of results.

    lmms-eval has standard errors where we have intervals, so `_stderr` is "N/A" as it writes it too, and the intervals stand beside the results.

    Args:
        figures: task -> metric -> figure.
        prompts: task -> its prompt, for `configs`.
    """
    tasks = sorted(figures)
    write_json(path, {
        "results": {task: {"alias": task, **{f"{metric}{part},{FILTER}": value for metric, figure in sorted(figures[task].items())
                                             for part, value in (("", figure["value"]), ("_stderr", "N/A"))}} for task in tasks},
        "configs": {task: {"task": task, "doc_to_text": prompts[task]} for task in tasks},
        "versions": dict.fromkeys(tasks, "anymal"),
        "n-shot": dict.fromkeys(tasks, 0),
        "n-samples": {task: {"original": n, "effective": n} for task in tasks for n in [max(figure["n"] for figure in figures[task].values())]},
        "intervals": {task: {metric: [figure["low"], figure["high"]] for metric, figure in sorted(figures[task].items())} for task in tasks},
        "model_name": model,
    })  # fmt: skip
