"""What fine-tuning reads: conversations about any media, mixed by where they come from (paper section 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from anymal.data.features import FeatureStore
from anymal.data.instructions import Instruction
from anymal.errors import ConfigError, DataError
from anymal.model.anymal import AnyMAL
from anymal.model.modalities import placeholder
from anymal.model.prompt import Medium, Prompt
from anymal.training.data import CONDITIONS, POOL_BATCHES, Batch, Dialogue, bucketed, endless


class MediaFeatures:
    """Features of media by modality and key."""

    def __init__(self, stores: Mapping[str, FeatureStore]) -> None:
        self._stores = dict(stores)
        self._rows = {modality: {store.meta(row)["key"]: row for row in range(len(store))} for modality, store in stores.items()}

    def check(self, instructions: Sequence[Instruction]) -> None:
        """Raises DataError, naming some, if media of these instructions have no features."""
        absent = sorted({f"{medium.modality} {medium.member}" for instruction in instructions for medium in instruction.media
                         if medium.key not in self._rows.get(medium.modality, {})})
        if absent:
            raise DataError(f"the instructions name {len(absent)} media that the features do not hold ({', '.join(absent[:5])}"
                            f"{', …' if len(absent) > 5 else ''}); give the features of the shards that they were made from")

    def get(self, modality: str, key: str) -> Medium:
        """One medium's features."""
        return Medium(modality, self._stores[modality].features([self._rows[modality][key]])[0])

    def blank(self, modality: str) -> Medium:
        """An empty medium."""
        return Medium(modality, self._stores[modality].blank())


def instruction_prompt(model: AnyMAL, instruction: Instruction, media: Sequence[Medium]) -> Prompt:
    """The conversation as the model's own prompts put it.

    Placeholders at the ends of the first question only say which media there are: these are placed and introduced by the template, as for a
    question that a user asks. Placeholders inside a sentence stay where they are.
    """
    (first, answer), *rest = instruction.turns
    names = [found.group(1) for found in placeholder().finditer(first)]
    bare = placeholder().sub("", first).strip()
    if not names:
        messages = [{"role": "user", "content": first}]
    else:
        template = model.templates[names[0]]["question"]
        messages = template.messages(names, bare if bare in first else first)
    messages.append({"role": "assistant", "content": answer})
    for question, reply in rest:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return Prompt(messages, media)


class InstructionData:
    """Training batches of instructions of several origins, a pure function of seed and step.

    Args:
        weights: origin -> its share of each pool of batches, relative to the others'; origins without a weight are left out.

    Raises:
        ConfigError: if an origin with a weight has no instructions, or none has.
        DataError: if media have no features.
    """

    def __init__(self, model: AnyMAL, media: MediaFeatures, instructions: Sequence[Instruction], *, weights: Mapping[str, float], batch_size: int,
                 seed: int) -> None:
        self._model, self._media, self._instructions = model, media, instructions
        self._batch_size, self._seed = batch_size, seed
        self._of_origin = {origin: [i for i, found in enumerate(instructions) if found.origin == origin]
                           for origin, weight in weights.items() if weight > 0}
        empty = [origin for origin, found in self._of_origin.items() if not found]
        if empty or not self._of_origin:
            have = sorted({found.origin for found in instructions})
            raise ConfigError(f"finetune.mixing gives {', '.join(empty) or 'no origin'} a weight, but the instructions are of "
                              f"{', '.join(have) or 'none'}; set its weight to 0 or give such instructions")
        media.check([instructions[i] for found in self._of_origin.values() for i in found])
        self._counts = _apportion(POOL_BATCHES * batch_size, {origin: weights[origin] for origin in self._of_origin})
        self._pool: tuple[int, list[Batch]] = (-1, [])

    def batch(self, step: int) -> Batch:
        """The batch of a step: the same for the same seed and step, whatever came before."""
        pool, place = divmod(step, POOL_BATCHES)
        if self._pool[0] != pool:
            self._pool = (pool, self._make_pool(pool))
        return self._pool[1][place]

    def _make_pool(self, pool: int) -> list[Batch]:
        chosen = [i for salt, (origin, count) in enumerate(sorted(self._counts.items()))
                  for i in endless(self._of_origin[origin], pool * count, count, seed=(self._seed, 7, salt))]
        examples = []
        for index in chosen:
            instruction = self._instructions[index]
            media = [self._media.get(medium.modality, medium.key) for medium in instruction.media]
            examples.append(self._model.tokenize_dialogue(instruction_prompt(self._model, instruction, media)))
        return bucketed(examples, self._batch_size, seed=(self._seed, 8, pool))


