"""Instructions filled into forms from what curation knows of its samples: questions with true answers, captions, and questions about two media.

They are labelled as templates: they widen what human and synthetic instructions ask, and are no substitute for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anymal.data.features import FeatureStore
from anymal.data.instructions import Instruction, MediumName
from anymal.errors import DataError
from anymal.model.modalities import placeholder


@dataclass(frozen=True)
class Described:
    """What is known of a sample, without its medium."""

    modality: str
    member: str
    meta: dict[str, Any]


def read_described(store: FeatureStore) -> list[Described]:
    """What is known of the samples whose features these are, in order."""
    metas = [store.meta(row) for row in range(len(store))]
    return [Described(store.info["modality"], f"{meta['key']}.{meta['extension']}", meta) for meta in metas]


def from_questions(samples: Sequence[Described], *, kinds: Mapping[str, int], seed: int) -> Iterator[Instruction]:
    """The curated questions of these kinds, at most so many of each, drawn without repetition.

    Raises:
        DataError: if there is no question of a kind.
    """
    for salt, (kind, count) in enumerate(sorted(kinds.items())):
        places = [(sample, number) for sample in samples for number, pair in enumerate(sample.meta["questions"]) if pair["kind"] == kind]
        if not places:
            raise DataError(f"compose_instructions: no {_modality(samples)} sample has a question of kind {kind}; name a kind that curate made")
        for index in _draw(len(places), count, (seed, 10, salt)):
            sample, number = places[index]
            pair = sample.meta["questions"][number]
            yield _instruction(f"{sample.modality}-{kind}-{sample.meta['key']}-{number}", [sample], pair["question"], pair["answer"], kind)


def from_captions(samples: Sequence[Described], *, question: str, count: int, seed: int) -> Iterator[Instruction]:
    """A question for a description, answered by a sample's first caption; from at most so many samples."""
    having = [sample for sample in samples if sample.meta["captions"]]
    for index in _draw(len(having), count, (seed, 11)):
        sample = having[index]
        yield _instruction(f"{sample.modality}-caption-{sample.meta['key']}", [sample], question, sample.meta["captions"][0], "caption")


def from_pairs(
    samples: Mapping[str, Sequence[Described]], *, kinds: Mapping[str, str], question: str, answer: str, count: int, seed: int
) -> Iterator[Instruction]:
    """Questions about one medium of each of several modalities, which only all of them together answer.

    Args:
        kinds: modality -> kind of the samples' questions whose answers are filled in; the media come in this order or its reverse.
        question: asked of all.
        answer: with `{image}` and the like where the answers go.

    Raises:
        DataError: if a modality has no question of its kind.
    """
    places: dict[str, list[tuple[Described, str]]] = {}
    for modality, kind in kinds.items():
        places[modality] = [(sample, pair["answer"]) for sample in samples[modality] for pair in sample.meta["questions"] if pair["kind"] == kind]
        if not places[modality]:
            raise DataError(f"compose_instructions: no {modality} sample has a question of kind {kind}; name a kind that curate made")
    name = "+".join(kinds)
    rng = np.random.default_rng((seed, 12))
    for index in range(count):
        chosen = {modality: found[int(rng.integers(len(found)))] for modality, found in places.items()}
        media = [chosen[modality][0] for modality in (kinds if rng.random() < 0.5 else reversed(list(kinds)))]
        filled = re.sub("|".join(re.escape(f"{{{modality}}}") for modality in kinds), lambda found: chosen[found.group()[1:-1]][1], answer)  # noqa: B023
        yield _instruction(f"{name}-{index:06d}", media, question, filled, name)


def _instruction(name: str, media: Sequence[Described], question: str, answer: str, kind: str) -> Instruction:
    if placeholder().search(question):
        raise DataError(f"compose_instructions: the question {question!r} holds a placeholder; media are placed before it, leave it out")
    head = "\n".join(f"<{sample.modality}>" for sample in media)
    return Instruction(
        name, tuple(MediumName(sample.modality, sample.member) for sample in media), ((f"{head}\n{question}", answer),), "template", kind,
        " + ".join(dict.fromkeys(sample.meta["source"] for sample in media)),
        " AND ".join(dict.fromkeys(sample.meta["license"] for sample in media)))  # fmt: skip


def _draw(available: int, count: int, seed: tuple[int, ...]) -> list[int]:
    return sorted(np.random.default_rng(seed).permutation(available)[:count].tolist())


def _modality(samples: Sequence[Described]) -> str:
    return samples[0].modality if samples else "such"
