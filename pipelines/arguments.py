"""The arguments of a pipeline run: a profile's sections, every knob checked before anything starts."""

from pathlib import Path
from typing import Any

from anymal.errors import ConfigError
from anymal.stage import load_stage, read_document, stage_names, validate, without_nulls


def read_arguments(profile: Path, lock: str) -> dict[str, Any]:
    """What the pipeline `training` is called with.

    Args:
        profile: the YAML profile.
        lock: URI of the asset lock in the object store.

    Raises:
        ConfigError: naming every wrong knob of every section, and every missing or unknown section, at once.
    """
    document = read_document(profile)
    problems = [f"{profile}: has no section '{name}'" for name in stage_names() if name not in document]
    problems += [f"{profile}: section '{name}' belongs to no stage" for name in document if name not in stage_names()]
    for name in set(stage_names()) & set(document):
        try:
            validate(load_stage(name).config, document[name], name)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(sorted(problems)))
    return {"lock": lock, **without_nulls(document)}
