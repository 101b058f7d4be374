"""The model bundle: one folder with all that is needed to answer, except the frozen LLM and encoders, which it names by hash.

    bundle.json            format, LLM and encoder assets (their lock entries and SHA-256), inference settings, provenance
    MODALITY/              align's checkpoint of each modality: projector.safetensors, projector.json, manifest.json; and `encoder/`, if the
                           encoder was trained here and no asset holds it
    adapter/               LoRA adapter of the LLM, in PEFT's format, if the projectors were tuned with one
    README.md              model card
    manifest.json          SHA-256 and size of every file above

No pickles, no timestamps: the same checkpoint gives the same bytes, and the SHA-256 of `manifest.json` names the bundle.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anymal.data.asset_folders import read_asset
from anymal.data.manifest import MANIFEST, sha256_of, verify_manifest, write_manifest
from anymal.errors import BundleError
from anymal.model.checkpoint import ADAPTER, read_checkpoints

BUNDLE = "bundle.json"
CARD = "README.md"
FORMAT = 2
INFERENCE = {"dtype": str, "quantization": str, "attention": str, "merge": bool, "max_new_tokens": int}


def write_bundle(folder: Path, *, checkpoints: Sequence[Path], assets: Path, inference: Mapping[str, Any], card: str,
                 provenance: Mapping[str, Any]) -> str:
    """Write a bundle; the same arguments give the same bytes.

    Args:
        folder: must not exist.
        checkpoints: align's checkpoint folders, one per modality, of one LLM; or the folder that finetune wrote.
        assets: the folder ingest wrote; the LLM and the encoders are looked up there by the names in the checkpoints.
        inference: `dtype`, `quantization` and `attention` of the LLM, whether to `merge` its adapter, and `max_new_tokens` of an answer.
        card: model card, Markdown.
        provenance: what it was made from and how it was measured (JSON), kept as it is: what a gate needs to compare two bundles.

    Returns:
        The bundle's SHA-256: of its manifest.

    Raises:
        BundleError: if a checkpoint is damaged, two are of one modality or of different LLMs, or an asset is missing.
    """
    found = read_checkpoints(checkpoints)
    names = {found.llm, *(metadata["encoder"]["asset"] for metadata in found.metadata.values())} - {None}
    document = {
        "format": FORMAT,
        "llm": found.llm,
        "adapter": None if found.adapter is None else sha256_of(found.adapter / MANIFEST),
        "encoders": {modality: metadata["encoder"]["asset"] for modality, metadata in found.metadata.items()},
        "assets": {name: asset_record(assets / name) for name in sorted(names)},
        "inference": dict(inference),
        "provenance": dict(provenance),
    }
    folder.mkdir(parents=True)
    for modality, source in found.folders.items():
        shutil.copytree(source, folder / modality, copy_function=shutil.copyfile)
    if found.adapter is not None:
        shutil.copytree(found.adapter, folder / ADAPTER, copy_function=shutil.copyfile)
    (folder / BUNDLE).write_text(json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")
    write_manifest(folder)
    return bundle_sha256(folder)


def read_bundle(folder: Path) -> dict[str, Any]:
    """The content of `bundle.json`, after every file of the bundle was checked against the manifest.

    Raises:
        BundleError: naming each missing, extra and changed file, or what is wrong with `bundle.json`.
    """
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such bundle folder; run the stage register, or give models:/anymal@candidate")
    verify_manifest(folder, error=BundleError)
    try:
        document = json.loads((folder / BUNDLE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder / BUNDLE}: cannot be read ({error}); this folder is no model bundle, give one that register wrote") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else None
        raise BundleError(f"{folder / BUNDLE}: format = {found}: this version reads format {FORMAT}; register the model again with this version")
    absent = [key for key in ("llm", "adapter", "encoders", "assets", "inference", "provenance") if key not in document]
    absent += [f"inference.{key}" for key, kind in INFERENCE.items() if not isinstance(document.get("inference", {}).get(key), kind)]
    named = {document.get("llm"), *document.get("encoders", {}).values()} - {None}
    absent += [f"assets.{name}" for name in sorted(named) if name not in document.get("assets", {})]
    if absent:
        raise BundleError(f"{folder / BUNDLE}: lacks {', '.join(absent)}; register the model again")
    return document


def asset_record(folder: Path) -> dict[str, Any]:
    """What a bundle keeps of an asset: its lock entry, and the SHA-256 of its manifest."""
    record = read_asset(folder)
    if record is None:
        raise BundleError(f"{folder}: the checkpoint needs this asset, but there is no asset.json; name it in ingest.assets and run ingest")
    verify_manifest(folder, error=BundleError)
    return {"entry": record, "sha256": sha256_of(folder / MANIFEST)}


def bundle_sha256(folder: Path) -> str:
    """The name of a bundle's content: SHA-256 of its manifest, which holds the SHA-256 of every other file."""
    if not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder}: has no {MANIFEST}, so it is no model bundle; give a folder that register wrote")
    return sha256_of(folder / MANIFEST)
