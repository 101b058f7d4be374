"""Fetching of assets from where their entries say: pip, apt, the Hugging Face hub, S3 and local files; resumed and verified.

Addresses of package indexes are resolved by the user's own pip and apt settings and never logged, stored or shown.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

from anymal.data.archives import destination, unpack
from anymal.data.assets import AnyEntry, AptEntry, FileEntry, HfEntry, PipEntry, S3Entry, cache_folder, ensure_free, is_safe, local_sha256
from anymal.data.manifest import MANIFEST, sha256_of
from anymal.errors import AssetError
from anymal.progress import track

BLOCK = 2**20
ATTEMPTS = 5
THREADS = 8

Opened = tuple[int, int | None, Iterator[bytes]]
"""Offset at which the server really starts, size of the whole in bytes if it says so, and the blocks from there."""


class _Broken(Exception):
    """The transfer stopped early; going on from where it stopped may help. The message has no address in it."""


def own_source(name: str) -> str:
    """The remedy that always works, as the end of a sentence."""
    return f"or point ingest.sources.{name} at a folder or s3:// prefix that holds its files (a copy of data/assets/{name} will do)"


def collect(name: str, entry: AnyEntry, folder: Path, source: str | None = None) -> None:
    """Fetch an asset's files into the empty `folder`, verified, unpacked and placed as `take` says.

    Args:
        source: where to get the archive instead of the entry's own place; see `anymal.data.assets.provide`.

    Raises:
        AssetError: one sentence with the remedy.
    """
    match entry:
        case HfEntry():
            _collect_hf(name, entry, folder)
        case S3Entry() if entry.url.endswith("/"):
            _collect_prefix(name, entry, folder)
        case FileEntry() if Path(source or entry.path).is_dir():
            _collect_folder(name, entry, folder)
        case _:
            archive = fetch_archive(name, entry, source)
            if entry.take:
                unpack(name, archive, entry.take, folder)
            else:
                origin = entry.url if isinstance(entry, S3Entry) else entry.path if isinstance(entry, FileEntry) else archive.name
                ensure_free(folder, archive.stat().st_size, f"asset {name}")
                shutil.copyfile(archive, folder / origin.rsplit("/", 1)[-1])


def redirect(name: str, entry: AnyEntry, source: str) -> AnyEntry:
    """The entry to use when the user points at a place of their own: the same for a copy of the archive, else one for their files."""
    if source.startswith("s3://"):
        if not source.endswith("/"):
            return _same_archive(name, entry, source)
        return S3Entry(kind="s3", url=source, licence=entry.licence, **pin_prefix(name, source))
    if source.startswith(("https://", "http://")):
        return _same_archive(name, entry, source)
    path = Path(source)
    if path.is_dir():
        return FileEntry(kind="file", path=source, sha256=local_sha256(path), licence=entry.licence)
    if path.is_file():
        return _same_archive(name, entry, source)
    raise AssetError(f"ingest.sources.{name} = {source}: no such file or folder; give a folder, an archive, or an s3:// prefix that ends in /")


def _same_archive(name: str, entry: AnyEntry, source: str) -> AnyEntry:
    if isinstance(entry, HfEntry) or getattr(entry, "sha256", None) is None:
        raise AssetError(f"ingest.sources.{name} = {source}: the lock does not name one archive for this asset; "
                         "give a folder or an s3:// prefix that ends in / with its files")
    return entry


def fetch_archive(name: str, entry: AnyEntry, source: str | None) -> Path:
    """The one file that an entry names, in the cache, with the SHA-256 of the entry."""
    assert not isinstance(entry, HfEntry) and entry.sha256 is not None
    if source is None and isinstance(entry, PipEntry | AptEntry):
        cached = cache_folder() / "downloads" / entry.sha256
        if cached.is_file():
            return download(name, entry.sha256, lambda at: open_file(name, cached, at))
        return _fetch_pip(name, entry) if isinstance(entry, PipEntry) else _fetch_apt(name, entry)
    place = source if source is not None else entry.url if isinstance(entry, S3Entry) else entry.path if isinstance(entry, FileEntry) else None
    return download(name, entry.sha256, lambda at: open_any(name, str(place), at))


# --- one resumable, verified download -------------------------------------------------------------------------------------------


def download(name: str, sha256: str, opener: Callable[[int], Opened], *, bar: Any = None) -> Path:
    """Bring one file into the cache, named by its SHA-256. A broken transfer goes on where it stopped, also in a later process.

    Raises:
        AssetError: if it cannot be had, or is another file than the lock names.
    """
    from filelock import FileLock

    folder = cache_folder() / "downloads"
    target, partial = folder / sha256, folder / f"{sha256}.partial"
    with FileLock(cache_folder() / "locks" / f"{sha256}.download.lock"):
        if target.is_file():
            if sha256_of(target) == sha256:
                return target
            target.unlink()
        resumed = partial.is_file() and partial.stat().st_size > 0
        _transfer(name, partial, opener, bar)
        found = sha256_of(partial)
        if found != sha256 and resumed:
            # What an earlier process left may belong to another file: once from the beginning before it counts.
            partial.unlink()
            _transfer(name, partial, opener, bar)
            found = sha256_of(partial)
        if found != sha256:
            partial.unlink()
            raise wrong_hash(name, sha256, found)
        partial.replace(target)
    return target


def adopt(name: str, sha256: str, file: Path) -> Path:
    """Move a file that pip or apt brought into the cache, verified."""
    found = sha256_of(file)
    if found != sha256:
        file.unlink()
        raise wrong_hash(name, sha256, found)
    target = cache_folder() / "downloads" / sha256
    file.replace(target)
    return target


def fetch_unpinned(name: str, opener: Callable[[int], Opened], bar: Any = None) -> str:
    """Bring a file of unknown SHA-256 into the cache (trust on first use) and say which it has."""
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        partial = Path(folder) / "object"
        _transfer(name, partial, opener, bar)
        sha256 = sha256_of(partial)
        partial.replace(cache_folder() / "downloads" / sha256)
    return sha256


def wrong_hash(name: str, expected: str, found: str) -> AssetError:
    """The error for an asset that is not the one the lock names."""
    return AssetError(f"asset {name}: what came has SHA-256 {found}, the lock names {expected}; it was thrown away: find out why it changed "
                      f"before you accept it with `anymal lock --update {name}`, {own_source(name)}")


def _transfer(name: str, partial: Path, opener: Callable[[int], Opened], outer: Any) -> None:
    failures = 0
    while True:
        start = partial.stat().st_size if partial.is_file() else 0
        try:
            offset, total, blocks = opener(start)
            with partial.open("r+b" if start else "wb") as output:
                output.seek(offset)
                output.truncate()
                if total is not None:
                    ensure_free(partial.parent, total - offset, f"asset {name}")
                bar = outer if outer is not None else track(total=total, label=f"fetch {name}", unit="B")
                bar.unit_scale = True
                if outer is None:
                    bar.update(offset)
                try:
                    for block in blocks:
                        output.write(block)
                        bar.update(len(block))
                finally:
                    if outer is None:
                        bar.close()
            size = partial.stat().st_size
            if total is None or size >= total:
                return
            raise _Broken(f"it stopped after {size} of {total} bytes")
        except _Broken as error:
            # Progress starts the count again: a line that breaks every minute still gets 160 MB through.
            failures = 0 if partial.is_file() and partial.stat().st_size > start else failures + 1
            if failures >= ATTEMPTS:
                raise AssetError(f"asset {name}: the download failed {ATTEMPTS} times ({error}); check the network and run the same command again, "
                                 f"it goes on from there, {own_source(name)}") from error
            time.sleep(min(8.0, 0.25 * 2**failures))


def open_any(name: str, place: str, at: int) -> Opened:
    """Open an s3:// object, an http(s) address or a local file at an offset in bytes."""
    if place.startswith("s3://"):
        return open_s3(name, place, at)
    if place.startswith(("https://", "http://")):
        return open_http(name, place, _pip_certificates() if place.startswith("https") else None, at)
    return open_file(name, Path(unquote(urlsplit(place).path) if place.startswith("file:") else place), at)


