"""Pin entries of the asset lock: fill in versions, revisions and SHA-256 from where their assets are now."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote

import click

PINS = ("sha256", "files", "manifest_sha256")


@click.command("lock", short_help="Pin entries of the asset lock.")
@click.argument("names", nargs=-1, required=True)
@click.option("--lock", "path", type=click.Path(path_type=Path), default=Path("assets.lock.yaml"), show_default=True, help="The lock file.")
@click.option("--update", is_flag=True, help="Replace the pins that an entry has; without it they are kept and checked for completeness.")
def command(names: tuple[str, ...], path: Path, update: bool) -> None:
    """Pin the entries NAMES of the asset lock: versions, revisions and SHA-256 as they are at their sources now.

    Write an entry by hand first (kind, package or repo or url or path, licence, take). A version or revision that is written there is kept,
    a missing one becomes the newest. What is found is trusted on this first use; every later `anymal ingest` insists on it.
    """
    from ruamel.yaml import YAML

    from anymal.config import read_document
    from anymal.data.assets import cache_folder, parse_entry, unknown_name
    from anymal.errors import ConfigError

    read_document(path)  # one sentence for a file that is missing, no mapping, or has duplicate keys
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 150
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(path.read_text(encoding="utf-8"))
    for part in ("assets", "downloads", "locks"):
        (cache_folder() / part).mkdir(parents=True, exist_ok=True)
    for name in names:
        if name not in document:
            raise unknown_name(name, document, str(path))
        entry = document[name]
        if not isinstance(entry, dict) or entry.get("kind") not in RESOLVERS:
            raise ConfigError(f"{path}: {name}.kind: must be one of {', '.join(RESOLVERS)}")
        for field in REQUIRED[entry["kind"]]:
            if not isinstance(entry.get(field), str):
                raise ConfigError(f"{path}: {name}.{field}: missing; `anymal lock` fills in versions, revisions and SHA-256, not where an asset is")
        if not update and any(pin in entry for pin in PINS) and "version" not in _missing(entry):
            parse_entry(name, entry, path.name)
            click.echo(f"{name}: already pinned (--update pins it anew)")
            continue
        for pin in PINS:
            entry.pop(pin, None)
        found = RESOLVERS[entry["kind"]](name, entry)
        parse_entry(name, {**entry, **found}, path.name)
        entry.update(found)
        click.echo(f"{name}: {', '.join(f'{key} {value if isinstance(value, str) else len(value)}' for key, value in found.items())}")
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("w", encoding="utf-8") as stream:
        yaml.dump(document, stream)
    temporary.replace(path)


def _missing(entry: dict[str, Any]) -> set[str]:
    return {"version"} if entry["kind"] in ("pip", "apt") and "version" not in entry else set()


def _pip(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    from anymal.data.fetch import fetch_unpinned, open_any, query_pip

    report = query_pip(name, entry["package"], entry.get("version"))
    info = report["download_info"]
    sha256 = info.get("archive_info", {}).get("hashes", {}).get("sha256")
    return {"version": report["metadata"]["version"], "sha256": sha256 or fetch_unpinned(name, lambda at: open_any(name, info["url"], at))}


def _apt(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    from anymal.data.fetch import download_apt, query_apt
    from anymal.data.manifest import sha256_of

    options, file, size, sha256 = query_apt(name, entry["package"], entry.get("version"))
    version = unquote(file.split("_")[1])  # NAME_VERSION_ARCHITECTURE.deb
    if not sha256:
        downloaded = download_apt(name, f"{entry['package']}={version}", options, size)
        sha256 = sha256_of(downloaded)
        downloaded.unlink()
    return {"version": version, "sha256": sha256}


def _hf(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    from anymal.data.archives import destination
    from anymal.data.assets import Take
    from anymal.data.fetch import hash_hf, query_hf
    from anymal.errors import ConfigError

    kind = entry.get("repo_type", "model")
    revision, siblings = query_hf(name, entry["repo"], kind, entry.get("revision"))
    rules = [rule if isinstance(rule, str) else Take.model_validate(dict(rule)) for rule in entry.get("take", [])]
    wanted = {file: sibling for file, sibling in siblings.items() if destination(file, rules) is not None}
    if not wanted:
        raise ConfigError(f"{name}.take: names no file of {entry['repo']}; it has {', '.join(sorted(siblings)[:20])}")
    return {"revision": revision, "files": hash_hf(name, entry["repo"], kind, revision, wanted)}


def _s3(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    from anymal.data.fetch import fetch_unpinned, open_s3, pin_prefix

    url = entry["url"]
    return pin_prefix(name, url) if url.endswith("/") else {"sha256": fetch_unpinned(name, lambda at: open_s3(name, url, at))}


def _file(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    from anymal.data.assets import local_sha256
    from anymal.errors import ConfigError

    path = Path(entry["path"])
    if not path.exists():
        raise ConfigError(f"{name}.path = {path}: no such file or folder; correct it")
    return {"sha256": local_sha256(path)}


RESOLVERS = {"pip": _pip, "apt": _apt, "hf": _hf, "s3": _s3, "file": _file}
REQUIRED = {"pip": ["package"], "apt": ["package"], "hf": ["repo"], "s3": ["url"], "file": ["path"]}
