"""Checkpoint folders, read without torch: one projector each, or a whole tuned model.

    projector.json, projector.safetensors, [encoder/], manifest.json        a checkpoint: what align writes
    MODALITY/ (a checkpoint each), [adapter/], manifest.json                a tuned model: what finetune writes

Projectors that were tuned together with an adapter of the LLM name it by its SHA-256, so that neither is used without the other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anymal.data.manifest import MANIFEST, sha256_of, verify_manifest
from anymal.errors import BundleError

METADATA = "projector.json"
WEIGHTS = "projector.safetensors"
ADAPTER = "adapter"


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints that make one model."""

    folders: dict[str, Path]
    """Modality -> its checkpoint."""
    metadata: dict[str, dict[str, Any]]
    llm: str
    """Asset name of the LLM that all were trained on."""
    adapter: Path | None
    """Folder of the LLM's adapter."""


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint's projector.json, its files verified.

    Raises:
        BundleError: naming what is missing, extra or changed, or if it is no checkpoint.
    """
    verify_manifest(folder, error=BundleError)
    try:
        metadata: dict[str, Any] = json.loads((folder / METADATA).read_text(encoding="utf-8"))
        _ = metadata["modality"], metadata["llm"], metadata["encoder"]["asset"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{folder}: is no checkpoint ({METADATA}: {error!r}); give the folder that align or finetune wrote") from error
    return metadata


def read_checkpoints(paths: Sequence[Path]) -> Checkpoints:
    """The checkpoints at `paths`, each a checkpoint or a tuned model, verified; they must make one model.

    Raises:
        BundleError: if one is damaged, two are of one modality or of different LLMs, or the adapter that they were tuned with is missing, is
            another one, or is there although they were tuned with none.
    """
    found = [folder for path in paths for folder in _expand(path)]
    described = [read_checkpoint(folder) for folder in found]
    modalities = [metadata["modality"] for metadata in described]
    llms = sorted({metadata["llm"] for metadata in described})
    if len(set(modalities)) != len(modalities) or len(llms) != 1:
        raise BundleError(f"checkpoints {', '.join(map(str, paths))}: a model takes one checkpoint per modality, all of one LLM; these are of "
                          f"{', '.join(modalities) or 'none'} and of {', '.join(llms) or 'none'}")
    adapters = [path / ADAPTER for path in paths if (path / ADAPTER / MANIFEST).is_file()]
    _check_adapter(adapters, described)
    by_modality = dict(zip(modalities, zip(found, described, strict=True), strict=True))
    return Checkpoints({name: folder for name, (folder, _) in by_modality.items()}, {name: metadata for name, (_, metadata) in by_modality.items()},
                       llms[0], adapters[0] if adapters else None)


def _expand(path: Path) -> list[Path]:
    if (path / METADATA).is_file():
        return [path]
    inner = sorted(folder.parent for folder in path.glob(f"*/{METADATA}"))
    return inner or [path]


def _check_adapter(adapters: Sequence[Path], described: Sequence[dict[str, Any]]) -> None:
    wanted = {metadata.get("adapter") for metadata in described}
    given: set[str | None] = {sha256_of(folder / MANIFEST) for folder in adapters} or {None}
    for folder in adapters:
        verify_manifest(folder, error=BundleError)
    if wanted == given:
        return
    names = ", ".join(sorted("no adapter" if sha is None else f"adapter {sha[:12]}…" for sha in wanted))
    raise BundleError(f"these projectors were tuned with {names} of the LLM, but {', '.join(map(str, adapters)) or 'no adapter'} is given; "
                      "give the whole folder that finetune wrote, and nothing beside it")
