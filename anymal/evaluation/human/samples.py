"""What people are asked to judge: the answers of two systems to the same questions, drawn evenly, and which of them stands on which side."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any, NamedTuple

import numpy as np

from anymal.errors import ConfigError, DataError
from anymal.evaluation.benchmarks.folder import read_runs
from anymal.evaluation.predictions import MIXED, PROTOCOL, read_predictions
from anymal.evaluation.previews import media_of
from anymal.model.modalities import modalities

REFERENCE = "reference"
"""The system whose answers are those that people wrote."""
THINGS = {"image": "picture", "audio": "sound", "video": "video", "imu": "motion"}
"""What a question about a medium calls it, where that is not the modality's name."""
DROPPED = {
    "part_of_a_file": "it is about a part of a recording, which cannot be shown alone",
    "only_one_system": "one of the systems did not answer it",
    "another_question": "the systems were asked different questions or shown different media",
    "no_reference": "its references are parts of an answer, not an answer",
}
"""Why a record is not offered for comparison."""

Name = tuple[str, str]
"""Branch and id of a record: `("image.vqa", "scene-3-0")`."""


class Medium(NamedTuple):
    """What a question is about."""

    modality: str
    key: str
    """Of a sample in the shards of the modality, or a path below the asset's folder."""
    benchmark: str | None = None
    """Whose asset holds it; None: shards do."""


@dataclass(frozen=True)
class Item:
    """A question about media, and what one system said."""

    branch: str
    """Where it stands in the results: `image.vqa`."""
    id: str
    kind: str
    question: str
    media: tuple[Medium, ...]
    """In the order of the modalities."""
    answer: str
    references: tuple[str, ...]
    """Whole answers that people gave; empty if the record has only parts of one."""

    @property
    def project(self) -> str:
        """Samples with media of the same modalities are one project of Label Studio: `image`, `image-imu`."""
        return "-".join(medium.modality for medium in self.media)


@dataclass(frozen=True)
class Sample:
    """One comparison: what was asked, and the answers of the first and the second system."""

    item: Item
    answers: tuple[str, str]
    first_is_left: bool = True


def read_system(folders: Sequence[Path]) -> dict[Name, Item]:
    """The answers of one system to the right input, from folders that the stages evaluate and benchmark wrote.

    Raises:
        DataError: if a folder is damaged or no predictions folder, or two of them answer the same question.
    """
    found: dict[Name, Item] = {}
    asked = [folder for folder in folders if _holds_benchmarks(folder)]
    for folder in folders:
        for item in () if folder in asked else _own_items(folder):
            if (item.branch, item.id) in found:
                raise DataError(f"{folder}: answers {item.branch} {item.id}, as another folder of the same system does; give each branch once")
            found[item.branch, item.id] = item
    for name, run in (read_runs(asked) if asked else {}).items():
        items = (_benchmark_item(name, record) for record in run.records)
        found |= {(item.branch, item.id): item for item in items}
    return found


