"""Write the model bundle and register it as a candidate."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from anymal.candidates import CandidateAlias, ModelName, read_measured, write_registration
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

    name: ModelName
    alias: CandidateAlias
    inference: InferenceConfig


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
    paths = {str(read_measured(path).get("modality")): path for path in statistics}
    if paths.keys() != described.keys():
        raise DataError(f"register: --statistics is of {', '.join(paths)}, but the checkpoints are of {', '.join(described)}; give the "
                        "statistics that curation wrote for each of them")
    figures, audit, asked = read_measured(evaluation), read_measured(leakage), read_measured(integrity)
    measured = {"evaluation": evaluation, "samples": samples, "leakage": leakage, "safety": safety, "integrity": integrity}
    facts = {modality: {name: value for name, value in read_measured(path).items() if name != "modality"} for modality, path in paths.items()}
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
    write_registration(registration, result)
