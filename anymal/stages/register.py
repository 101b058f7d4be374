"""Write the model bundle and register it as a candidate."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from anymal.data.manifest import fingerprint
from anymal.errors import DataError
from anymal.executor import flatten
from anymal.stage import Config, DType, In, Ins, Out


class InferenceConfig(BaseModel):
    """How the bundle answers unless its caller says otherwise; the same as in `evaluate`, so that the figures hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: DType
    quantization: Literal["none", "nf4", "int8"]
    attention: Literal["eager", "sdpa", "flash_attention_2"]
    merge: bool
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
        if alias == "champion":
            raise ValueError("only `anymal promote` makes a champion; take another name, such as 'candidate'")
        return alias

    @field_validator("name")
    @classmethod
    def _no_ledger(cls, name: str) -> str:
        if name.endswith("-decisions"):
            raise ValueError("names that end in -decisions are for what `anymal promote` records; take another one")
        return name


def register(
    config: RegisterConfig, *, checkpoints: Ins, statistics: Ins, evaluation: In, samples: In, leakage: In, safety: In, integrity: In,
    assets: In, bundle: Out, registration: Out
) -> None:
    """Write the model bundle and register it as a candidate, with the evidence that a promotion goes by.

    `checkpoints` are what finetune wrote, or align's, one per modality; `statistics` are curation's, of the same modalities; `evaluation` and
    `samples` are score's, `leakage` is audit's, `safety` and `integrity` are what train_safety measured of the guard and evaluate_safety of both.
    """
    from anymal import __version__
    from anymal.model.bundle import asset_record, write_bundle
    from anymal.model.checkpoint import read_checkpoints
    from anymal.registry import register_bundle
    from anymal.serving.card import model_card

    described = read_checkpoints(checkpoints).metadata
    paths = {str(_read(path).get("modality")): path for path in statistics}
    if paths.keys() != described.keys():
        raise DataError(f"register: --statistics is of {', '.join(paths)}, but the checkpoints are of {', '.join(described)}; give the "
                        "statistics that curation wrote for each of them")
    figures, audit, asked = _read(evaluation), _read(leakage), _read(integrity)
    measured = {"evaluation": evaluation, "samples": samples, "leakage": leakage, "safety": safety, "integrity": integrity}
    facts = {modality: {name: value for name, value in _read(path).items() if name != "modality"} for modality, path in paths.items()}
    inputs = {f"checkpoints.{number}": fingerprint(path) for number, path in enumerate(checkpoints)} | {
        f"{modality}.statistics": fingerprint(path) for modality, path in paths.items()} | {
            name: fingerprint(path) for name, path in measured.items()}
    inference = config.inference.model_dump()
    card = model_card(
        name=config.name, alias=config.alias, checkpoints=described, evaluation=figures, leakage=audit, integrity=asked, statistics=facts,
        assets={folder.name: asset_record(folder) for folder in sorted(assets.iterdir()) if (folder / "asset.json").is_file()},
        inference=inference, seed=config.seed, inputs=inputs)  # fmt: skip
    write_bundle(bundle, checkpoints=checkpoints, assets=assets, inference=inference, card=card,
                 provenance={"anymal": __version__, "seed": config.seed, "inputs": inputs, "evaluation": figures})
    values = {name: value for name, value in flatten(figures).items() if name.endswith(".value")}
    result = register_bundle(bundle, name=config.name, alias=config.alias, metrics=values,
                             tags={f"input.{port}": digest for port, digest in inputs.items()},
                             evidence={f"{name}{'.jsonl' if name == 'samples' else '.json'}": path for name, path in measured.items()})
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
