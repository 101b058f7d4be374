"""Unpacking of wheels, zips, tars and Debian packages that nobody has to trust: plain files only, inside the folder, of bounded size."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from anymal.data.asset_folders import ensure_free
from anymal.data.lock import Take, is_safe
from anymal.errors import AssetError
from anymal.progress import track

MAX_RATIO = 200
"""Unpacked bytes per archive byte. Real packages stay below 20; a deflate bomb reaches 1,000."""
MIN_BOUND = 64 * 2**20
BLOCK = 2**20
WILDCARD = re.compile(r"[*?\[]")


def destination(name: str, take: Sequence[str | Take]) -> str | None:
    """Where a file of the source goes in the asset; None if no pattern takes it."""
    if not take:
        return name
    for rule in take:
        pattern = rule if isinstance(rule, str) else rule.pattern
        if not fnmatch.fnmatchcase(name, pattern):
            continue
        if isinstance(rule, str):
            return name
        first = WILDCARD.search(pattern)
        fixed = pattern[: first.start()] if first else pattern
        rest = name[fixed.rfind("/") + 1 :]
        return rest if rule.to == "." else f"{rule.to}/{rest}"
    return None


def unpack(asset: str, archive: Path, take: Sequence[str | Take], folder: Path) -> None:
    """Unpack what `take` names into `folder`.

    Links, devices and the like are left out. Their number is not an error: Debian packages hold many.

    Raises:
        AssetError: for an archive that is damaged, whose members leave the folder or come twice, that unpacks to more than
            `MAX_RATIO` times its size, or that holds nothing that `take` names.
    """
    bound = max(MIN_BOUND, archive.stat().st_size * MAX_RATIO)
    bar = track(total=None, label=f"unpack {asset}", unit="B")
    bar.unit_scale = True
    try:
        with bar:
            count = sum(1 for member in _members(asset, archive) if _write(asset, *member, take=take, folder=folder, bar=bar, bound=bound))
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # a full disk and the like: no property of the archive
        raise AssetError(f"asset {asset}: the archive is damaged or of an unknown kind ({error}); correct its entry of the lock") from error
    if count == 0:
        patterns = [rule if isinstance(rule, str) else rule.pattern for rule in take]
        raise AssetError(f"asset {asset}: no file of the archive matches `take` ({', '.join(patterns)}); correct the patterns in the lock")


def _write(asset: str, name: str, stream: IO[bytes] | None, *, take: Sequence[str | Take], folder: Path, bar: Any, bound: int) -> bool:
    """Write one member, if it is a plain file that is wanted."""
    while name.startswith("./"):
        name = name[2:]
    name = name.rstrip("/")
    if not name or name == ".":
        return False
    if not is_safe(name):
        raise AssetError(f"asset {asset}: the archive's member {name!r} leaves the folder it is unpacked into; the archive is refused")
    goal = destination(name, take)
    if stream is None or goal is None:
        return False
    if not is_safe(goal):
        raise AssetError(f"asset {asset}: `take` puts {name!r} at {goal!r}, outside the asset; correct the patterns in the lock")
    target = folder / goal
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        output = target.open("xb")
    except OSError as error:
        if not isinstance(error, FileExistsError | IsADirectoryError):
            raise
        raise AssetError(f"asset {asset}: two members of the archive go to {goal}; give them different places with `take`") from error
    with output:
        while block := stream.read(BLOCK):
            bar.update(len(block))
            if bar.n > bound:
                raise AssetError(f"asset {asset}: the archive unpacks to more than {bound / 1e6:.0f} MB, which no real package of its size does: "
                                 "a decompression bomb; the archive is refused")
            output.write(block)
    return True


def _members(asset: str, archive: Path) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Name and content of each member in order; no content for what is no plain file."""
    with archive.open("rb") as stream:
        magic = stream.read(8)
    if magic == b"!<arch>\n":
        with _deb_tar(asset, archive) as tar:
            yield from _tar_members(tar)
    elif zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as package:
            ensure_free(archive.parent, sum(info.file_size for info in package.infolist()), f"asset {asset}")
            for info in package.infolist():
                kind = (info.external_attr >> 16) & 0o170000
                if info.is_dir() or kind not in (0, 0o100000):
                    yield info.filename, None
                    continue
                with package.open(info) as member:
                    yield info.filename, member
    else:
        with tarfile.open(archive, "r|*") as tar:
            yield from _tar_members(tar)


def _tar_members(tar: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes] | None]]:
    for info in tar:
        yield info.name, tar.extractfile(info) if info.isreg() else None


@contextmanager
def _deb_tar(asset: str, archive: Path) -> Iterator[tarfile.TarFile]:
    """The file tree of a Debian package, as a tar stream; by dpkg-deb where there is one, else by the standard library."""
    tool = shutil.which("dpkg-deb")
    if tool is None:
        with archive.open("rb") as stream, _ar_data(asset, stream) as tar:
            yield tar
        return
    with subprocess.Popen([tool, "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                yield tar
            while process.stdout.read(BLOCK):
                pass
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise AssetError(f"asset {asset}: dpkg-deb cannot unpack the package (exit status {process.returncode}); it is damaged, "
                         "correct its entry of the lock")


def _ar_data(asset: str, stream: BinaryIO) -> tarfile.TarFile:
    """The data.tar member of a Debian package (an `ar` archive: 8 bytes of magic, then 60-byte headers)."""
    stream.seek(8)
    while len(header := stream.read(60)) == 60:
        member, size = header[:16].decode("ascii", "replace").strip().rstrip("/"), int(header[48:58])
        if member.startswith("data.tar"):
            if member.endswith(".zst"):
                raise AssetError(f"asset {asset}: the package is compressed with zstd, which only dpkg-deb can unpack; install dpkg")
            return tarfile.open(fileobj=stream, mode="r|*")
        stream.seek(size + size % 2, os.SEEK_CUR)
    raise AssetError(f"asset {asset}: the package has no data.tar; it is damaged, correct its entry of the lock")
