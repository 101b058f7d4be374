"""Packages of the distribution that apt is set up to use, fetched without root."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from anymal.data.asset_folders import cache_folder, ensure_free
from anymal.data.lock import AptEntry
from anymal.data.sources.tools import run
from anymal.data.sources.transfer import adopt, own_source, wrong_hash
from anymal.errors import AssetError
from anymal.progress import track


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
                updated = run(["apt-get", "update", "-qq", "--error-on=any", *options])
                if updated.returncode != 0:
                    raise AssetError(f"asset {name}: the system's package lists do not know {wanted}, and `apt-get update` failed; "
                                     f"check the network and apt's sources, {own_source(name)}")
            result = run(["apt-get", "download", "-qq", "--print-uris", *options, wanted])
            match = re.search(r"^'[^']*' (\S+) (\d+)(?: SHA256:([0-9a-f]{64}))?", result.stdout, re.MULTILINE)
            if result.returncode == 0 and match is not None:
                return options, match[1], int(match[2]), match[3] or ""
    raise AssetError(f"asset {name}: apt's sources have no package {wanted}; correct its entry of the lock (without `version`, "
                     f"`anymal lock --update {name}` takes the newest), {own_source(name)}")


def fetch_apt(name: str, entry: AptEntry) -> Path:
    """Fetch a package into the cache; of the signed index the SHA-256 must be the lock's as well."""
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
