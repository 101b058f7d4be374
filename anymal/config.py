"""Knobs: the base of every stage's config, and reading, checking and carrying the sections of a profile."""

from __future__ import annotations

import difflib
import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from anymal.errors import ConfigError

M = TypeVar("M", bound=BaseModel)


class Config(BaseModel):
    """Base of every stage's knobs. Unknown keys are refused; numbers may arrive as floats (Kubeflow sends 40 as 40.0)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    seed: int = Field(ge=0)


def read_document(path: Path) -> dict[str, Any]:
    """Read a YAML mapping (YAML 1.2, as DVC does: duplicate keys are refused)."""
    from ruamel.yaml import YAML, YAMLError

    try:
        document = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; --config takes a YAML profile such as params.yaml") from error
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        first = " ".join(str(error).split())
        raise ConfigError(f"{path}: cannot be read as YAML: {first}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: must be a mapping of sections, found {type(document).__name__}")
    return document


def check(model: type[M], section: object, prefix: str) -> M:
    """Check one section against its schema; every problem becomes one line of a single `ConfigError`.

    Args:
        prefix: what the section is called.
    """
    try:
        return model.model_validate(section)
    except ValidationError as error:
        raise ConfigError("\n".join(_problem(item, model, prefix) for item in error.errors())) from None


def validate(model: type[Config], section: object, prefix: str) -> Config:
    """Check a stage's section, as `check` does; `align.audio` and `align.audio_small` must say `modality: audio`."""
    config, called = check(model, section, prefix), prefix.partition(".")[2]
    if called and not f"{called}_".startswith(f"{config.modality}_"):  # type: ignore[attr-defined]
        modality = config.modality  # type: ignore[attr-defined]
        raise ConfigError(f"{prefix}.modality = {modality}: the section of a modality is called after it; say {called}, or call it {modality}_…")
    return config


def _problem(item: Mapping[str, Any], model: type[BaseModel], prefix: str) -> str:
    where = ".".join([prefix, *map(str, item["loc"])])
    if item["type"] == "extra_forbidden":
        known = list(_model_at(model, item["loc"][:-1]).model_fields)
        near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else f"; known knobs: {', '.join(sorted(known))}"
        return f"{where}: unknown knob{hint}"
    if item["type"] == "missing":
        return f"{where}: missing; add it to the profile's section '{prefix}'"
    message = str(item["ctx"]["error"]) if item["type"] == "value_error" else item["msg"]
    if isinstance(item["input"], dict | BaseModel):  # a whole group is wrong: its value would say nothing
        return f"{where}: {message}"
    value = str(item["input"])
    return f"{where} = {value if len(value) <= 60 else value[:57] + '...'}: {message}"


def _model_at(model: type[BaseModel], location: Sequence[str | int]) -> type[BaseModel]:
    """The nested model that a problem's location leads to; locations may pass through list indices and dict keys."""
    for part in location:
        field = model.model_fields.get(str(part))
        nested = [] if field is None else [kind for kind in _kinds(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        model = nested[0] if nested else model
    return model


def _kinds(annotation: object) -> list[object]:
    """A type and all types named inside it: `dict[str, X | None]` -> dict, str, X, None."""
    return [annotation, *(kind for part in typing.get_args(annotation) for kind in _kinds(part))]


def as_text(section: Any) -> str:
    """A section as Kubeflow carries it: JSON text. Its own mappings keep neither the order of keys nor integers nor null."""
    return json.dumps(section, ensure_ascii=False, separators=(",", ":"))


def without_nulls(tree: Any) -> Any:
    """A section as Kubeflow can carry it: kfp's arguments know no null, so knobs that are null are left out."""
    if isinstance(tree, dict):
        return {name: without_nulls(child) for name, child in tree.items() if child is not None}
    return [without_nulls(child) for child in tree] if isinstance(tree, list) else tree


def with_nulls(model: type[Config], section: Any) -> Any:
    """Undo `without_nulls`: a knob that may be null and is missing is null. Profiles, in contrast, must name every knob."""
    try:
        model.model_validate(section)
    except ValidationError as error:
        for *path, name in (item["loc"] for item in error.errors() if item["type"] == "missing"):
            owner, group = section, _model_at(model, path)
            for part in path:
                owner = owner[part]
            if str(name) in group.model_fields and type(None) in _kinds(group.model_fields[str(name)].annotation)[1:]:
                owner[name] = None
    return section


def read_json(text: str, option: str = "--config") -> dict[str, Any]:
    """A JSON document given inline; a key that comes twice is refused.

    Args:
        option: where it was given, as the beginning of errors.

    Raises:
        ConfigError: if it is not JSON.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        section: dict[str, Any] = {}
        for name, value in pairs:
            if name in section:
                raise ConfigError(f"{option}: key '{name}' comes twice; keep one")
            section[name] = value
        return section

    try:
        document: dict[str, Any] = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{option}: not valid JSON: {error}") from error
    return document
