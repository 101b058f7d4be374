"""Writing what fine-tuning made: checkpoints of all modalities and the adapter that belongs to them, in one folder."""

from __future__ import annotations

from pathlib import Path

from anymal.data.features import TRAINED_ENCODER
from anymal.data.manifest import MANIFEST, sha256_of, write_manifest
from anymal.model.adapter import save_adapter
from anymal.model.anymal import AnyMAL, write_checkpoint
from anymal.model.checkpoint import ADAPTER, Checkpoints


def write_tuned(folder: Path, model: AnyMAL, aligned: Checkpoints, *, adapter: bool) -> None:
    """Write a tuned model (`anymal.model.checkpoint`): each projector says which adapter it was tuned with.

    Args:
        aligned: the checkpoints that tuning began with: what they say of encoders and prompts still holds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = None
    if adapter:
        save_adapter(model.llm, folder / ADAPTER)
        name = sha256_of(folder / ADAPTER / MANIFEST)
    for modality, source in aligned.folders.items():
        target = folder / modality
        target.mkdir()
        encoder = source / TRAINED_ENCODER
        write_checkpoint(target, model.projectors[modality], {**aligned.metadata[modality], "adapter": name}, encoder if encoder.is_dir() else None)
    write_manifest(folder)
