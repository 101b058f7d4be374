"""Inputs and outputs of stages on S3: brought to this machine before the stage, sent there when it succeeded.

A folder on S3 is one that a stage wrote: its files below a prefix, and `manifest.json`, which names each with its SHA-256. The manifest is
sent last, so a folder without one is not whole and is not read. While files are on their way `manifest.json.partial` says which. A file on
S3 is one object; those sent from here have their SHA-256 among their metadata.

On this machine both live below `remote/` in the cache (`anymal.data.asset_folders.cache_folder`), which several nodes that train together share.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anymal import processes
from anymal.data.asset_folders import cache_folder, ensure_free
from anymal.data.lock import is_safe
from anymal.data.manifest import MANIFEST, fingerprint, sha256_of, verify_manifest
from anymal.data.s3 import ATTEMPTS, PART, SCHEME, Found, S3Error, Storage, in_parallel, split
from anymal.data.sources.transfer import bring, transfer
from anymal.errors import AnymalError, ConfigError, DataError
from anymal.progress import track

Place = Path | str
"""A path, or an `s3://BUCKET/PREFIX` address."""

UNDER_WAY = f"{MANIFEST}.partial"
MAX_MANIFEST_BYTES = 2**26
ADDRESS = re.compile(r"s3://[A-Za-z0-9._\-]+/(?:[^/\0\\]+/)*[^/\0\\]+/?")


def address(option: str, uri: str) -> str:
    """An address in its one form, without a slash at the end.

    Args:
        option: which setting it comes from, as the beginning of errors.

    Raises:
        ConfigError: if it names no place inside a bucket.
    """
    if ADDRESS.fullmatch(uri) is None or not is_safe(uri.removeprefix(SCHEME).rstrip("/")):
        raise ConfigError(f"{option} {uri}: is no place on S3; write s3://BUCKET/PREFIX, without empty parts, '.' and '..'")
    return uri.rstrip("/")


# --- inputs


@dataclass(frozen=True)
class Whole:
    """A folder on S3 as its manifest has it."""

    uri: str
    manifest: bytes
    files: dict[str, tuple[str, int]]
    """Relative name -> SHA-256, size in bytes."""

    @property
    def key(self) -> str:
        """SHA-256 of the manifest, which names the content."""
        return hashlib.sha256(self.manifest).hexdigest()


def look(option: str, uri: str, storage: Storage) -> Whole | Found:
    """What is at an address: a folder, by its manifest, or an object.

    Raises:
        DataError: if there is nothing, or a folder that is not whole; the sentence begins with `option`.
        S3Error: if the server cannot be asked.
    """
    content = storage.read(f"{uri}/{MANIFEST}", MAX_MANIFEST_BYTES)
    if content is not None:
        return Whole(uri, content, _files(option, f"{uri}/{MANIFEST}", content))
    found = storage.head(uri)
    if found is not None:
        return found
    listed = storage.listing(f"{uri}/", limit=10)
    if not listed:
        raise DataError(f"{option} {uri}: there is no such object or folder; run the stage that makes it, or correct the address")
    if storage.head(f"{uri}/{UNDER_WAY}") is not None:
        raise DataError(f"{option} {uri}: its upload is under way or broke off; wait, or run the stage that makes it again")
    raise DataError(f"{option} {uri}: has no {MANIFEST}, so it is not known whether it is whole; run the stage that makes it again, or write one "
                    "with anymal.data.manifest.write_manifest and upload it last")


def _files(option: str, uri: str, content: bytes) -> dict[str, tuple[str, int]]:
    """The files that a manifest names.

    Raises:
        DataError: if it is none, or a name leaves the folder.
    """
    try:
        files = {str(name): (str(entry["sha256"]), int(entry["size"])) for name, entry in json.loads(content)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{option} {uri}: is no manifest; run the stage that makes this folder again") from error
    for name, (sha256, size) in files.items():
        if not is_safe(name) or name == MANIFEST or size < 0 or re.fullmatch(r"[0-9a-f]{64}", sha256) is None:
            raise DataError(f"{option} {uri}: its entry {name[:80]!r} is not that of a file in this folder; run the stage that makes it again")
    return files


def differences(found: Whole, storage: Storage) -> list[str]:
    """What tells a folder on S3 from its manifest, without fetching it: names, sizes, and the SHA-256 that objects sent from here have."""
    present = storage.listing(f"{found.uri}/")
    missing = sorted(found.files.keys() - present.keys())
    there = sorted(found.files.keys() & present.keys())
    heads = in_parallel(lambda name: storage.head(f"{found.uri}/{name}"), there)
    changed = [name for name, head in zip(there, heads, strict=True)
               if head is None or head.size != found.files[name][1] or head.sha256 not in (None, found.files[name][0])]
    return [f"missing {name}" for name in missing] + [f"changed {name}" for name in changed]


def fetch(option: str, uri: str, *, storage: Storage | None = None, thorough: bool = True) -> Path:
    """A copy of a folder or file on S3, verified. What is in the cache with the right SHA-256 is not fetched again.

    Args:
        option: the setting that names it, as the beginning of errors: `encode: --shards`.
        thorough: hash what is in the cache already; otherwise its names and sizes are compared.

    Raises:
        AnymalError: a sentence; what has arrived so far is kept, and the same call goes on from there.
    """
    from filelock import FileLock

    uri = address(option, uri)
    with _named(option):
        storage = storage or Storage()
        found = look(option, uri, storage)
        key = found.key if isinstance(found, Whole) else found.sha256 or hashlib.sha256(f"{uri}\0{found.etag}\0{found.size}".encode()).hexdigest()
        final = _folder("remote", key) / uri.rpartition("/")[2]
        partial = final.with_name(f".{final.name}.partial")
        with FileLock(_folder("locks") / f"{key}.remote.lock"):
            if isinstance(found, Whole):
                if not _is_whole(final, found, thorough):
                    if final.exists():  # what is still right of it is kept
                        shutil.rmtree(partial, ignore_errors=True)
                        final.replace(partial)
                    _fetch_folder(option, found, partial, storage)
                    partial.replace(final)
            elif not _is_object(final, found, thorough):
                final.unlink(missing_ok=True)
                ensure_free(final.parent, found.size, f"{option} {uri}")
                _fetch_object(option, uri, found, partial, storage)
                partial.replace(final)
    return final


@contextmanager
def _named(option: str) -> Iterator[None]:
    """Say of which setting S3 speaks."""
    try:
        yield
    except S3Error as error:
        raise DataError(f"{option} {error}") from error


def _folder(*parts: str) -> Path:
    folder = cache_folder().joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the cache folder {folder} cannot be written ({error.strerror}); set ANYMAL_CACHE to a folder that can be") from error
    return folder


def _is_whole(folder: Path, found: Whole, thorough: bool) -> bool:
    if not (folder / MANIFEST).is_file() or (folder / MANIFEST).read_bytes() != found.manifest:
        return False
    if thorough:
        with suppress(DataError):
            verify_manifest(folder)
            return True
        return False
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, (_, size) in found.files.items())


def _is_object(path: Path, found: Found, thorough: bool) -> bool:
    return path.is_file() and path.stat().st_size == found.size and (not thorough or found.sha256 in (None, sha256_of(path)))


def _fetch_folder(option: str, found: Whole, partial: Path, storage: Storage) -> None:
    """Bring the files that are not in `partial` with the right SHA-256 yet, drop those that do not belong there, and write the manifest."""
    present = storage.listing(f"{found.uri}/")
    wrong = [name for name, (_, size) in sorted(found.files.items()) if name not in present or present[name].size != size]
    if wrong:
        raise DataError(f"{option} {found.uri}: {len(wrong)} of its {len(found.files)} files are missing or changed, e.g. {wrong[0]}; "
                        "run the stage that makes it again")
    partial.mkdir(exist_ok=True)
    for file in sorted(file for file in partial.rglob("*") if file.is_file()):
        if file.relative_to(partial).as_posix() not in found.files:
            file.unlink()
    kept = {name for name, (sha256, size) in found.files.items()
            if (file := partial / name).is_file() and file.stat().st_size == size and sha256_of(file) == sha256}
    wanted = sorted(found.files.keys() - kept)
    begun = sum((partial / name).stat().st_size for name in wanted if (partial / name).is_file())
    total = sum(found.files[name][1] for name in wanted)
    ensure_free(partial, total - begun, f"{option} {found.uri}")
    bar = track(total=total, label=f"fetch {partial.name.strip('.').removesuffix('.partial')}", unit="B")
    bar.unit_scale = True

    def fetch_one(name: str) -> None:
        file, (sha256, _) = partial / name, found.files[name]
        file.parent.mkdir(parents=True, exist_ok=True)
        came = bring(f"{option} {found.uri}/{name}", file, lambda at: storage.open(f"{found.uri}/{name}", at), sha256=sha256, error=DataError,
                     bar=bar, attempts=ATTEMPTS)
        if came != sha256:
            file.unlink()
            raise DataError(f"{option} {found.uri}/{name}: has SHA-256 {came}, its {MANIFEST} says {sha256}; run the stage that makes it again")

    with bar:
        in_parallel(fetch_one, wanted)
    (partial / MANIFEST).write_bytes(found.manifest)
    _say(f"{found.uri}: {len(wanted)} files fetched, {len(kept)} were here")


def _fetch_object(option: str, uri: str, found: Found, partial: Path, storage: Storage) -> None:
    what = f"{option} {uri}"

    def opener(at: int) -> Any:
        return storage.open(uri, at, etag=found.etag)

    if found.sha256 is None:
        transfer(what, partial, opener, error=DataError, attempts=ATTEMPTS)
        came, size = None, partial.stat().st_size
    else:
        came, size = bring(what, partial, opener, sha256=found.sha256, error=DataError, attempts=ATTEMPTS), partial.stat().st_size
    if (came, size) != (found.sha256, found.size):
        partial.unlink()
        raise DataError(f"{what}: {size} bytes with SHA-256 {came} came, {found.size} with {found.sha256} were announced; upload it again")


# --- outputs


def send(option: str, path: Path, uri: str, *, storage: Storage | None = None) -> None:
    """Send a file, or a folder with a manifest, to an address. Objects that are there with the right SHA-256 are not sent again; of a long file
    that broke off neither are its parts; what an earlier folder at the address had besides is removed.

    Raises:
        AnymalError: a sentence; the same call goes on from there.
    """
    uri = address(option, uri)
    with _named(option):
        storage = storage or Storage()
        if path.is_dir():
            _send_folder(option, path, uri, storage)
        else:
            _send_file(path, uri, storage)


def check_target(option: str, uri: str, storage: Storage) -> None:
    """See before the work whether an output can be sent to an address: it may be written, and what is there was written by a stage.

    Raises:
        ConfigError: if the address holds objects that no stage wrote.
        DataError: if the server cannot be reached or refuses.
    """
    uri = address(option, uri)
    with _named(option):
        if storage.listing(f"{uri}/", limit=1):  # first, for some servers make a bucket of any name that is written to
            _earlier(option, uri, storage)
        storage.check_writable(uri)


def _earlier(option: str, uri: str, storage: Storage) -> tuple[bytes | None, dict[str, str], set[str]]:
    """Of a prefix that holds objects: its manifest, the SHA-256 of files on their way, and the names of all that a stage put there."""
    whole = storage.read(f"{uri}/{MANIFEST}", MAX_MANIFEST_BYTES)
    partial = storage.read(f"{uri}/{UNDER_WAY}", 2 * MAX_MANIFEST_BYTES)
    if whole is None and partial is None:
        raise ConfigError(f"{option} {uri}: holds objects that no stage wrote (there is no {MANIFEST}); remove them or name another address")
    under_way: dict[str, str] = {}
    names: set[str] = set()
    if whole is not None:
        names |= _files(option, f"{uri}/{MANIFEST}", whole).keys()
    if partial is not None:
        try:
            document = json.loads(partial)
            under_way = {str(name): str(sha256) for name, sha256 in document["files"].items()}
            names |= {str(name) for name in document["replaces"]}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{option} {uri}/{UNDER_WAY}: is no record of an upload; remove it") from error
    names |= under_way.keys()
    return whole, under_way, {name for name in names if is_safe(name)}


def _send_folder(option: str, folder: Path, uri: str, storage: Storage) -> None:
    files = verify_manifest(folder)
    manifest = (folder / MANIFEST).read_bytes()
    there = storage.listing(f"{uri}/")
    before, under_way, names = _earlier(option, uri, storage) if there else (None, {}, set())
    stale = sorted((names - files.keys()) & there.keys())
    if before != manifest:
        record = json.dumps({"files": files, "replaces": stale}, sort_keys=True).encode()
        storage.put(f"{uri}/{UNDER_WAY}", record)
        if before is not None:
            storage.delete(f"{uri}/{MANIFEST}")
    sizes = {name: (folder / name).stat().st_size for name in files}
    begun = _uploads_of(uri, {name for name, sha256 in under_way.items() if files.get(name) == sha256 and sizes[name] > PART}, storage)
    candidates = [name for name in sorted(files) if name in there and there[name].size == sizes[name]]
    heads = in_parallel(lambda name: storage.head(f"{uri}/{name}"), candidates)
    kept = {name for name, found in zip(candidates, heads, strict=True) if found is not None and found.sha256 == files[name]}
    wanted = [name for name in sorted(files) if name not in kept]
    bar = track(total=sum(sizes[name] for name in wanted), label=f"send {folder.name}", unit="B")
    bar.unit_scale = True

    def send_one(name: str) -> None:
        storage.send(folder / name, f"{uri}/{name}", files[name], upload=begun.get(name), parallel=sizes[name] > PART, bar=bar)

    with bar:
        in_parallel(send_one, [name for name in wanted if sizes[name] <= PART])
        for name in wanted:  # one after the other, several parts at a time
            if sizes[name] > PART:
                send_one(name)
    if before != manifest:
        storage.put(f"{uri}/{MANIFEST}", manifest)
    in_parallel(lambda name: storage.delete(f"{uri}/{name}"), stale)
    storage.delete(f"{uri}/{UNDER_WAY}")
    _say(f"{uri}: {len(wanted)} files sent, {len(kept)} were there, {len(stale)} of an earlier folder removed")


def _uploads_of(uri: str, wanted: set[str], storage: Storage) -> dict[str, str]:
    """Multipart uploads to go on with, of the files `wanted`: name -> upload. All others at or below the address broke off and are dropped."""
    prefix = f"{split(uri)[1]}/"
    kept = {}
    for key, uploads in storage.uploads(uri).items():
        name = key.removeprefix(prefix)
        if key.startswith(prefix) or key == split(uri)[1]:
            if key.startswith(prefix) and name in wanted:
                kept[name] = uploads.pop()
            for upload in uploads:
                storage.abort(uri, key, upload)
    return kept


def _send_file(path: Path, uri: str, storage: Storage) -> None:
    sha256, size = sha256_of(path), path.stat().st_size
    found = storage.head(uri)
    same = found is not None and (found.size, found.sha256) == (size, sha256)
    if not same:
        _uploads_of(uri, set(), storage)
        storage.send(path, uri, sha256)
    _say(f"{uri}: {'was there' if same else 'sent'}")


def _say(text: str) -> None:
    if processes.is_main():
        print(f"anymal: {text}", file=sys.stderr)


# --- a stage's ports


class Outputs:
    """Those outputs of one run of a stage that belong on S3: where they are made on this machine, and the way there."""

    def __init__(self, stage: str, uris: Mapping[str, str], storage: Storage) -> None:
        self._stage, self._storage = stage, storage
        self._uris = {port: address(_option(stage, port), uri) for port, uri in uris.items()}
        self.paths = {port: _folder("remote", "outputs", hashlib.sha256(uri.encode()).hexdigest()[:24]) / uri.rpartition("/")[2]
                      for port, uri in self._uris.items()}

    def check(self) -> None:
        """See before the work whether they can be sent.

        Raises:
            AnymalError: for each that cannot, a line.
        """
        problems = []
        for port, uri in self._uris.items():
            try:
                check_target(_option(self._stage, port), uri, self._storage)
            except AnymalError as error:
                problems.append(str(error))
        if problems:
            raise DataError("\n".join(problems))

    def made(self, state: str, targets: Mapping[str, Path]) -> bool:
        """Whether an earlier run with the same knobs and inputs made all outputs (`targets`, local ones among them) and could not send them."""
        try:
            note = json.loads(self._note().read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(note == {"state": state, "outputs": {port: fingerprint(path) if path.exists() else None for port, path in targets.items()}})

    def keep(self, state: str, targets: Mapping[str, Path]) -> None:
        """Note that all outputs are made, so that they need not be made again if they cannot be sent now."""
        note = json.dumps({"state": state, "outputs": {port: fingerprint(path) for port, path in targets.items()}})
        self._note().write_text(note, encoding="utf-8")

    def send(self) -> None:
        """Send all.

        Raises:
            AnymalError: saying where what was made is kept, and that the same command sends it.
        """
        for port, path in self.paths.items():
            try:
                send(_option(self._stage, port), path, self._uris[port], storage=self._storage)
            except AnymalError as error:
                raise type(error)(f"{error}; the stage itself succeeded and its outputs are kept in {path.parent}: "
                                  "the same command sends them without running it again") from error

    def clear(self) -> None:
        """Drop what was sent, but for folders: the next stage on this machine finds them in the cache."""
        self._note().unlink(missing_ok=True)
        for path in self.paths.values():
            if path.is_dir():
                _adopt(path)
            else:
                path.unlink()

    def _note(self) -> Path:
        first = self.paths[min(self.paths)]
        return first.with_name(f".{first.name}.made")


def _adopt(folder: Path) -> None:
    """Move a folder to where `fetch` looks for it."""
    from filelock import FileLock

    key = sha256_of(folder / MANIFEST)
    final = _folder("remote", key) / folder.name
    with FileLock(_folder("locks") / f"{key}.remote.lock"):
        if final.exists():
            shutil.rmtree(folder)
        else:
            folder.replace(final)


def _option(stage: str, port: str) -> str:
    return f"{stage}: --{port.replace('_', '-')}"


@contextmanager
def local_ports(stage: str, inputs: Mapping[str, Place | tuple[Place, ...]], outputs: Mapping[str, Place],
                ) -> Iterator[tuple[dict[str, Any], Outputs | None]]:
    """Paths for all ports of a stage: inputs on S3 are fetched, outputs that belong there get a place on this machine for as long as this lasts.

    Raises:
        ConfigError: if an address is none, an output's holds another port's, or another process works on the same output.
        AnymalError: if an input cannot be had, or an output could not be sent later.
    """
    places = [(port, place) for port, value in [*inputs.items(), *outputs.items()] for place in (value if isinstance(value, tuple) else (value,))]
    uris = [(port, address(_option(stage, port), place)) for port, place in places if isinstance(place, str)]
    for port, place in outputs.items():
        if isinstance(place, str):
            own = address(_option(stage, port), place)
            for other, uri in uris:
                if (other, uri) != (port, own) and f"{uri}/".startswith(f"{own}/"):
                    raise ConfigError(f"{_option(stage, port)} {own}: would replace {other} ({uri}); name a place of its own for each output")
    with _named(_option(stage, uris[0][0])):
        storage = Storage()
    remote = {port: place for port, place in outputs.items() if isinstance(place, str)}
    sending = Outputs(stage, remote, storage) if remote else None
    with ExitStack() as stack:
        if sending is not None and processes.is_main():
            _reserve(stack, stage, sending.paths)
            sending.check()
        main = processes.is_main()

        def path_of(port: str, place: Place) -> Path:
            return place if isinstance(place, Path) else fetch(_option(stage, port), place, storage=storage, thorough=main)

        fetched = {port: tuple(path_of(port, place) for place in value) if isinstance(value, tuple) else path_of(port, value)
                   for port, value in inputs.items()}
        paths = {port: place if isinstance(place, Path) else sending.paths[port] for port, place in outputs.items()}  # type: ignore[union-attr]
        yield {**fetched, **paths}, sending


def _reserve(stack: ExitStack, stage: str, paths: Mapping[str, Path]) -> None:
    """Keep other processes of this machine from making the same outputs."""
    from filelock import FileLock, Timeout

    for port, path in paths.items():
        try:
            stack.enter_context(FileLock(_folder("locks") / f"{path.parent.name}.output.lock", timeout=0))
        except Timeout as error:
            raise ConfigError(f"{_option(stage, port)}: another process on this machine works on the same output; wait for it to end") from error
