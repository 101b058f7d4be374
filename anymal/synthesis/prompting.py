"""The prompts of `prompts/KIND.yaml`: a system message and worked examples, and the strict form of the answers.

A prompt comes in two manners. `free` lets the LLM choose what to ask and to write several questions at once, for LLMs that can. `guided` holds
several sets of examples that each show one sort of question, asked one at a time, for small LLMs, which repeat what they see.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from anymal.errors import ConfigError

KINDS = ("conversation", "detail", "reasoning")
"""LLaVA's three; a conversation is written from captions alone, the others from captions and boxes."""
MANNERS = ("free", "guided")
SEPARATOR = "==="
PROMPTS = Path(__file__).parent / "prompts"

Pair = tuple[str, str]
"""A question and its answer."""


class UnparsableError(ValueError):
    """A text that is not in the form; the message says where it leaves it."""


@dataclass(frozen=True)
class Example:
    """A description and the pairs that a good answer has."""

    description: str
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Asking:
    """One way to ask for a kind: a system message and worked examples."""

    name: str
    system: str
    examples: tuple[Example, ...]

    def messages(self, description: str) -> list[dict[str, str]]:
        """The chat up to the description that is to be answered; examples are turns of the chat."""
        turns = [{"role": "system", "content": self.system}]
        for example in self.examples:
            turns += [{"role": "user", "content": example.description}, {"role": "assistant", "content": form(example.pairs)}]
        return [*turns, {"role": "user", "content": description}]


@cache
def askings(kind: str, manner: str, modality: str) -> tuple[Asking, ...]:
    """The ways to ask for a kind of instruction about a modality.

    Raises:
        ConfigError: if the prompts have no examples of that modality.
    """
    from ruamel.yaml import YAML

    path = PROMPTS / f"{kind}.yaml"
    document = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    known = document["examples"][manner]
    if modality not in known:
        raise ConfigError(f"synthesize.{modality}.manner = {manner}: {path} has examples of {', '.join(known)}; add some of {modality} or leave out "
                          f"the kind {kind}")
    system = " ".join(document["system"][manner].replace("{medium}", document["media"][modality]).split())
    return tuple(
        Asking(name, system, tuple(Example(example["description"].strip(), tuple((q, a) for q, a in example["pairs"])) for example in examples))
        for name, examples in known[modality].items())


def form(pairs: tuple[Pair, ...]) -> str:
    """Pairs as an LLM is to write them: `Question: … === Answer: … === Question: …`."""
    return f" {SEPARATOR} ".join(f"Question: {question} {SEPARATOR} Answer: {answer}" for question, answer in pairs)


def parse(text: str) -> list[Pair]:
    """The pairs of an answer; the inverse of `form`, and strict: what is not in the form is refused as a whole.

    Raises:
        UnparsableError: at the first part that is not as it should be.
    """
    parts = [" ".join(part.split()) for part in text.split(SEPARATOR)]
    if len(parts) > 1 and not parts[-1]:
        parts.pop()
    found: list[str] = []
    for index, part in enumerate(parts):
        name = ("Question:", "Answer:")[index % 2]
        if not part.startswith(name):
            raise UnparsableError(f"part {index + 1} does not begin with '{name}'")
        if re.search(r"\b(Question|Answer):", part[len(name) :]):
            raise UnparsableError(f"part {index + 1} holds two parts without {SEPARATOR} between them")
        found.append(part[len(name) :].strip())
    if len(found) % 2:
        raise UnparsableError("the last question has no answer")
    if not all(found):
        raise UnparsableError(f"part {found.index('') + 1} is empty")
    return list(zip(found[0::2], found[1::2], strict=True))


def without_cut(text: str) -> tuple[str, str]:
    """A text that the limit of tokens cut off, as (the whole pairs, the rest)."""
    parts = text.split(SEPARATOR)
    whole = (len(parts) - 1) // 2 * 2
    return SEPARATOR.join(parts[:whole]).strip(), SEPARATOR.join(parts[whole:]).strip()
