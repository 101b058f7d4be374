"""Repositories of the Hugging Face hub, each at one commit."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, NoReturn

from anymal.data.archives import destination
from anymal.data.asset_folders import cache_folder, ensure_free
from anymal.data.lock import HfEntry
from anymal.data.manifest import sha256_of
from anymal.data.sources.transfer import BLOCK, own_source
from anymal.errors import AssetError
from anymal.progress import track


def query_hf(name: str, repo: str, repo_type: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """The commit of a revision (None: the default branch) and what the hub says of each file (`size`, `blob_id`, `lfs.sha256`)."""
    from huggingface_hub import HfApi

    try:
        info = HfApi(endpoint=os.environ.get("HF_ENDPOINT")).repo_info(repo, repo_type=repo_type, revision=revision, files_metadata=True, timeout=60)
    except Exception as error:
        raise_hf(name, repo, revision, error)
    assert info.sha is not None
    return info.sha, {sibling.rfilename: sibling for sibling in getattr(info, "siblings", None) or []}


def check_hf(name: str, entry: HfEntry) -> int:
    """Make sure that this account may read a repository at its commit, without fetching its files.

    Returns:
        Bytes of the files that `take` names.

    Raises:
        AssetError: if it may not (a gated repository without HF_TOKEN, for one), or the hub cannot be asked.
    """
    from huggingface_hub import HfApi

    _, siblings = query_hf(name, entry.repo, entry.repo_type, entry.revision)
    try:
        HfApi(endpoint=os.environ.get("HF_ENDPOINT")).auth_check(entry.repo, repo_type=entry.repo_type)
    except Exception as error:
        raise_hf(name, entry.repo, entry.revision, error)
    return sum(siblings[file].size or 0 for file in _wanted(name, entry, siblings))


def _wanted(name: str, entry: HfEntry, siblings: dict[str, Any]) -> dict[str, str]:
    """Files that `take` names -> their places in the asset; those that the entry pins must be among them."""
    wanted = {file: goal for file in sorted(siblings) if (goal := destination(file, entry.take)) is not None}
    absent = sorted((entry.files or {}).keys() - wanted.keys())
    if absent or not wanted:
        raise AssetError(f"asset {name}: {entry.repo} at {entry.revision} has no {', '.join(absent) or 'file that `take` names'}; "
                         "correct its entry of the lock")
    return wanted


def raise_hf(name: str, repo: str, revision: str | None, error: Exception) -> NoReturn:
    """Turn the hub library's errors into one sentence each; anything unknown stays what it is."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        text = f"the hub's {repo} is gated; accept its licence there with your account and set HF_TOKEN"
    elif isinstance(error, errors.RevisionNotFoundError):
        text = f"the hub's {repo} has no revision {revision}; correct its entry of the lock"
    elif isinstance(error, errors.RepositoryNotFoundError):
        text = f"the hub has no {repo}, or it is private and HF_TOKEN is not set; correct its entry of the lock or set HF_TOKEN"
    elif isinstance(error, errors.HfHubHTTPError):
        text = f"the Hugging Face hub answered {error.response.status_code} for {repo}; check HF_TOKEN and your access"
    elif isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError | errors.HTTPError):
        text = f"the Hugging Face hub cannot be reached for {repo}; check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
    else:
        raise error
    raise AssetError(f"asset {name}: {text}, {own_source(name)}") from error


def git_blob_sha1(path: Path) -> str:
    """The identifier that git (and the hub, for small files) gives a file's content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def collect_hf(name: str, entry: HfEntry, folder: Path) -> None:
    """Fetch what `take` names of a repository, resumed, checked against the hub's hashes and the lock's."""
    from huggingface_hub import snapshot_download

    sha, siblings = query_hf(name, entry.repo, entry.repo_type, entry.revision)
    if sha != entry.revision:
        raise AssetError(f"asset {name}: the hub answered with commit {sha} of {entry.repo}, the lock names {entry.revision}; correct HF_ENDPOINT")
    wanted = _wanted(name, entry, siblings)
    if entry.files is not None and (unpinned := sorted(wanted.keys() - entry.files.keys())):
        raise AssetError(f"asset {name}: its `files` give no SHA-256 for {', '.join(unpinned[:3])}; `anymal lock --update {name}` writes them")
    weights = [file for file in wanted if file.lower().endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"))]
    if weights and entry.convert != "torch_to_safetensors":
        raise AssetError(f"asset {name}: {weights[0]} may hold pickled code and is refused; take safetensors files instead, "
                         "or add `convert: torch_to_safetensors` to its entry")
    parts = cache_folder() / "downloads" / f"hf-{entry.revision}"
    parts.mkdir(parents=True, exist_ok=True)
    present = sum(file.stat().st_size for file in parts.rglob("*") if file.is_file())
    ensure_free(parts, sum(siblings[file].size or 0 for file in wanted) - present, f"asset {name}")
    try:
        snapshot_download(entry.repo, repo_type=entry.repo_type, revision=entry.revision, local_dir=parts, allow_patterns=list(wanted),
                          endpoint=os.environ.get("HF_ENDPOINT"))
    except Exception as error:
        raise_hf(name, entry.repo, entry.revision, error)
    for file in track(wanted, label=f"verify {name}", unit="files"):
        _verify_hf(name, entry, parts, file, siblings[file])
    _place({goal: parts / file for file, goal in wanted.items()}, folder)
    shutil.rmtree(parts)


def _verify_hf(name: str, entry: HfEntry, parts: Path, file: str, sibling: Any) -> None:
    path = parts / file
    expected = sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id
    found = sha256_of(path) if sibling.lfs is not None else git_blob_sha1(path)
    if entry.files is not None and found == expected:
        expected, found = entry.files[file], sha256_of(path)
    if found != expected:
        shutil.rmtree(parts)
        raise AssetError(f"asset {name}: {file} has hash {found}, expected {expected}; it was thrown away, run the same command again, "
                         f"{own_source(name)}")


def hash_hf(name: str, repo: str, repo_type: str, revision: str, siblings: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of files of the hub: large ones as the hub states them, small ones (which it names by SHA-1) downloaded and hashed."""
    from huggingface_hub import hf_hub_download

    hashes = {}
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        for file, sibling in sorted(siblings.items()):
            if sibling.lfs is not None:
                hashes[file] = sibling.lfs.sha256
                continue
            try:
                path = hf_hub_download(repo, file, repo_type=repo_type, revision=revision, local_dir=folder, endpoint=os.environ.get("HF_ENDPOINT"))
            except Exception as error:
                raise_hf(name, repo, revision, error)
            hashes[file] = sha256_of(Path(path))
    return hashes


def _place(files: dict[str, Path], folder: Path) -> None:
    """Move files of the cache to their places in the asset."""
    for goal, path in files.items():
        target = folder / goal
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
