"""The shapes a plan starts from: an LLM's config and an encoder's tokens, from files that are here or from what is known of public models."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anymal.data.features import INDEX
from anymal.errors import ConfigError

KNOWN = Path(__file__).with_name("known.yaml")


@dataclass(frozen=True)
class MediaShape:
    """What an encoder gives for one medium: `tokens` of width `dim`, from `frames` frames."""

    tokens: int
    dim: int
    frames: int


@functools.cache
def _known() -> dict[str, Any]:
    from ruamel.yaml import YAML

    document: dict[str, Any] = YAML(typ="safe", pure=True).load(KNOWN.read_text(encoding="utf-8"))
    return document


def llm_config(name: str, assets: Path | None) -> dict[str, Any]:
    """The Hugging Face config of an LLM: of the asset folder if it is there, else of a public model of that name; no weights are read.

    Raises:
        ConfigError: if neither is there, or the file cannot be read.
    """
    if assets is not None and (path := assets / name / "config.json").is_file():
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(config["model_type"], str):
                raise ValueError("model_type is no text")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: is no config of an LLM ({error}); run ingest again") from error
        return dict(config)
    if name not in _known()["llms"]:
        raise ConfigError(f"llm = {name}: no {'such folder' if assets is None else assets / name} and no known model; run ingest and name its folder "
                          f"with --assets, or plan with one of {', '.join(_known()['llms'])}")
    return dict(_known()["llms"][name]["config"])


def media_shape(modality: str, document: Mapping[str, Any], features: Path | None) -> MediaShape:
    """What the encoder of a modality gives: as the features of it that are here say, else as the profile's sections do.

    Raises:
        ConfigError: if the profile does not name the encoder, or nothing is known of it.
    """
    if features is not None and (path := features / modality / INDEX).is_file():
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            return MediaShape(int(index["tokens"]), int(index["dim"]), int(index["frames"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: is no index of features ({error}); run encode again") from error
    section = document.get("encode", {}).get(modality)
    if section is None:
        raise ConfigError(f"encode.{modality}: the profile has no such section, so the width of its features is unknown; add it, or give --features")
    name, settings = section["encoder"], section["settings"]
    trained = document.get("pretrain_encoder", {}).get(modality)
    if trained is not None and trained["encoder"] == name:
        return MediaShape(trained["architecture"]["tokens"], trained["architecture"]["dim"], 1)
    if name not in _known()["encoders"]:
        raise ConfigError(f"encode.{modality}.encoder = {name}: its tokens are not known; give --features with a folder that encode wrote, or use "
                          f"one of {', '.join(_known()['encoders'])}")
    tokens, dim = _known()["encoders"][name]["tokens"], _known()["encoders"][name]["dim"]
    frames = settings.get("frames", 1)
    if (grid := settings.get("grid")) is not None:
        tokens = grid**2
    return MediaShape(frames * tokens, dim, frames)