def open_file(name: str, path: Path, at: int) -> Opened:
    try:
        size = path.stat().st_size
        stream = path.open("rb")
    except OSError as error:
        raise AssetError(f"asset {name}: {path} cannot be read ({error.strerror}); correct the path, {own_source(name)}") from error
    at = min(at, size)
    stream.seek(at)
    return at, size, _blocks(stream)


def _blocks(stream: Any) -> Iterator[bytes]:
    with closing(stream):
        while block := stream.read(BLOCK):
            yield block


class _Refused(AssetError):
    """The server wants something that only pip knows how to give (a password, a proxy, a certificate)."""


def open_http(name: str, url: str, verify: str | None, at: int) -> Opened:
    """Open an http(s) address at an offset."""
    import requests

    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={at}-"} if at else {})
    try:
        response = requests.get(url, headers=headers, stream=True, timeout=(20, 60), verify=verify or True)
    except (requests.exceptions.SSLError, requests.exceptions.ProxyError) as error:
        raise _Refused(f"asset {name}: no trusted connection to its server; check certificates and proxy, {own_source(name)}") from error
    except requests.exceptions.RequestException as error:
        raise _Broken("no connection") from error
    if response.status_code == 416:  # nothing after `at`: all of it is here, or what is here belongs to another file
        response.close()
        match = re.fullmatch(r"bytes \*/(\d+)", response.headers.get("Content-Range", ""))
        return (at, at, iter(())) if match and int(match[1]) == at else open_http(name, url, verify, 0)
    if response.status_code in (401, 403, 407):
        raise _Refused(f"asset {name}: its server answered {response.status_code}; check your access to it, {own_source(name)}")
    if response.status_code == 429 or response.status_code >= 500:
        raise _Broken(f"the server answered {response.status_code}")
    if response.status_code not in (200, 206):
        raise AssetError(f"asset {name}: its server answered {response.status_code}; correct the entry of the lock, {own_source(name)}")
    length = response.headers.get("Content-Length")
    offset = at if response.status_code == 206 else 0
    return offset, None if length is None else offset + int(length), _http_blocks(response)


