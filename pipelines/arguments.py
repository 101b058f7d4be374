"""The arguments of a pipeline run: a profile's sections, every knob checked before anything starts, and URIs."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anymal.config import as_text, read_document
from anymal.errors import ConfigError
from anymal.profile import profile_problems
from pipelines.ablations import FILE, PROFILES, ablation_arguments, read_ablations
from pipelines.compile import ROOT, plan_of
from pipelines.tasks import Plan

ABLATION = "ablation-"


def uris_of(name: str) -> tuple[str, ...]:
    """Arguments of a pipeline that are URIs: `lock`, or what it takes over from an earlier run.

    Raises:
        ConfigError: if there is no such pipeline.
    """
    return tuple(plan_of(name).uris)


def read_arguments(name: str, document: Mapping[str, Any], source: str, uris: Mapping[str, str]) -> dict[str, str]:
    """What a pipeline is called with: a section as it is called, one of a modality with it (`align.audio` as `align_audio`), and URIs.

    Args:
        document: the profile.
        source: what it is called.
        uris: for each of `uris_of`.

    Raises:
        ConfigError: naming all that is wrong with the profile and the URIs, at once.
    """
    plan = plan_of(name)
    problems = _uri_problems(plan, uris)
    if name.startswith(ABLATION):
        return _ablation_arguments(name, document, source, uris, problems)
    problems += profile_problems(document, source, sorted({section.partition(".")[0] for section in plan.sections.values()}))
    arguments = dict(uris)
    for argument, section in plan.sections.items():
        stage, _, modality = section.partition(".")
        part = document.get(stage)
        if modality and isinstance(part, dict) and part and modality not in part:
            problems.append(f"{source}: has no section '{section}', which the pipeline {name} runs; '{stage}' has {', '.join(map(str, part))}")
        elif modality:
            part = part.get(modality) if isinstance(part, dict) else None
        if argument in plan.shares and isinstance(part, dict):
            index, of = plan.shares[argument]
            part = {**part, "part": {"index": index, "of": of}}
        arguments[argument] = as_text(part)
    if problems:
        raise ConfigError("\n".join(sorted(problems)))
    return arguments


def _uri_problems(plan: Plan, uris: Mapping[str, str]) -> list[str]:
    problems = [f"{uri}: missing; name the URI of this input of the pipeline {plan.name}" for uri in plan.uris if uri not in uris]
    problems += [f"{uri}: is no input of the pipeline {plan.name}; remove it" for uri in uris if uri not in plan.uris]
    lock = uris.get("lock", "")
    if "://" in lock and not re.search(r"[0-9a-f]{64}", lock.rpartition("/")[2]):
        problems.append(f"lock = {lock}: Kubeflow's cache goes by this address; name the file by its SHA-256, such as "
                        f"{lock.rpartition('/')[0]}/SHA256.yaml, as `python -m pipelines.submit` does")
    return problems


def _ablation_arguments(name: str, document: Mapping[str, Any], source: str, uris: Mapping[str, str], problems: list[str]) -> dict[str, str]:
    """Those of an ablation, whose variants are overrides of one of the two profiles."""
    profile = next((known for known, path in PROFILES.items() if path.name == Path(source).name), None)
    if profile is None or read_document(ROOT / PROFILES[profile]) != document:
        raise ConfigError(f"{source}: an ablation's variants are overrides of params.yaml or params.production.yaml as they are; "
                          f"write others into {FILE}")
    if problems:
        raise ConfigError("\n".join(sorted(problems)))
    return ablation_arguments(read_ablations(ROOT / FILE)[name.removeprefix(ABLATION)], profile, dict(uris), ROOT)
