"""The model bundle: one folder with all that is needed to answer, except the frozen LLM and encoders, which it names by hash.

    bundle.json            format, LLM and encoder assets (their lock entries and SHA-256), inference settings, provenance
    MODALITY/              align's checkpoint of each modality: projector.safetensors, projector.json, manifest.json; and `encoder/`, if the
                           encoder was trained here and no asset holds it
    README.md              model card
    manifest.json          SHA-256 and size of every file above

No pickles, no timestamps: the same checkpoint gives the same bytes, and the SHA-256 of `manifest.json` names the bundle.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anymal.data.assets import asset_document, parse_entry, read_asset, resolve
from anymal.data.manifest import MANIFEST, sha256_of, verify_manifest, write_manifest
from anymal.errors import AnymalError, BundleError, ConfigError

if TYPE_CHECKING:
    from anymal.model.anymal import AnyMAL

BUNDLE = "bundle.json"
CARD = "README.md"
FORMAT = 1
INFERENCE = {"dtype": str, "quantization": str, "attention": str, "max_new_tokens": int}


def write_bundle(folder: Path, *, checkpoints: Sequence[Path], assets: Path, inference: Mapping[str, Any], card: str,
                 provenance: Mapping[str, Any]) -> str:
    """Write a bundle; the same arguments give the same bytes.

    Args:
        folder: must not exist.
        checkpoints: align's checkpoint folders, one per modality, of one LLM.
        assets: the folder ingest wrote; the LLM and the encoders are looked up there by the names in the checkpoints.
        inference: `dtype`, `quantization` and `attention` of the LLM and `max_new_tokens` of an answer.
        card: model card, Markdown.
        provenance: what it was made from and how it was measured (JSON), kept as it is: what a gate needs to compare two bundles.

    Returns:
        The bundle's SHA-256: of its manifest.

    Raises:
        BundleError: if a checkpoint is damaged, two are of one modality or of different LLMs, or an asset is missing.
    """
    described = [(source, read_checkpoint_metadata(source)) for source in checkpoints]
    modalities = [metadata["modality"] for _, metadata in described]
    llms = sorted({metadata["llm"] for _, metadata in described})
    if len(set(modalities)) != len(modalities) or len(llms) != 1:
        raise BundleError(f"checkpoints {', '.join(map(str, checkpoints))}: a bundle takes one checkpoint per modality, all of one LLM; "
                          f"these are of {', '.join(modalities) or 'none'} and of {', '.join(llms) or 'none'}")
    names = {*llms, *(metadata["encoder"]["asset"] for _, metadata in described)} - {None}
    document = {
        "format": FORMAT,
        "llm": llms[0],
        "encoders": {metadata["modality"]: metadata["encoder"]["asset"] for _, metadata in described},
        "assets": {name: asset_record(assets / name) for name in sorted(names)},
        "inference": dict(inference),
        "provenance": dict(provenance),
    }
    folder.mkdir(parents=True)
    for source, metadata in described:
        shutil.copytree(source, folder / metadata["modality"], copy_function=shutil.copyfile)
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
    absent = [key for key in ("llm", "encoders", "assets", "inference", "provenance") if key not in document]
    absent += [f"inference.{key}" for key, kind in INFERENCE.items() if not isinstance(document.get("inference", {}).get(key), kind)]
    named = {document.get("llm"), *document.get("encoders", {}).values()} - {None}
    absent += [f"assets.{name}" for name in sorted(named) if name not in document.get("assets", {})]
    if absent:
        raise BundleError(f"{folder / BUNDLE}: lacks {', '.join(absent)}; register the model again")
    return document


def load_bundle(folder: Path, *, dtype: str | None = None, quantization: str | None = None, attention: str | None = None) -> AnyMAL:
    """A model ready to answer; bundle, LLM and encoders are verified first. What is not given is as the bundle was measured.

    Raises:
        BundleError: if the bundle, or an asset it names, is incomplete, has extra files or was changed.
        AssetError: if the LLM or an encoder is not on this machine and cannot be fetched.
    """
    document = read_bundle(folder)
    assets = {name: _resolve(folder, name, record) for name, record in document["assets"].items()}
    # Imported after the checks: torch and transformers take seconds, a damaged bundle should be named at once.
    from anymal.model.anymal import load_anymal

    settings = document["inference"]
    return load_anymal(assets, [folder / modality for modality in document["encoders"]], dtype=dtype or settings["dtype"],
                       quantization=quantization or settings["quantization"], attention=attention or settings["attention"])


def read_checkpoint_metadata(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint's projector.json, its files verified; without loading torch.

    Raises:
        BundleError: if it is damaged or no checkpoint.
    """
    verify_manifest(folder, error=BundleError)
    try:
        metadata = json.loads((folder / "projector.json").read_text(encoding="utf-8"))
        _ = metadata["modality"], metadata["llm"], metadata["encoder"]["asset"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{folder}: is no checkpoint of align (projector.json: {error!r}); give the folder of align's port `checkpoint`") from error
    result: dict[str, Any] = metadata
    return result


def asset_record(folder: Path) -> dict[str, Any]:
    """What a bundle keeps of an asset: its lock entry, and the SHA-256 of its manifest."""
    record = read_asset(folder)
    if record is None:
        raise BundleError(f"{folder}: the checkpoint needs this asset, but there is no asset.json; name it in ingest.assets and run ingest")
    verify_manifest(folder, error=BundleError)
    return {"entry": record, "sha256": sha256_of(folder / MANIFEST)}


def _resolve(folder: Path, name: str, record: Mapping[str, Any]) -> Path:
    try:
        entry = parse_entry(name, {key: value for key, value in record["entry"].items() if key != "name"}, BUNDLE)
        path = resolve(asset_document(name, entry))
    except (ConfigError, KeyError, AttributeError) as error:
        raise BundleError(f"{folder / BUNDLE}: the record of asset {name} cannot be used ({error}); register the model again") from error
    except AnymalError as error:
        raise type(error)(f"{folder} needs asset {name}: {error}") from error
    found = sha256_of(path / MANIFEST)
    if found != record["sha256"]:
        raise BundleError(f"{folder} was made with asset {name} of SHA-256 {record['sha256'][:12]}…, but {path} has {found[:12]}…; "
                          f"remove {path} and run ingest with the lock of that time, or register the model again")
    return path


def bundle_sha256(folder: Path) -> str:
    """The name of a bundle's content: SHA-256 of its manifest, which holds the SHA-256 of every other file."""
    if not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder}: has no {MANIFEST}, so it is no model bundle; give a folder that register wrote")
    return sha256_of(folder / MANIFEST)
