"""`ablations.yaml`: which runs are compared, checked against the profiles before anything starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from anymal.config import as_text, read_document
from anymal.errors import ConfigError
from anymal.overrides import overridden
from anymal.profile import section_problems
from anymal.stage import load_stage

FILE = Path("ablations.yaml")
CONFIGURED_HERE = {"compare"}
"""Stages that run in ablations only: this file holds their knobs, and no profile has a section for them."""
Profile = Literal["demo", "production"]
PROFILES: dict[Profile, Path] = {"demo": Path("params.yaml"), "production": Path("params.production.yaml")}
ORDINALS = ("first", "second", "third")
"""What the variants are called among a pipeline's arguments; no ablation has more."""
Overrides = dict[str, bool | int | float | str | None]


class Ablation(BaseModel):
    """One ablation."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    title: str
    trains: str = Field(pattern=r"^(finetune|align\.[a-z][a-z0-9_]*)$")
    """The section of the profile whose stage is run once for each variant."""
    variants: dict[Profile, dict[str, Overrides]]
    """Profile -> what a variant is called -> dotted knob -> its value. An override without effect names what sets the variant apart."""
    figures: dict[str, str] = Field(min_length=1)

    @field_validator("variants")
    @classmethod
    def _named(cls, value: dict[Profile, dict[str, Overrides]]) -> dict[Profile, dict[str, Overrides]]:
        if set(value) != set(get_args(Profile)):
            raise ValueError(f"has {', '.join(value)}; name the variants for {' and '.join(get_args(Profile))}")
        for profile, variants in value.items():
            if not 2 <= len(variants) <= len(ORDINALS):
                raise ValueError(f"{profile} has {len(variants)} variants; name 2 to {len(ORDINALS)}")
            if bad := [name for name in variants if not re.fullmatch(r"[A-Za-z0-9]+( [A-Za-z0-9]+)*", name)]:
                raise ValueError(f"{profile}.{bad[0]}: a variant's name has letters, digits and single spaces only")
        return value

    @model_validator(mode="after")
    def _alike(self) -> Self:
        if len({len(variants) for variants in self.variants.values()}) > 1:
            raise ValueError("variants: both profiles must have equally many, for one pipeline runs either")
        for profile, variants in self.variants.items():
            for name, overrides in variants.items():
                if astray := [knob for knob in overrides if not knob.startswith(f"{self.trains}.")]:
                    raise ValueError(f"variants.{profile}.{name}: {astray[0]} is no knob of {self.trains}, which is what this ablation trains")
        return self

    @property
    def stage(self) -> str:
        """The stage that is run once for each variant."""
        return self.trains.partition(".")[0]

    @property
    def modality(self) -> str | None:
        """What `align` is run for; None for `finetune`."""
        return self.trains.partition(".")[2] or None


def read_ablations(path: Path = FILE) -> dict[str, Ablation]:
    """All ablations of a file.

    Raises:
        ConfigError: naming what is wrong with each.
    """
    found, problems = {}, []
    for name, entry in read_document(path).items():
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", str(name)):
            problems.append(f"{path}: {name}: an ablation's name has small letters, digits and dashes only")
        try:
            found[name] = Ablation.model_validate(entry)
        except ValidationError as error:
            problems += [f"{path}: {'.'.join(map(str, (name, *item['loc'])))}: {item['msg']}" for item in error.errors()]
    if problems:
        raise ConfigError("\n".join(problems))
    return found


def read_ablation(name: str, path: Path = FILE) -> Ablation:
    """One ablation of a file.

    Raises:
        ConfigError: if there is none of that name, or anything in the file is wrong.
    """
    ablations = read_ablations(path)
    if name not in ablations:
        raise ConfigError(f"{name}: {path} has no such ablation; it has {', '.join(ablations)}")
    return ablations[name]


def variant_sections(ablation: Ablation, profile: Profile, folder: Path = Path()) -> dict[str, dict[str, Any]]:
    """Variant -> the whole section that its training run takes.

    Args:
        folder: where the profiles are.

    Raises:
        ConfigError: naming every override that is no knob, every value that its stage refuses, and variants that do not differ.
    """
    path = folder / PROFILES[profile]
    document, problems = read_document(path), []
    sections: dict[str, dict[str, Any]] = {}
    for name, overrides in ablation.variants[profile].items():
        changed, where = document, f"ablations: {profile}.{name}"
        try:
            changed = overridden(document, overrides.items(), str(path))
        except ConfigError as error:
            problems += [f"{where}: {problem}" for problem in str(error).split("\n")]
        problems += [f"{where}: {problem}" for problem in section_problems(load_stage(ablation.stage), changed.get(ablation.stage))]
        sections[name] = _at(changed, ablation.trains)
        same = [other for other, section in sections.items() if section == sections[name] and other != name]
        problems += [f"{where}: is the same as {same[0]}; change a knob"] if same and not problems else []
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return sections


def _at(document: Any, name: str) -> Any:
    """What a dotted name leads to; None if nothing."""
    for part in name.split("."):
        document = document.get(part) if isinstance(document, dict) else None
    return document


def compare_section(ablation: Ablation, profile: Profile) -> dict[str, Any]:
    """The knobs of the stage `compare`."""
    return {"seed": 0, "title": ablation.title, "variants": list(ablation.variants[profile]), "figures": dict(ablation.figures)}


def ablation_arguments(ablation: Ablation, profile: Profile, uris: dict[str, str], folder: Path = Path()) -> dict[str, Any]:
    """What the pipeline of an ablation is called with.

    Args:
        uris: argument -> URI of the artifact that an earlier run of the training pipeline left, for each of `pipelines.ablation.imported`.
        folder: where the profiles are.

    Raises:
        ConfigError: for wrong overrides, and URIs that are missing or belong to no input.
    """
    from pipelines.ablation import EVALUATED, imported

    wanted = imported(ablation)
    if wrong := sorted(wanted.keys() ^ uris.keys()):
        remedies = {True: "missing; name the URI of this input", False: "is no input of this ablation; remove it"}
        raise ConfigError("\n".join(f"{name}: {remedies[name in wanted]}" for name in wrong))
    sections = variant_sections(ablation, profile, folder)
    arguments: dict[str, Any] = {f"variant_{ordinal}": as_text(section) for ordinal, section in zip(ORDINALS, sections.values(), strict=False)}
    if ablation.stage == "finetune":
        document = read_document(folder / PROFILES[profile])
        arguments |= {f"evaluate_{modality}": as_text(document["evaluate"][modality]) for modality in EVALUATED}
        arguments |= {name: as_text(document[name]) for name in ("benchmark", "score")}
    return arguments | {"compare": as_text(compare_section(ablation, profile))} | uris
