"""`declarations.yaml`: what each benchmark's files are, how it is asked and how it is scored."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from anymal.errors import ConfigError

FILE = Path(__file__).with_name("declarations.yaml")

Protocol = Literal["paper", "lmms-eval", "model"]
Metric = Literal["captions", "vqa", "choice", "roc", "pope"]
OWN: Protocol = "model"
"""The checkpoint's own prompt."""


class Part(BaseModel):
    """A group of fields; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Wording(Part):
    """How one protocol asks, and what of the reply is the answer."""

    system: str | None = None
    user: str | None = None
    template: Literal["caption", "question"] | None = None
    """Of the checkpoint; `user` then is the question that it is filled with, or null."""
    capitalize: bool = False
    """Give the question a capital first letter and small ones after it."""
    extract: Literal["text", "json_caption", "choice", "yes_no"]

    @model_validator(mode="after")
    def _one_place_for_the_medium(self) -> Wording:
        if self.template is None and f"{self.system}{self.user}".count("{media}") != 1:
            raise ValueError("system and user must hold {media} once")
        return self


class Split(Part):
    """Where the files of one split are."""

    files: dict[str, str]
    media: str


class Declaration(Part):
    """One benchmark; what the fields mean is said in `declarations.yaml`."""

    title: str
    source: str
    paper: str | None
    modality: str | None
    """None: each sample says its own."""
    reader: str
    fields: dict[str, Any]
    splits: dict[str, Split]
    metric: Metric
    protocols: dict[Protocol, Wording] = Field(min_length=1)

    @property
    def options(self) -> bool:
        """Whether the likelihood of each option is measured too."""
        return self.metric in ("choice", "roc", "pope")


@functools.cache
def declarations() -> dict[str, Declaration]:
    """All benchmarks, by name."""
    from ruamel.yaml import YAML

    document = YAML(typ="safe", pure=True).load(FILE.read_text(encoding="utf-8"))
    return {name: Declaration.model_validate(entry) for name, entry in document.items()}


def declaration_of(name: str) -> Declaration:
    """One benchmark.

    Raises:
        ConfigError: if there is none of that name.
    """
    known = declarations()
    if name not in known:
        raise ConfigError(f"benchmarks.{name}: no such benchmark; there are {', '.join(known)}")
    return known[name]
