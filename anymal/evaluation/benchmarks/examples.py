"""Samples for the report: what was shown, asked and said, failures first, with a picture of each medium as the encoder saw it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anymal.evaluation.benchmarks.declaration import Declaration
from anymal.evaluation.benchmarks.items import Medium
from anymal.evaluation.benchmarks.media import Library
from anymal.evaluation.benchmarks.prompts import extract
from anymal.evaluation.binary import extract_yes_no
from anymal.evaluation.choice import extract_choice
from anymal.evaluation.names import words
from anymal.evaluation.previews import FOLDER
from anymal.evaluation.vqa import vqa_accuracy

FILE = "examples.jsonl"

Record = dict[str, Any]


def rough_score(record: Mapping[str, Any], declaration: Declaration, how: str) -> float:
    """0 (wrong) to 1 (right) of what was said about the right medium: enough to choose what to show, no figure."""
    said = record["prediction"]["right"]
    if declaration.metric == "choice":
        return float(extract_choice(said, record["options"]) == record["answer"])
    if declaration.options:
        return float(extract_yes_no(said) is (record["answer"] == 0))
    if declaration.metric == "vqa":
        return vqa_accuracy(said, record["references"])
    own = set(words(extract(how, said) or ""))
    return max(2 * len(own & set(words(text))) / max(1, len(own) + len(set(words(text)))) for text in record["references"])


def choose(records: Sequence[Record], scores: Sequence[float], *, limit: int, seed: int) -> list[int]:
    """Places of at most `limit` records about different media: worse and better ones in turn, the worse first."""
    order = np.random.default_rng((seed, 9)).permutation(len(records)).tolist()
    wrong, right = ([place for place in order if (scores[place] > 0.5) is better] for better in (False, True))
    chosen: list[int] = []
    seen: set[str] = set()
    for turn in range(max(len(wrong), len(right))):
        for queue in (wrong, right):
            if turn < len(queue) and len(chosen) < limit and records[queue[turn]]["medium"] not in seen:
                seen.add(records[queue[turn]]["medium"])
                chosen.append(queue[turn])
    return sorted(chosen, key=lambda place: (scores[place], str(records[place]["id"])))


def draw_examples(
    folder: Path, name: str, records: Sequence[Record], library: Library, *, declaration: Declaration, media: Mapping[str, Medium], how: str,
    limit: int, seed: int,
) -> list[dict[str, Any]]:
    """Draw the media of chosen records into `folder/previews/MODALITY/KEY.png` (sounds as KEY.mp3 too); gives their lines of `examples.jsonl`.

    Args:
        media: by name, of all records.
    """
    scores = [rough_score(record, declaration, how) for record in records]
    lines = []
    for place in choose(records, scores, limit=limit, seed=seed):
        record = records[place]
        key = f"{name}-{hashlib.sha256(record['medium'].encode()).hexdigest()[:16]}"
        library.draw(media[record["medium"]], folder / FOLDER / record["modality"] / f"{key}.png")
        lines.append({"benchmark": name, "id": str(record["id"]), "modality": record["modality"], "key": key, "question": record["question"],
                      "references": record["references"], "prediction": record["prediction"], "score": scores[place],
                      "metric": declaration.metric})  # fmt: skip
    return lines


def write_examples(folder: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write `examples.jsonl`; nothing if there are none."""
    if lines:
        text = "".join(json.dumps(line, sort_keys=True, ensure_ascii=False) + "\n" for line in lines)
        (folder / FILE).write_text(text, encoding="utf-8")
