"""The arguments of a pipeline run: a profile's sections, every knob checked before anything starts."""

from pathlib import Path
from typing import Any

from anymal.errors import ConfigError
from anymal.stage import load_stage, read_document, section_problems, stage_names, without_nulls
from pipelines.ablations import CONFIGURED_HERE


def read_arguments(profile: Path, lock: str) -> dict[str, Any]:
    """What the pipeline `training` is called with: a section as it is called, one of a modality with it (`align.audio` as `align_audio`).

    Args:
        profile: the YAML profile.
        lock: URI of the asset lock in the object store.

    Raises:
        ConfigError: naming every wrong knob of every section, and every missing or unknown section, at once.
    """
    document = read_document(profile)
    stages = [name for name in stage_names() if name not in CONFIGURED_HERE]
    problems = [f"{profile}: has no section '{name}'" for name in stages if name not in document]
    problems += [f"{profile}: section '{name}' belongs to no stage" for name in document if name not in stages]
    arguments: dict[str, Any] = {"lock": lock}
    for name in sorted(set(stages) & set(document)):
        stage = load_stage(name)
        problems += section_problems(stage, document[name])
        if stage.per_modality and isinstance(document[name], dict):
            arguments |= {f"{name}_{modality}": without_nulls(section) for modality, section in document[name].items()}
        else:
            arguments[name] = without_nulls(document[name])
    if problems:
        raise ConfigError("\n".join(sorted(problems)))
    return arguments
