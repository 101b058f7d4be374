"""Saving a bundle that was loaded: the same bytes, or, with other projectors, a bundle that says what it was made from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from anymal.data.manifest import sha256_of, write_manifest
from anymal.data.tensors import save_tensors
from anymal.errors import BundleError
from anymal.model.bundle import BUNDLE, CARD, bundle_sha256, read_bundle
from anymal.model.checkpoint import WEIGHTS, read_checkpoint


def reads_alike(folder: Path, other: Path) -> bool:
    """Whether two bundles take the same inputs."""
    first, second = read_bundle(folder), read_bundle(other)
    if any(first[key] != second[key] for key in ("llm", "encoders", "assets")):
        return False
    return all(read_checkpoint(folder / modality) == read_checkpoint(other / modality) for modality in first["encoders"])


def save_bundle(source: Path, target: Path, projectors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write the bundle of `source` with these weights, whole or not at all; `target` must be new, empty or this very bundle."""
    document = read_bundle(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        shutil.copytree(source, staging, copy_function=shutil.copyfile)
        changed = []
        for modality, weights in projectors.items():
            path = staging / modality / WEIGHTS
            before = sha256_of(path)
            save_tensors(path, weights)
            if sha256_of(path) != before:
                changed.append(modality)
                write_manifest(staging / modality)
        if changed:
            provenance = {"changed": changed, "changed_from": bundle_sha256(source)}
            (staging / BUNDLE).write_text(json.dumps({**document, "provenance": provenance}, indent=1, sort_keys=True, ensure_ascii=False) + "\n",
                                          encoding="utf-8")
            (staging / CARD).write_text(
                f"# AnyMAL bundle\n\nMade from bundle {provenance['changed_from']} by training on: {', '.join(changed)}. "
                "Nothing of it was measured since; the figures of that bundle do not hold for it.\n", encoding="utf-8")
            write_manifest(staging)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            if not (target / BUNDLE).is_file() or bundle_sha256(target) != bundle_sha256(staging):
                raise BundleError(f"{target}: holds something else already, which is not overwritten; give a new or an empty folder")
            read_bundle(target)
            return
        if target.exists():
            target.rmdir()
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
