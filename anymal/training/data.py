"""What training reads: batches that are a pure function of seed and step, so that resuming needs no data position."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anymal import processes
from anymal.data.features import FeatureStore
from anymal.errors import DataError
from anymal.model.anymal import AnyMAL
from anymal.model.prompt import Exchange, Medium, Prompt
from anymal.training.loop import Work
from anymal.training.parallel import Alone

POOL_BATCHES = 8
"""Batches drawn together and bucketed by length."""

CONDITIONS = ("right", "shuffled", "blank")
"""What held-out samples are scored with: their own media, another sample's, empty ones."""

Dialogue = tuple[Exchange, ...]


@dataclass(frozen=True)
class Batch:
    """Conversations, tokenised; a caption is one of a single turn."""

    dialogues: list[Dialogue]

    @property
    def tokens(self) -> int:
        """Tokens that carry loss."""
        return sum(len(turn.answer) for dialogue in self.dialogues for turn in dialogue)

    @property
    def modalities(self) -> set[str]:
        """Of its media."""
        return {medium.modality for dialogue in self.dialogues for turn in dialogue for medium in turn.prompt.media}

    def split(self, size: int) -> list[Batch]:
        """Parts of at most `size` samples, in order."""
        return [Batch(self.dialogues[i : i + size]) for i in range(0, len(self.dialogues), size)]