def _http_blocks(response: Any) -> Iterator[bytes]:
    import requests

    try:
        with closing(response):
            yield from response.iter_content(BLOCK)
    except requests.exceptions.RequestException as error:
        raise _Broken("the connection broke") from error


# --- pip ------------------------------------------------------------------------------------------------------------------------


def _run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"LC_ALL": "C", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return subprocess.run(command, check=False, capture_output=True, text=True, errors="replace", env=environment, **options)


PIP = [sys.executable, "-m", "pip"]
WHEEL = ["--no-deps", "--only-binary", ":all:", "--no-input"]


def query_pip(name: str, package: str, version: str | None) -> dict[str, Any]:
    """What pip would install: `metadata.version`, `download_info.url`, `download_info.archive_info.hashes.sha256`."""
    wanted = package if version is None else f"{package}=={version}"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        result = _run([*PIP, "install", "--dry-run", "--ignore-installed", "--quiet", *WHEEL, "--report", str(report), wanted])
        if result.returncode == 0:
            first: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))["install"][0]
            return first
    raise _pip_error(name, wanted, result.stderr)


def _pip_error(name: str, wanted: str, stderr: str) -> AssetError:
    """One sentence for pip's pages; without the index's address, which they hold."""
    if "No module named pip" in stderr:
        return AssetError(f"asset {name}: this Python has no pip; install it (`make setup` does), {own_source(name)}")
    if re.search(r"No space left", stderr):
        return AssetError(f"asset {name}: the disk is full; free some space, or set TMPDIR to a folder on a larger disk")
    versions = re.search(r"\(from versions: (.*?)\)", stderr)
    if re.search(r"Retrying|[Cc]onnection|Temporary failure|SSLError|timed out|ProxyError", stderr) and (versions is None or versions[1] == "none"):
        return AssetError(f"asset {name}: the package index cannot be reached to find {wanted}; check the network and pip's settings, "
                          f"{own_source(name)}")
    if versions is not None and versions[1] != "none":
        listed = ", ".join(versions[1].split(", ")[-5:])
        return AssetError(f"asset {name}: the package index has no wheel {wanted} for this machine (it has {listed}); "
                          f"correct its entry of the lock, {own_source(name)}")
    if versions is not None:
        return AssetError(f"asset {name}: the package index has no wheel of {wanted}; correct its entry of the lock or pip's index settings, "
                          f"{own_source(name)}")
    return AssetError(f"asset {name}: pip cannot find {wanted}; `pip install --dry-run {wanted}` says why, {own_source(name)}")


