"""Stop a run whose training data hold what the model is tested on: test media, their like, what they belong to, or benchmarks' media."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from anymal.errors import DataError
from anymal.model.modalities import ModalityName, modalities
from anymal.stage import Config, Ins, Out


class ThresholdsConfig(BaseModel):
    """From where two media of a modality are the same; a way of comparing that its media do not have is null."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    bits: int | None = Field(ge=0, le=64)
    """Greatest distance of the perceptual hashes of pictures or frames, and `colour`, of their colour miniatures: both must be near."""
    colour: float | None = Field(ge=0, le=255)
    correlation: float | None = Field(gt=0, le=1)
    """Least correlation of the waveforms of sounds, or of how motions change."""
    cosine: float | None = Field(gt=0, le=1)
    """Least cosine of the encoder's features; null where the encoder tells kinds of media apart and not media."""


class AuditConfig(Config):
    """Knobs of `audit`."""

    thresholds: dict[ModalityName, ThresholdsConfig]
    workers: int = Field(gt=0)
    """Threads that decode."""
    shown: int = Field(ge=1, le=1000)
    """Leaks that are printed one by one."""


def audit(config: AuditConfig, *, shards: Ins, features: Ins, instructions: Ins, benchmarks: Ins, leakage: Out, report: Out) -> None:
    """Compare test samples and benchmarks' media with all training data; fail with a list if anything is in both.

    The first `shards` are those that the `features` were made from, in their order; others are folders of folders by modality.
    """
    from anymal import tracking
    from anymal.data.features import FeatureStore
    from anymal.evaluation.benchmarks.folder import read_media
    from anymal.evaluation.leakage import Thresholds, find_leaks, page, refuse, summary

    if len(shards) < len(features):
        raise DataError(f"audit: --shards is given {len(shards)} times and --features {len(features)} times; give the shards of each feature folder")
    encoded = {FeatureStore(folder).info["modality"]: folder for folder in features}
    if len(encoded) < len(features):
        raise DataError(f"audit: --features has two folders of one modality; give one each of {', '.join(encoded)}")
    media = {modality: [folder] for modality, folder in zip(encoded, shards, strict=False)}
    for folder in shards[len(features):]:
        found = [modality for modality in modalities() if (folder / modality).is_dir()]
        if not found:
            raise DataError(f"audit: --shards {folder} holds no folder named after a modality; give its features too, or leave it out")
        for modality in found:
            media.setdefault(modality, []).append(folder / modality)
    thresholds = {modality: Thresholds(**limits.model_dump()) for modality, limits in config.thresholds.items()}
    rows = [row for folder in benchmarks for row in read_media(folder)]
    leaks = find_leaks(media, encoded, instructions, rows, thresholds=thresholds, workers=config.workers)
    if leaks.leaks:
        with tempfile.TemporaryDirectory() as scratch:
            listed = Path(scratch) / "leaks.json"
            listed.write_text(json.dumps([asdict(leak) for leak in leaks.leaks], indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            tracking.log_artifact(listed)
    refuse(leaks, shown=config.shown, say=lambda line: print(line, file=sys.stderr))
    document = summary(leaks, thresholds)
    leakage.write_text(json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    report.write_text(page(document), encoding="utf-8")
