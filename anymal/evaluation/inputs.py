"""Which checkpoint, features and shards belong together, when an evaluation is given those of several modalities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anymal.data.features import FeatureStore
from anymal.errors import DataError
from anymal.model.checkpoint import read_checkpoints


@dataclass(frozen=True)
class Source:
    """What an evaluation reads of one modality."""

    store: FeatureStore
    shards: Path


def match_inputs(
    checkpoints: Sequence[Path], features: Sequence[Path], shards: Sequence[Path], *, wanted: Sequence[str], split: str
) -> dict[str, Source]:
    """Modality -> its source, in the order wanted.

    Checkpoints (also a whole tuned model) and features say their modality; shards stand in the order of the features.
    Inputs of modalities that are not wanted are left alone.

    Raises:
        DataError: if a wanted modality lacks its checkpoint or features, two inputs are of one modality, or the shards are not as many as the
            features.
        BundleError: if a checkpoint is damaged.
    """
    if len(shards) != len(features):
        raise DataError(f"evaluate: --shards is given {len(shards)} times and --features {len(features)} times; give the shards that each "
                        "feature folder was made from, in the same order")
    trained = read_checkpoints(checkpoints).folders
    encoded: dict[str, Path] = {}
    of_features: dict[str, Path] = {}
    for folder, source in zip(features, shards, strict=True):
        modality = FeatureStore(folder).info["modality"]
        _add(encoded, "--features", modality, folder)
        of_features[modality] = source
    for option, found in (("--checkpoints", trained), ("--features", encoded)):
        missing = [modality for modality in wanted if modality not in found]
        if missing:
            raise DataError(f"evaluate: {option} has nothing of {missing[0]}, it has {', '.join(sorted(found))}; add the {missing[0]} folder")
    return {modality: Source(FeatureStore(encoded[modality], split), of_features[modality]) for modality in wanted}


def _add(found: dict[str, Path], option: str, modality: str, folder: Path) -> None:
    if modality in found:
        raise DataError(f"evaluate: {option} {folder} is of {modality}, as {found[modality]} is; give one folder per modality")
    found[modality] = folder
