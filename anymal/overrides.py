"""Overrides of a profile's knobs, `align.image.layers=2`: the names that `dvc exp run -S` takes."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from anymal.errors import ConfigError


def read_override(setting: str, option: str = "--set") -> tuple[str, Any]:
    """The dotted name and the value of `SECTION.KNOB=VALUE`; the value is YAML.

    Raises:
        ConfigError: naming the option.
    """
    from ruamel.yaml import YAML, YAMLError

    knob, given, value = setting.partition("=")
    if not given or "." not in knob.strip("."):
        raise ConfigError(f"{option} {setting}: names no knob and value; write it as SECTION.KNOB=VALUE, such as align.image.layers=2")
    try:
        return knob.strip(), YAML(typ="safe", pure=True).load(value)
    except YAMLError as error:
        raise ConfigError(f"{option} {setting}: the value cannot be read as YAML; put text with special characters in quotes") from error


def overridden(document: Mapping[str, Any], overrides: Iterable[tuple[str, Any]], source: str) -> dict[str, Any]:
    """A copy of a profile with other values. Whether its stages take them is for the schemas to say (`anymal.profile.profile_problems`).

    Args:
        overrides: dotted name and value of knobs that the profile has; a later one wins.
        source: what the profile is called.

    Raises:
        ConfigError: naming every override that is no knob of the profile.
    """
    changed, problems = copy.deepcopy(dict(document)), []
    for knob, value in overrides:
        if (problem := _set(changed, knob, value, source)) is not None:
            problems.append(problem)
    if problems:
        raise ConfigError("\n".join(problems))
    return changed


def differences(before: Any, after: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted name, old and new value of each knob that differs between two profiles, in the order of the first."""
    if not (isinstance(before, Mapping) and isinstance(after, Mapping)):
        return [] if before == after and type(before) is type(after) else [(prefix, before, after)]
    names = dict.fromkeys([*before, *after])
    return [found for name in names for found in differences(before.get(name), after.get(name), f"{prefix}.{name}" if prefix else str(name))]


def _set(document: dict[str, Any], knob: str, value: object, source: str) -> str | None:
    """Set one knob that is there; what is wrong with its name otherwise."""
    *parents, last = knob.split(".")
    group: Any = document
    for depth, part in enumerate(parents):
        if not isinstance(group, dict) or part not in group:
            return _unknown(knob, ".".join(parents[:depth]), part, group, source)
        group = group[part]
    if not isinstance(group, dict) or last not in group:
        return _unknown(knob, ".".join(parents), last, group, source)
    if isinstance(group[last], dict) and value is not None:
        return f"{knob} = {value}: is a group of knobs in {source}; name one of {', '.join(map(str, group[last]))}, or set the group to null"
    group[last] = value
    return None


def _unknown(knob: str, parent: str, name: str, group: object, source: str) -> str:
    """Say that a name is not known, and which ones are."""
    names = [str(known) for known in group] if isinstance(group, dict) else []
    if near := difflib.get_close_matches(name, names, n=1):
        place = f"{parent}." if parent else ""
        return f"{knob}: {source} has no such knob; did you mean '{place}{near[0]}{knob.removeprefix(place + name)}'?"
    where = parent or source
    return f"{knob}: {source} has no such knob; {where} has {', '.join(names) if names else 'no knobs below it'}"
