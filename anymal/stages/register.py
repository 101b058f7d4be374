"""Write the model bundle and register it as a candidate."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from anymal.errors import DataError
from anymal.stage import Config, In, Ins, Out, fingerprint, flatten


class InferenceConfig(BaseModel):
    """How the bundle answers unless its caller says otherwise; the same as in `evaluate`, so that the figures hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["bfloat16", "float16", "float32"]
    quantization: Literal["none", "nf4", "int8"]
    attention: Literal["eager", "sdpa", "flash_attention_2"]
    max_new_tokens: int = Field(gt=0)


class RegisterConfig(Config):
    """Knobs of `register`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")
    """Of the registered model."""
    alias: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_\-]*$")
    """Moved to the new version."""
    inference: InferenceConfig

    @field_validator("alias")
    @classmethod
    def _not_reserved(cls, alias: str) -> str:
        if re.fullmatch(r"latest|v\d+", alias, re.IGNORECASE):
            raise ValueError("MLflow keeps 'latest' and 'v1', 'v2', … for itself; take another name, such as 'candidate'")
        return alias


def register(
    config: RegisterConfig, *, checkpoints: Ins, statistics: Ins, evaluation: In, assets: In, bundle: Out, registration: Out
) -> None:
    """Write the model bundle and register it as a candidate.

    `checkpoints` and `statistics` are of the same modalities, in the same order.
    """
    from anymal import __version__
    from anymal.model.bundle import asset_record, read_checkpoint_metadata, write_bundle
    from anymal.registry import register_bundle
    from anymal.serving.card import model_card

    if len(checkpoints) != len(statistics):
        raise DataError(f"register: {len(checkpoints)} checkpoints but {len(statistics)} statistics; give one of each per modality, in one order")
    figures = _read(evaluation)
    described = {metadata["modality"]: metadata for metadata in map(read_checkpoint_metadata, checkpoints)}
    facts = dict(zip(described, map(_read, statistics), strict=False))
    inputs = {f"{modality}.{port}": fingerprint(path) for port, paths in (("checkpoint", checkpoints), ("statistics", statistics))
              for modality, path in zip(described, paths, strict=False)} | {"evaluation": fingerprint(evaluation)}
    inference = config.inference.model_dump()
    card = model_card(
        name=config.name, alias=config.alias, checkpoints=described, evaluation=figures, statistics=facts,
        assets={folder.name: asset_record(folder) for folder in sorted(assets.iterdir()) if (folder / "asset.json").is_file()},
        inference=inference, seed=config.seed, inputs=inputs)  # fmt: skip
    write_bundle(bundle, checkpoints=checkpoints, assets=assets, inference=inference, card=card,
                 provenance={"anymal": __version__, "seed": config.seed, "inputs": inputs, "evaluation": figures})
    values = {name: value for name, value in flatten(figures).items() if name.endswith(".value")}
    result = register_bundle(bundle, name=config.name, alias=config.alias, metrics=values,
                             tags={f"input.{port}": digest for port, digest in inputs.items()})
    document = {"name": result.name, "version": result.version, "alias": result.alias, "uri": result.uri, "bundle_sha256": result.bundle_sha256}
    registration.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error}); run the stage that writes it again") from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: must hold a JSON object, found {type(document).__name__}; run the stage that writes it again")
    return document