class InstructionControls:
    """Held-out answers scored with the right media, with those of another instruction, and with empty ones (design section 5)."""

    def __init__(self, model: AnyMAL, media: MediaFeatures, instructions: Sequence[Instruction], *, samples: int, batch_size: int, seed: int) -> None:
        about_media = [instruction for instruction in instructions if instruction.media]
        if len(about_media) < 2:
            raise DataError(f"the instructions hold {len(about_media)} held-out ones about media; at least 2 are needed to shuffle them")
        media.check(about_media)
        chosen = [about_media[i] for i in np.random.default_rng((seed, 9)).permutation(len(about_media))[:samples]]
        self._model, self._media, self._batch_size = model, media, batch_size
        self._instructions = chosen
        self._others = _rotated(chosen)

    @torch.no_grad()
    def losses(self) -> dict[str, float]:
        """Negative log-likelihood of the answers in nats per token under each condition: `right`, `shuffled`, `blank`."""
        out = {}
        for condition in CONDITIONS:
            total, count = 0.0, 0
            for start in range(0, len(self._instructions), self._batch_size):
                rows = range(start, min(start + self._batch_size, len(self._instructions)))
                losses = self._model.dialogue_losses([self._dialogue(row, condition) for row in rows]).values
                total, count = total + float(losses.double().sum()), count + len(losses)
            out[condition] = total / count
        return out

    def _dialogue(self, row: int, condition: str) -> Dialogue:
        instruction = self._instructions[row]
        keys = [medium.key for medium in instruction.media] if condition == "right" else self._others[row]
        media = [self._media.blank(medium.modality) if condition == "blank" else self._media.get(medium.modality, key)
                 for medium, key in zip(instruction.media, keys, strict=True)]
        return self._model.tokenize_dialogue(instruction_prompt(self._model, instruction, media))


def _rotated(instructions: Sequence[Instruction]) -> list[list[str]]:
    """For each instruction, keys of other media of the same modalities: each modality's media moved on by one place that differs."""
    places: dict[str, list[tuple[int, int]]] = {}
    for row, instruction in enumerate(instructions):
        for place, medium in enumerate(instruction.media):
            places.setdefault(medium.modality, []).append((row, place))
    others = [[medium.key for medium in instruction.media] for instruction in instructions]
    for spots in places.values():
        keys = [instructions[row].media[place].key for row, place in spots]
        for index, (row, place) in enumerate(spots):
            others[row][place] = next((key for key in [*keys[index + 1 :], *keys[:index]] if key != keys[index]), keys[index])
    return others


def _apportion(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers that add up to `total`, as near to the weights as can be, each at least 1."""
    scale = total / sum(weights.values())
    counts = {name: max(1, int(weight * scale)) for name, weight in weights.items()}
    by_rest = sorted(weights, key=lambda name: (-(weights[name] * scale - int(weights[name] * scale)), name))
    place = 0
    while sum(counts.values()) < total:
        counts[by_rest[place % len(by_rest)]] += 1
        place += 1
    while sum(counts.values()) > total:
        largest = max(counts, key=lambda name: (counts[name], name))
        counts[largest] -= 1
    return counts