@functools.cache
def _pip_certificates() -> str | None:
    """The certificate bundle of pip's settings; requests reads its own environment variables by itself."""
    if chosen := os.environ.get("PIP_CERT"):
        return chosen
    result = _run([*PIP, "config", "get", "global.cert"])
    return result.stdout.strip() or None if result.returncode == 0 else None


def _fetch_pip(name: str, entry: PipEntry) -> Path:
    info = query_pip(name, entry.package, entry.version)["download_info"]
    announced = info.get("archive_info", {}).get("hashes", {}).get("sha256")
    if announced is not None and announced != entry.sha256:
        raise wrong_hash(name, entry.sha256, announced)
    try:
        return download(name, entry.sha256, lambda at: open_any(name, info["url"], at))
    except _Refused:
        # pip itself knows passwords, keyrings, proxies and client certificates; only resuming is lost.
        with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
            wanted = f"{entry.package}=={entry.version}"
            result = _run([*PIP, "download", "--quiet", *WHEEL, "--dest", folder, wanted])
            files = list(Path(folder).iterdir())
            if result.returncode != 0 or len(files) != 1:
                raise _pip_error(name, wanted, result.stderr) from None
            return adopt(name, entry.sha256, files[0])


# --- apt ------------------------------------------------------------------------------------------------------------------------


def _apt_options(private: bool) -> list[str]:
    """Settings that let apt work without root: what it writes goes below the cache; the package lists too, where the system's are old."""
    folder = cache_folder() / "apt"
    (folder / "lists/partial").mkdir(parents=True, exist_ok=True)
    (folder / "cache/archives/partial").mkdir(parents=True, exist_ok=True)
    (folder / "log").mkdir(exist_ok=True)
    settings = {"Dir::Cache": folder / "cache", "Dir::Log": folder / "log", "APT::Sandbox::User": "root", "Debug::NoLocking": "1"}
    if private:
        settings["Dir::State::lists"] = folder / "lists"
    return [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]


def query_apt(name: str, package: str, version: str | None) -> tuple[list[str], str, int, str]:
    """Find a package: apt's options that know it, its file's name, its size in bytes and the SHA-256 of the signed index ("" if older)."""
    from filelock import FileLock

    if shutil.which("apt-get") is None:
        raise AssetError(f"asset {name}: it is a Debian package and this machine has no apt-get; fetch it on a machine that has, and "
                         f"point ingest.sources.{name} at a folder that holds its files (a copy of data/assets/{name} will do)")
    wanted = package if version is None else f"{package}={version}"
    with FileLock(cache_folder() / "locks" / "apt.lock"):
        for private, update in ((False, False), (True, False), (True, True)):
            options = _apt_options(private)
            if update:
                updated = _run(["apt-get", "update", "-qq", "--error-on=any", *options])
                if updated.returncode != 0:
                    raise AssetError(f"asset {name}: the system's package lists do not know {wanted}, and `apt-get update` failed; "
                                     f"check the network and apt's sources, {own_source(name)}")
            result = _run(["apt-get", "download", "-qq", "--print-uris", *options, wanted])
            match = re.search(r"^'[^']*' (\S+) (\d+)(?: SHA256:([0-9a-f]{64}))?", result.stdout, re.MULTILINE)
            if result.returncode == 0 and match is not None:
                return options, match[1], int(match[2]), match[3] or ""
    raise AssetError(f"asset {name}: apt's sources have no package {wanted}; correct its entry of the lock (without `version`, "
                     f"`anymal lock --update {name}` takes the newest), {own_source(name)}")


