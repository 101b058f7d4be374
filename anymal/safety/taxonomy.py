"""The categories of the guard, and how the labels of each source become ours: `taxonomy.yaml`, read and checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from anymal.config import check, read_document

FILE = Path(__file__).parent / "taxonomy.yaml"

Modality = Literal["text", "image", "image_text"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Category(_Model):
    """What a category is called, what it covers, and in which modalities it exists."""

    name: str
    covers: str
    modalities: tuple[Modality, ...] = Field(min_length=1)


class Rule(_Model):
    """What becomes of the lines that it fits; exactly one of labels (and words), words, harmless and skip."""

    file: str
    intents: str = ""
    text: str = ""
    labels: tuple[str, ...] = ()
    words: bool = False
    """Add the categories that the text's words name."""
    harmless: bool = False
    skip: bool = False

    @model_validator(mode="after")
    def _one_outcome(self) -> Rule:
        if (bool(self.labels) or self.words) + self.harmless + self.skip != 1:
            raise ValueError("needs labels or words, or harmless, or skip")
        return self

    def fits(self, file: str, intents: str, text: str) -> bool:
        """Whether a line of a file is this rule's."""
        return file.startswith(self.file) and re.search(self.intents, intents) is not None and re.search(self.text, text) is not None


class Phrasing(_Model):
    """What is left out of the prompts in other tenses."""

    skip: str


class Taxonomy(_Model):
    """All of `taxonomy.yaml`."""

    categories: dict[str, Category] = Field(min_length=1)
    words: dict[str, tuple[str, ...]]
    fallback: str
    do_not_answer: tuple[Rule, ...]
    phrasing: Phrasing
    toxicity: dict[str, dict[str, tuple[int, ...]]]
    """File -> categories, joined by commas, or `harmless` -> line numbers, from 1."""
    jigsaw: dict[str, str]

    @model_validator(mode="after")
    def _known_categories(self) -> Taxonomy:
        used = {*self.words, self.fallback, *self.jigsaw.values(), *(code for rule in self.do_not_answer for code in rule.labels)}
        used |= {code for picks in self.toxicity.values() for joined in picks if joined != "harmless" for code in joined.split(", ")}
        if used - self.categories.keys():
            raise ValueError(f"'{min(used - self.categories.keys())}' is used and is no category; they are {', '.join(self.categories)}")
        return self

    def named(self, text: str) -> tuple[str, ...]:
        """Categories that the words of a harmful text name, in order."""
        found = [code for code, patterns in self.words.items() if any(re.search(pattern, text, re.IGNORECASE) for pattern in patterns)]
        return ordered(found, self.categories)

    def by_words(self, text: str) -> tuple[str, ...]:
        """The same, or the fallback if no word names one."""
        return self.named(text) or (self.fallback,)


def ordered(codes: Iterable[str], categories: Mapping[str, Category]) -> tuple[str, ...]:
    """Codes once each, in the order of the taxonomy.

    Raises:
        KeyError: if one is no category.
    """
    wanted = set(codes)
    if wanted - categories.keys():
        raise KeyError(min(wanted - categories.keys()))
    return tuple(code for code in categories if code in wanted)


@lru_cache(maxsize=1)
def taxonomy() -> Taxonomy:
    """The taxonomy that this version is shipped with."""
    return check(Taxonomy, read_document(FILE), FILE.name)


def codes(modality: Modality | None = None) -> tuple[str, ...]:
    """Codes of the categories, in the order of columns; of those that exist in a modality, or of all."""
    return tuple(code for code, category in taxonomy().categories.items() if modality is None or modality in category.modalities)


CODES: tuple[str, ...] = codes()
"""All categories, in the order of the columns of every matrix of probabilities."""
