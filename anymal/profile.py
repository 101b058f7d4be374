"""A profile: one section of knobs per stage, from a YAML file or as JSON from Kubeflow."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anymal import cluster, gates, guard_gates
from anymal.config import Config, read_document, read_json, validate, with_nulls
from anymal.errors import ConfigError
from anymal.stage import Stage, load_stage, stage_names

SETTINGS = {cluster.SECTION: cluster.cluster_problems, gates.SECTION: gates.rules_problems,
            guard_gates.SECTION: guard_gates.guard_rules_problems}
"""Sections that belong to no stage -> what says all that is wrong with one."""


def read_config(stage: Stage, source: str, modality: str | None = None) -> Config:
    """Read a stage's knobs from a profile (its section) or from inline JSON (the section itself, as Kubeflow passes it).

    Args:
        modality: which of the sections to read from a profile, for a stage that runs once per modality.

    Raises:
        ConfigError: naming every wrong knob at once.
    """
    prefix = stage.name
    if source.lstrip().startswith("{"):
        section = with_nulls(stage.config, read_json(source))
    else:
        document = read_document(Path(source))
        if stage.name not in document:
            raise ConfigError(f"{source}: has no section '{stage.name}'; it has {', '.join(map(str, document))}")
        section = document[stage.name]
        if stage.per_modality:
            prefix, section = f"{stage.name}.{modality}", _of_modality(stage.name, section, modality, source)
    return validate(stage.config, section, prefix)


def read_settings(source: str, name: str) -> Any:
    """A section that belongs to no stage, unchecked: from a profile, or inline JSON, which is the section itself.

    Raises:
        ConfigError: if it cannot be read or the profile has none.
    """
    if source.lstrip().startswith("{"):
        return read_json(source)
    document = read_document(Path(source))
    if name not in document:
        raise ConfigError(f"{source}: has no section '{name}'; copy the one of params.yaml")
    return document[name]


def _of_modality(name: str, sections: object, modality: str | None, source: str) -> object:
    """One of the sections of a stage that runs once per modality."""
    known = ", ".join(map(str, sections)) if isinstance(sections, dict) else "none"
    if modality is None:
        raise ConfigError(f"{name}: runs once per modality; add --modality with one of {known}")
    if not isinstance(sections, dict) or modality not in sections:
        raise ConfigError(f"--modality {modality}: {source} has no section '{name}.{modality}'; '{name}' has {known}")
    return sections[modality]


def read_profile(source: str) -> dict[str, Any]:
    """A whole profile: from its file, or as inline JSON, where knobs that are null may be left out (Kubeflow's arguments know no null).

    Raises:
        ConfigError: if it cannot be read; what its sections hold is not looked at.
    """
    if not source.lstrip().startswith("{"):
        return read_document(Path(source))
    return _with_nulls(read_json(source))


def gathered(sections: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Profiles made of sections that are given one by one, as Kubeflow does; a section that comes again begins a further profile.

    Args:
        sections: what a section is called (`align.audio`) and its JSON.

    Raises:
        ConfigError: if one cannot be read; what it holds is not looked at.
    """
    profiles: list[dict[str, Any]] = []
    for name, text in sections:
        stage, _, modality = name.partition(".")
        free = next((profile for profile in profiles if (modality not in profile.get(stage, {}) if modality else stage not in profile)), None)
        if free is None:
            profiles.append(free := {})
        part = read_json(text)
        free[stage] = {**free.get(stage, {}), modality: part} if modality else part
    return [_with_nulls(profile) for profile in profiles]


def _with_nulls(document: dict[str, Any]) -> dict[str, Any]:
    for name in document.keys() & set(stage_names()):
        stage, section = load_stage(name), document[name]
        for part in (section.values() if stage.per_modality and isinstance(section, dict) else [section]):
            with_nulls(stage.config, part)
    return document


def profile_problems(document: Mapping[str, Any], source: str, stages: Sequence[str] | None = None) -> list[str]:
    """All that is wrong with a profile.

    Args:
        source: what it is called.
        stages: those that are to run and must have a section; any that has one, if not given. Other sections are checked as well.
    """
    known = stage_names()
    problems = [problem for name, problems_of in SETTINGS.items() if name in document for problem in problems_of(document[name])]
    for name in [*document, *(stages or [])]:
        if name not in known and name not in SETTINGS:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"stages: {', '.join(known)}"
            what = f"{source}: section '{name}' belongs to no stage" if name in document else f"--stages {name}: no such stage"
            problems.append(f"{what}; {hint}")
    problems += [f"{source}: has no section '{name}'; it has {', '.join(map(str, document))}" for name in stages or []
                 if (name in known or name in SETTINGS) and name not in document]
    for name in sorted(set(known) & set(document)):
        problems += section_problems(load_stage(name), document[name])
    return problems


def section_problems(stage: Stage, section: object) -> list[str]:
    """All that is wrong with a stage's part of a profile: with its section, or with those of each modality."""
    parts = {stage.name: section}
    if stage.per_modality:
        if not isinstance(section, dict) or not section:
            return [f"{stage.name}: must hold a section per modality"]
        parts = {f"{stage.name}.{modality}": part for modality, part in section.items()}
    problems = []
    for prefix, part in parts.items():
        try:
            validate(stage.config, part, prefix)
        except ConfigError as error:
            problems += str(error).split("\n")
    return problems