def _holds_benchmarks(folder: Path) -> bool:
    """Whether the stage benchmark wrote a folder, and not evaluate; what is wrong with it is found when it is read."""
    try:
        return "benchmarks" in json.loads((folder / PROTOCOL).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _own_items(folder: Path) -> Iterator[Item]:
    protocol, tasks = read_predictions(folder)
    return (_item(protocol["modality"], task, record) for task, records in tasks.items() for record in records)


def _benchmark_item(name: str, record: Mapping[str, Any]) -> Item:
    modality = record["modality"]
    question = record["question"] or f"Describe the {THINGS.get(modality, modality)}."
    options = [f"({letter}) {option}" for letter, option in zip(ascii_uppercase, record["options"] or (), strict=False)]
    return Item(branch=f"benchmarks.{name}", id=str(record["id"]), kind=record["kind"] or "", question="\n".join([question, *options]),
                media=(Medium(modality, record["medium"], name),), answer=record["prediction"]["right"], references=tuple(record["references"]))


def _item(modality: str, task: str, record: Mapping[str, Any]) -> Item:
    media = media_of(record, modality)
    order = [*modalities(), *sorted(set(media) - set(modalities()))]
    references = record["references"]
    return Item(
        branch=f"{modality}.{task}", id=record.get("question_id") or record["key"], kind=record.get("kind") or record.get("source") or "",
        question=record.get("question") or f"Describe the {THINGS.get(modality, modality)}.",
        media=tuple(Medium(name, media[name]) for name in order if name in media), answer=record["prediction"]["right"],
        references=() if modality == MIXED else tuple(references))


def pair(first: Mapping[Name, Item], second: Mapping[Name, Item] | None, *, seed: int) -> tuple[list[Sample], dict[str, int]]:
    """The records that both systems answered, and how many were left out for each reason of `DROPPED`.

    Args:
        second: None to compare with the references; of several, one is drawn.
    """
    samples: list[Sample] = []
    dropped: Counter[str] = Counter()
    generator = np.random.default_rng((seed, 11))
    for name in sorted(first):
        item = first[name]
        if any("#" in medium.key for medium in item.media):
            dropped["part_of_a_file"] += 1
        elif second is None:
            if item.references:
                samples.append(Sample(item, (item.answer, item.references[int(generator.integers(len(item.references)))])))
            else:
                dropped["no_reference"] += 1
        elif name not in second:
            dropped["only_one_system"] += 1
        elif (item.question, item.media) != (second[name].question, second[name].media):
            dropped["another_question"] += 1
        else:
            samples.append(Sample(item, (item.answer, second[name].answer)))
    if second is not None:
        dropped["only_one_system"] += len(set(second) - set(first))
    return samples, {reason: dropped[reason] for reason in DROPPED if dropped[reason]}


def draw(samples: Iterable[Sample], *, count: int, seed: int) -> list[Sample]:
    """`count` samples in the order in which they are shown; each system is left in exactly half of them.

    Branches take turns, within a branch the kinds of question, and within a kind those about a medium that was not drawn yet come first.

    Raises:
        ConfigError: if the count is odd or below 2.
        DataError: if there are fewer samples than asked for.
    """
    if count < 2 or count % 2:
        raise ConfigError(f"--count {count}: must be even and at least 2, so that each system stands on the left in exactly half of the samples")
    branches: dict[str, dict[str, list[Sample]]] = {}
    for sample in sorted(samples, key=lambda sample: (sample.item.branch, sample.item.kind, sample.item.id)):
        branches.setdefault(sample.item.branch, {}).setdefault(sample.item.kind, []).append(sample)
    available = sum(len(members) for kinds in branches.values() for members in kinds.values())
    if available < count:
        raise DataError(f"--count {count}: the systems share only {available} samples that can be compared; ask for fewer, or evaluate on more")
    generator = np.random.default_rng((seed, 12))
    queues = [_in_turn([_unseen_media_first(members, generator) for members in kinds.values()], generator) for kinds in branches.values()]
    chosen = _in_turn(queues, generator)[:count]
    # Alternating over sorted samples balances the sides within projects and strata too, as far as their numbers are even.
    chosen.sort(key=lambda sample: (sample.item.project, sample.item.branch, sample.item.kind))
    left = bool(generator.integers(2))
    sided = [Sample(sample.item, sample.answers, left == (place % 2 == 0)) for place, sample in enumerate(chosen)]
    return [sided[place] for place in generator.permutation(count).tolist()]


def _in_turn(queues: Sequence[Sequence[Sample]], generator: np.random.Generator) -> list[Sample]:
    """All samples: the first of each queue, the second of each, and so on, the queues in random order."""
    order = generator.permutation(len(queues)).tolist()
    return [queues[place][turn] for turn in range(max(map(len, queues), default=0)) for place in order if turn < len(queues[place])]


def _unseen_media_first(samples: Sequence[Sample], generator: np.random.Generator) -> list[Sample]:
    """In random order, the n-th questions about media before the (n + 1)-th."""
    seen: Counter[tuple[Medium, ...]] = Counter()
    placed: list[tuple[int, Sample]] = []
    for place in generator.permutation(len(samples)).tolist():
        media = samples[place].item.media
        placed.append((seen[media], samples[place]))
        seen[media] += 1
    return [sample for _, sample in sorted(placed, key=lambda entry: entry[0])]