def _fetch_apt(name: str, entry: AptEntry) -> Path:
    options, _, size, announced = query_apt(name, entry.package, entry.version)
    if announced not in ("", entry.sha256):
        raise wrong_hash(name, entry.sha256, announced)
    return adopt(name, entry.sha256, download_apt(name, f"{entry.package}={entry.version}", options, size))


def _size(folder: Path) -> int:
    """Bytes in a folder whose files apt renames meanwhile."""
    total = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


def download_apt(name: str, wanted: str, options: list[str], size: int) -> Path:
    """Let apt fetch a package; what an interrupted run left is gone on with by apt itself."""
    folder = cache_folder() / "apt" / "packages" / hashlib.sha256(wanted.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    ensure_free(folder, size, f"asset {name}")
    bar = track(total=size, label=f"fetch {name}", unit="B")
    bar.unit_scale = True
    with bar, subprocess.Popen(["apt-get", "download", "-qq", *options, wanted], cwd=folder, env=os.environ | {"LC_ALL": "C"},
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            time.sleep(0.2)
            bar.update(max(0, _size(folder) - bar.n))
        bar.update(max(0, _size(folder) - bar.n))
    files = list(folder.glob("*.deb"))
    if process.returncode != 0 or len(files) != 1:
        raise AssetError(f"asset {name}: apt-get could not download {wanted} (exit status {process.returncode}); check the network and apt's sources "
                         f"and run the same command again, it goes on from there, {own_source(name)}")
    return files[0]


# --- Hugging Face hub -----------------------------------------------------------------------------------------------------------


def query_hf(name: str, repo: str, repo_type: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """The commit of a revision (None: the default branch) and what the hub says of each file (`size`, `blob_id`, `lfs.sha256`)."""
    from huggingface_hub import HfApi

    try:
        info = HfApi(endpoint=os.environ.get("HF_ENDPOINT")).repo_info(repo, repo_type=repo_type, revision=revision, files_metadata=True, timeout=60)
    except Exception as error:
        raise_hf(name, repo, revision, error)
    assert info.sha is not None
    return info.sha, {sibling.rfilename: sibling for sibling in getattr(info, "siblings", None) or []}


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


def _collect_hf(name: str, entry: HfEntry, folder: Path) -> None:
    from huggingface_hub import snapshot_download

    sha, siblings = query_hf(name, entry.repo, entry.repo_type, entry.revision)
    if sha != entry.revision:
        raise AssetError(f"asset {name}: the hub answered with commit {sha} of {entry.repo}, the lock names {entry.revision}; correct HF_ENDPOINT")
    wanted = {file: goal for file in sorted(siblings) if (goal := destination(file, entry.take)) is not None}
    absent = sorted((entry.files or {}).keys() - wanted.keys())
    if absent or not wanted:
        raise AssetError(f"asset {name}: {entry.repo} at {entry.revision} has no {', '.join(absent) or 'file that `take` names'}; "
                         "correct its entry of the lock")
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


# --- S3 -------------------------------------------------------------------------------------------------------------------------


def _client() -> Any:
    """An S3 client; AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, credentials and region come from the environment as always with boto3."""
    import boto3
    from botocore.config import Config

    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    # A session of its own: the default one keeps the first credentials it saw.
    config = Config(max_pool_connections=2 * THREADS, retries={"mode": "standard", "max_attempts": 4})
    return boto3.session.Session().client("s3", region_name=region, config=config)


def _split(url: str) -> tuple[str, str]:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return bucket, key


def _s3_error(name: str, url: str, error: Exception) -> AssetError:
    from botocore import exceptions

    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        text = "no S3 credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a profile)"
    elif isinstance(error, exceptions.ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        known = {"404": "there is no such object", "NoSuchKey": "there is no such object", "NoSuchBucket": "there is no such bucket",
                 "403": "access was denied", "AccessDenied": "access was denied"}
        text = f"{known.get(code, f'S3 answered {code}')}; correct the address, or the credentials in the environment"
    else:
        text = "the S3 server cannot be reached; check the network and AWS_ENDPOINT_URL_S3"
    return AssetError(f"asset {name}: {url}: {text}")


def open_s3(name: str, url: str, at: int, client: Any = None) -> Opened:
    """Open an S3 object at an offset."""
    from botocore import exceptions

    bucket, key = _split(url)
    try:
        answer = (client or _client()).get_object(Bucket=bucket, Key=key, **({"Range": f"bytes={at}-"} if at else {}))
    except exceptions.ClientError as error:
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != 416:
            raise _s3_error(name, url, error) from error
        size = (client or _client()).head_object(Bucket=bucket, Key=key)["ContentLength"]
        return (at, at, iter(())) if size == at else open_s3(name, url, 0, client)
    except exceptions.BotoCoreError as error:
        raise _s3_error(name, url, error) from error
    # A server that ignores the range starts again from 0.
    offset = at if at and str(answer.get("ContentRange", "")).startswith(f"bytes {at}-") else 0
    return offset, offset + answer["ContentLength"], _s3_blocks(answer["Body"])


def _s3_blocks(body: Any) -> Iterator[bytes]:
    from botocore import exceptions

    try:
        with closing(body):
            yield from body.iter_chunks(BLOCK)
    except exceptions.BotoCoreError as error:
        raise _Broken("the connection to S3 broke") from error


def list_prefix(name: str, url: str) -> dict[str, tuple[str, int]]:
    """Objects below a prefix: relative name -> (ETag, size)."""
    from botocore import exceptions

    bucket, prefix = _split(url)
    found: dict[str, tuple[str, int]] = {}
    try:
        for page in _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                if not item["Key"].endswith("/"):
                    found[item["Key"].removeprefix(prefix)] = (item["ETag"].strip('"'), item["Size"])
    except (exceptions.ClientError, exceptions.BotoCoreError) as error:
        raise _s3_error(name, url, error) from error
    if not found:
        raise AssetError(f"asset {name}: {url}: there is no object below this prefix; correct the address")
    return found


def read_s3(name: str, url: str) -> bytes:
    """A small object, whole."""
    try:
        return b"".join(open_s3(name, url, 0)[2])
    except _Broken as error:
        raise AssetError(f"asset {name}: {url}: {error}; check the network and run the same command again") from error


def pin_prefix(name: str, url: str) -> dict[str, Any]:
    """What pins the present content of a prefix: `manifest_sha256` of the manifest.json there, else `files` with each object's SHA-256.

    Objects without a manifest are downloaded to be hashed, once as long as the bucket's listing does not change.
    """
    listing = list_prefix(name, url)
    if MANIFEST in listing:
        return {"manifest_sha256": hashlib.sha256(read_s3(name, f"{url}{MANIFEST}")).hexdigest()}
    note = cache_folder() / "pins" / f"{hashlib.sha256(json.dumps([url, listing], sort_keys=True).encode()).hexdigest()}.json"
    if note.is_file():
        return {"files": json.loads(note.read_text(encoding="utf-8"))}
    client = _client()
    bar = track(total=sum(size for _, size in listing.values()), label=f"hash {name}", unit="B")
    bar.unit_scale = True

    def pin_one(key: str) -> tuple[str, str]:
        return key, fetch_unpinned(name, lambda at: open_s3(name, f"{url}{key}", at, client), bar)

    with bar, ThreadPoolExecutor(THREADS) as pool:
        files = dict(_first_failure(pool.map(pin_one, sorted(listing)), pool))
    note.parent.mkdir(exist_ok=True)
    temporary = note.with_suffix(".partial")
    temporary.write_text(json.dumps(files), encoding="utf-8")
    temporary.replace(note)
    return {"files": files}


def _collect_prefix(name: str, entry: S3Entry, folder: Path) -> None:
    listed = dict(entry.files) if entry.files is not None else _manifest_files(name, entry)
    wanted = {key: goal for key in sorted(listed) if (goal := destination(key, entry.take)) is not None and key not in ("asset.json", MANIFEST)}
    unsafe = [key for key, goal in wanted.items() if not is_safe(key) or not is_safe(goal)]
    if unsafe or not wanted:
        problem = f"the file name {unsafe[0]!r} leaves its folder" if unsafe else "`take` names none of its files"
        raise AssetError(f"asset {name}: {entry.url}: {problem}; correct its entry of the lock")
    present = list_prefix(name, entry.url)
    missing = sorted(wanted.keys() - present.keys())
    if missing:
        raise AssetError(f"asset {name}: {entry.url}: {len(missing)} objects that the lock names are not there, e.g. {missing[0]}; upload them again")
    total = sum(present[key][1] for key in wanted)
    ensure_free(folder, total, f"asset {name}")
    client = _client()
    bar = track(total=total, label=f"fetch {name}", unit="B")
    bar.unit_scale = True

    def fetch_one(key: str) -> tuple[str, Path]:
        return key, download(name, listed[key], lambda at: open_s3(name, f"{entry.url}{key}", at, client), bar=bar)

    with bar, ThreadPoolExecutor(THREADS) as pool:
        fetched = dict(_first_failure(pool.map(fetch_one, wanted), pool))
    for key, goal in wanted.items():
        target = folder / goal
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(fetched[key], target)  # several names may have the same content, so it is linked, not moved
        except OSError:
            shutil.copyfile(fetched[key], target)
    for path in set(fetched.values()):
        path.unlink()


def _first_failure(results: Iterable[Any], pool: ThreadPoolExecutor) -> list[Any]:
    """All results; the first error cancels what has not started, rather than fetching terabytes before it is shown."""
    try:
        return list(results)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _manifest_files(name: str, entry: S3Entry) -> dict[str, str]:
    content = read_s3(name, f"{entry.url}{MANIFEST}")
    found = hashlib.sha256(content).hexdigest()
    if found != entry.manifest_sha256:
        raise wrong_hash(f"{name}, {MANIFEST}", str(entry.manifest_sha256), found)
    try:
        return {key: value["sha256"] for key, value in json.loads(content)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AssetError(f"asset {name}: {entry.url}{MANIFEST} is not a manifest; write one with anymal.data.manifest.write_manifest") from error


# --- local folders --------------------------------------------------------------------------------------------------------------


def _collect_folder(name: str, entry: FileEntry, folder: Path) -> None:
    source = Path(entry.path)
    found = local_sha256(source)
    if found != entry.sha256:
        raise wrong_hash(name, entry.sha256, found)
    files = [file for file in sorted(source.rglob("*")) if file.is_file() and file not in (source / MANIFEST, source / "asset.json")]
    ensure_free(folder, sum(file.stat().st_size for file in files), f"asset {name}")
    for file in track(files, label=f"copy {name}", unit="files"):
        goal = destination(file.relative_to(source).as_posix(), entry.take)
        if goal is not None:
            target = folder / goal
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