def work_of(model: AnyMAL, parallel: Alone, batch: Batch, micro_batch_size: int, *, seed: tuple[int, int]) -> Work:
    """This process's work on a batch: mean loss per target token of the whole batch, `micro_batch_size` samples in memory at once.

    Args:
        seed: the run's and the step: of dropout, so that a resumed run drops the same.
    """
    torch.manual_seed(int(np.random.default_rng((*seed, 10, processes.rank())).integers(2**62)))
    scale = processes.count() / batch.tokens

    def loss(part: Batch) -> Tensor:
        return parallel.losses(part.dialogues).sum() * scale

    mine = batch.split(len(batch.dialogues) // processes.count())[processes.rank()]
    idle = [parameter for modality in model.projectors.keys() - batch.modalities for parameter in model.projectors[modality].parameters()]
    return Work([functools.partial(loss, part) for part in mine.split(micro_batch_size)], batch.tokens, idle)


def endless(items: Sequence[int], start: int, count: int, *, seed: tuple[int, ...]) -> list[int]:
    """`count` items from place `start` of an endless series of permutations of `items`, the same whatever was drawn before."""
    drawn: list[int] = []
    place = start
    while len(drawn) < count:
        epoch, offset = divmod(place, len(items))
        order = np.random.default_rng((*seed, epoch)).permutation(len(items))
        part = order[offset : offset + count - len(drawn)]
        drawn += [items[i] for i in part]
        place += len(part)
    return drawn


def bucketed(examples: Sequence[Dialogue], batch_size: int, *, seed: tuple[int, ...]) -> list[Batch]:
    """Batches of like length, in a random order: little padding, and no drift from short to long."""
    order = sorted(range(len(examples)), key=lambda i: (_length(examples[i]), i))
    chunks = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    np.random.default_rng(seed).shuffle(chunks)
    return [Batch([examples[i] for i in chunk]) for chunk in chunks]


class CaptionData:
    """Captions (and, on request, questions) of one split as training batches.

    Args:
        question_share: probability that a batch holds questions about its pictures instead of captions; 0 is the paper's
            alignment. Batches never mix the two, so that each has one constant prompt prefix.
        target_captions: how many of a sample's captions, from the first, are targets; None for all.
        question_kinds: kinds of questions to train on; None for all.
        answer_forms: kind of question -> sentence with `{answer}` that is the target.
    """

    def __init__(self, model: AnyMAL, store: FeatureStore, modality: str, *, batch_size: int, question_share: float,
                 target_captions: int | None, answer_forms: Mapping[str, str], question_kinds: Sequence[str] | None, seed: int) -> None:
        self._kinds = question_kinds
        self._captions, self._forms = target_captions, answer_forms
        self._model, self._store, self._modality = model, store, modality
        self._batch_size, self._share, self._seed = batch_size, question_share, seed
        self._rows: dict[str, list[int]] = {"caption": [], "question": []}
        for row in range(len(store)):
            meta = store.meta(row)
            for task, found in (("caption", meta["captions"]), ("question", self._questions(meta))):
                if found:
                    self._rows[task].append(row)
        wanted = ["caption"] * (question_share < 1) + ["question"] * (question_share > 0)
        for task in wanted:
            if len(self._rows[task]) < batch_size:
                raise DataError(f"the features hold {len(self._rows[task])} samples with a {task}, fewer than one batch of {batch_size}; "
                                "lower batch_size or curate more data")
        self._pools: dict[str, tuple[int, list[Batch]]] = {}

    def _questions(self, meta: dict[str, Any]) -> list[dict[str, str]]:
        return [pair for pair in meta["questions"] if self._kinds is None or pair["kind"] in self._kinds]

    def rows(self, task: str) -> list[int]:
        """Rows of the features that have a "caption" or a "question"."""
        return self._rows[task]

    def batch(self, step: int) -> Batch:
        """The batch of a step: the same for the same seed and step, whatever came before."""
        pool, place = divmod(step, POOL_BATCHES)
        task = "question" if np.random.default_rng((self._seed, 1, step)).random() < self._share else "caption"
        if task not in self._pools or self._pools[task][0] != pool:
            self._pools[task] = (pool, self._make_pool(task, pool))
        return self._pools[task][1][place]

    def _make_pool(self, task: str, pool: int) -> list[Batch]:
        size = POOL_BATCHES * self._batch_size
        rows = endless(self._rows[task], pool * size, size, seed=(self._seed, 4))
        examples = [self._example(row, task, np.random.default_rng((self._seed, 2, pool, place))) for place, row in enumerate(rows)]
        return bucketed(examples, self._batch_size, seed=(self._seed, 3, pool))

    def _example(self, row: int, task: str, rng: np.random.Generator) -> Dialogue:
        meta = self._store.meta(row)
        template = self._model.templates[self._modality][task]
        if task == "caption":
            question, target = None, _choice(meta["captions"][: self._captions], rng)
        else:
            pair = _choice(self._questions(meta), rng)
            question, target = pair["question"], self._forms.get(pair["kind"], "{answer}").replace("{answer}", pair["answer"])
        prompt = Prompt(template.messages([self._modality], question), [Medium(self._modality, self._store.features([row])[0])])
        return (Exchange(self._model.tokenize(prompt), tuple(self._model.target_ids(target))),)


class GroundingControls:
    """The same held-out captions scored with the right medium, another sample's, and an empty one (design section 5)."""

    def __init__(self, model: AnyMAL, store: FeatureStore, modality: str, *, samples: int, batch_size: int, seed: int) -> None:
        rows = np.random.default_rng((seed, 5)).permutation(len(store))[:samples].tolist()
        if len(rows) < 2:
            raise DataError(f"the validation split holds {len(rows)} samples; at least 2 are needed to shuffle inputs")
        self._model, self._batch_size = model, batch_size
        template = model.templates[modality]["caption"]
        features, blank = store.features(rows), store.blank()
        inputs = {"right": list(features), "shuffled": [*features[1:], features[0]], "blank": [blank] * len(rows)}
        self._prompts = {name: [Prompt(template.messages([modality]), [Medium(modality, x)]) for x in media] for name, media in inputs.items()}
        self._targets = [store.meta(row)["captions"][0] for row in rows]

    def losses(self, conditions: Sequence[str] = CONDITIONS) -> dict[str, float]:
        """Negative log-likelihood in nats per token under each condition."""
        out = {}
        for name in conditions:
            scores = self._model.score(self._prompts[name], self._targets, batch_size=self._batch_size)
            out[name] = sum(total for total, _ in scores) / sum(count for _, count in scores)
        return out


def _choice(items: Sequence[Any], rng: np.random.Generator) -> Any:
    return items[int(rng.integers(len(items)))]


def _length(dialogue: Dialogue) -> int:
    return sum(len(text) for turn in dialogue for text in (*turn.prompt.texts, turn.answer))
