"""Assets from real pip, real apt on a local repository, loopback servers and local folders; what is wrong with them is said and leaves nothing."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from anymal.data import assets
from anymal.data.archives import destination
from anymal.data.assets import Take, parse_entry, provide, read_lock, resolve
from anymal.data.available import check_available
from anymal.data.manifest import verify_manifest, write_manifest
from anymal.data.sources.tools import pip_certificates
from anymal.errors import AssetError, ConfigError, DataError

LICENCE = {"id": "MIT"}
PAYLOAD = os.urandom(3 * 2**20)  # does not compress: the wheel is long enough to be cut in the middle

PICTURE = PAYLOAD[:100_000]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ANYMAL_CACHE", str(folder))
    monkeypatch.setattr("time.sleep", lambda _: None)
    pip_certificates.cache_clear()
    return folder


def leftovers(cache: Path) -> list[str]:
    """Finished or half-made assets; none may be there after an error."""
    return [path.name for path in (cache / "assets").glob("*")] + [path.name for path in (cache / "assets").glob(".*")]


# --- servers ----------------------------------------------------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    """Files with ranges; `server.cut` answers stop after that many bytes; `server.password` asks for one."""

    server: Any

    def log_message(self, *_: object) -> None:
        pass

    def fail(self, status: int) -> None:
        self.send_response(status)
        if self.server.error_code:
            self.send_header("X-Error-Code", self.server.error_code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        if server.password and self.headers.get("Authorization") is None:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="x"')
            self.end_headers()
            return
        if urlsplit(self.path).path in server.broken:
            self.fail(server.broken[urlsplit(self.path).path])
            return
        body = server.files.get(urlsplit(self.path).path)
        if body is None:
            self.fail(404)
            return
        start = int(self.headers["Range"][6:].split("-")[0]) if self.headers.get("Range") and server.ranges else 0
        if start >= len(body) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        for key, value in server.headers.get(urlsplit(self.path).path, {}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        part = body[start:]
        if server.cut and len(part) > server.cut:
            self.wfile.write(part[: server.cut])
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
            return
        self.wfile.write(part)


@pytest.fixture
def server() -> Iterator[Any]:
    httpd: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.files, httpd.headers, httpd.requests, httpd.broken = {}, {}, [], {}
    httpd.cut, httpd.password, httpd.ranges, httpd.error_code = 0, False, True, None
    httpd.url = f"http://127.0.0.1:{httpd.server_port}"
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def wheel(files: dict[str, bytes], package: str = "sample") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        meta = {f"{package}-1.0.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode(),
                f"{package}-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
                f"{package}-1.0.dist-info/RECORD": b""}
        for name, data in {**files, **meta}.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return stream.getvalue()


@pytest.fixture
def index(server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package index with the wheel `sample` 1.0, the only one that pip knows."""
    server.wheel = wheel({"sample/weights.dat": PAYLOAD, "sample/notes.txt": b"notes", "sample/code.py": b"pass"})
    path = "/files/sample-1.0-py3-none-any.whl"
    server.files["/simple/sample/"] = f'<a href="{path}#sha256={sha256(server.wheel)}">sample-1.0-py3-none-any.whl</a>'.encode()
    server.headers["/simple/sample/"] = {"Content-Type": "text/html"}
    server.files[path] = server.wheel
    server.wheel_path = path
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return server


def pip_entry(index: Any, **changes: Any) -> Any:
    document = {"kind": "pip", "package": "sample", "version": "1.0", "sha256": sha256(index.wheel), "licence": LICENCE,
                "take": [{"from": "sample/*.dat"}, {"from": "sample/*.txt", "to": "doc"}]}
    return parse_entry("weights", document | changes, "lock")


def from_index(index: Any, **changes: Any) -> Path:
    """The same asset, its archive taken from its address: what needs no pip is tried without starting it."""
    return provide("weights", pip_entry(index, **changes), index.url + index.wheel_path)


# --- the lock ---------------------------------------------------------------------------------------------------------------------------


def test_the_projects_lock_is_valid_and_names_a_licence_for_each_asset() -> None:
    entries = read_lock(Path(__file__).parents[2] / "assets.lock.yaml")
    assert {"smollm2-135m-instruct", "efficientnet-lite0", "tuxpaint-stamps", "openclipart", "llama-2-70b-chat"} <= entries.keys()
    assert all(entry.licence.id for entry in entries.values())


def test_every_wrong_field_of_the_lock_is_named_at_once(tmp_path: Path) -> None:
    lock = tmp_path / "assets.lock.yaml"
    lock.write_text("a: {kind: pip, package: p, version: '1', sha256: abc, licence: {id: MIT}, take: [x]}\n"
                    "b: {kind: tape, licence: {id: MIT}}\n"
                    "c: {kind: hf, repo: o/r, revision: main, licence: {id: MIT}, take: ['*.json'], colour: red}\n"
                    "d: {kind: apt, package: p, sha256: " + "a" * 64 + ", licence: {id: MIT}, take: [x]}\n"
                    "e: {kind: s3, url: s3://bucket/prefix/, sha256: " + "a" * 64 + ", licence: {id: MIT}}\n"
                    "../f: {kind: file, path: x, sha256: " + "a" * 64 + ", licence: {id: MIT}}\n")
    with pytest.raises(ConfigError) as caught:
        read_lock(lock)
    text = str(caught.value)
    for part in ("a.sha256 = abc", "b", "c.revision = main", "c.colour = red", "d.version", "anymal lock d", "a prefix", "'../f'"):
        assert part in text, part


@pytest.mark.parametrize(("name", "rule", "goal"), [
    ("a/b/c.png", "a/*.png", "a/b/c.png"),
    ("a/b/c.png", Take(**{"from": "a/*.png"}), "b/c.png"),
    ("a/b/c.png", Take(**{"from": "a/b/*", "to": "x/y"}), "x/y/c.png"),
    ("a/b/c.png", Take(**{"from": "a/b/c.png"}), "c.png"),
    ("a/b/c.png", Take(**{"from": "a/*.jpg"}), None),
])
def test_take_chooses_files_and_places(name: str, rule: Any, goal: str | None) -> None:
    assert destination(name, [rule]) == goal


# --- pip --------------------------------------------------------------------------------------------------------------------------------


def test_pip_asset_is_verified_unpacked_recorded_and_cached(index: Any, cache: Path) -> None:
    entry = pip_entry(index)
    folder = provide("weights", entry)
    assert (folder / "weights.dat").read_bytes() == PAYLOAD
    assert (folder / "doc/notes.txt").read_bytes() == b"notes"
    assert set(verify_manifest(folder)) == {"weights.dat", "doc/notes.txt", "asset.json"}
    record = json.loads((folder / "asset.json").read_text())
    assert record["name"] == "weights" and record["licence"] == LICENCE and index.url not in json.dumps(record)
    index.requests.clear()
    assert provide("weights", entry) == folder
    assert resolve(record) == folder
    shutil.rmtree(folder)
    provide("weights", entry)
    assert index.requests == []  # the downloaded archive is kept, too
    assert not list((cache / "downloads").glob("*.partial"))


def test_broken_cache_is_made_again(index: Any) -> None:
    folder = from_index(index)
    (folder / "weights.dat").write_bytes(b"changed")
    assert (from_index(index) / "weights.dat").read_bytes() == PAYLOAD


def test_download_resumes_where_the_connection_broke(index: Any, cache: Path) -> None:
    index.cut = 2**20
    assert (from_index(index) / "weights.dat").read_bytes() == PAYLOAD
    offsets = [int(given[6:-1]) for path, given in index.requests if path == index.wheel_path and given and given.endswith("-")]
    assert offsets == [2**20, 2 * 2**20, 3 * 2**20]


def test_download_resumes_in_a_later_process_and_recovers_from_a_foreign_rest(index: Any, cache: Path) -> None:
    for rest in (index.wheel[:1000], b"something else", index.wheel, index.wheel + b"more"):
        shutil.rmtree(cache, ignore_errors=True)
        (cache / "downloads").mkdir(parents=True)
        (cache / "downloads" / f"{sha256(index.wheel)}.partial").write_bytes(rest)
        index.requests.clear()
        assert (from_index(index) / "weights.dat").read_bytes() == PAYLOAD
        assert (index.wheel_path, f"bytes={len(rest)}-") in index.requests
    index.ranges = False
    shutil.rmtree(cache)
    (cache / "downloads").mkdir(parents=True)
    (cache / "downloads" / f"{sha256(index.wheel)}.partial").write_bytes(index.wheel[:1000])
    assert (from_index(index) / "weights.dat").read_bytes() == PAYLOAD


def test_connection_that_never_gets_anywhere(index: Any, cache: Path) -> None:
    index.broken[index.wheel_path] = 503
    with pytest.raises(AssetError, match=r"failed 5 times .*answered 503.*run the same command again.*ingest\.sources\.weights"):
        from_index(index)
    assert leftovers(cache) == []


@pytest.mark.parametrize("announced", [True, False])
def test_wrong_hash_is_refused_and_thrown_away(index: Any, cache: Path, announced: bool) -> None:
    if not announced:
        index.files["/simple/sample/"] = index.files["/simple/sample/"].split(b"#")[0] + b'">sample-1.0-py3-none-any.whl</a>'
    with pytest.raises(AssetError, match=f"{sha256(index.wheel)}.*the lock names {'0' * 64}.*anymal lock --update weights") as caught:
        provide("weights", pip_entry(index, sha256="0" * 64))
    assert index.url not in str(caught.value)
    assert leftovers(cache) == [] and list((cache / "downloads").glob("*")) == []


@pytest.mark.parametrize(("changes", "message"), [
    ({"package": "nosuchpackage"}, "no wheel of nosuchpackage==1.0"),
    ({"version": "9.9"}, r"no wheel sample==9\.9 for this machine \(it has 1\.0\)"),
])
def test_missing_package_and_missing_version(index: Any, cache: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(AssetError, match=message) as caught:
        provide("weights", pip_entry(index, **changes))
    assert "127.0.0.1" not in str(caught.value) and leftovers(cache) == []


def test_no_network(index: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(AssetError, match=r"cannot be reached to find sample==1\.0; check the network.*ingest\.sources\.weights") as caught:
        provide("weights", pip_entry(index))
    assert "127.0.0.1" not in str(caught.value) and leftovers(cache) == []


def test_index_that_wants_a_password_is_left_to_pip(index: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    index.password = True
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/simple".replace("//", "//user:secret@", 1))
    folder = provide("weights", pip_entry(index))
    assert (folder / "weights.dat").read_bytes() == PAYLOAD
    assert b"secret" not in b"".join(file.read_bytes() for file in folder.rglob("*.json"))


def test_index_in_a_local_folder(index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my wheels").mkdir()
    (tmp_path / "my wheels/sample-1.0-py3-none-any.whl").write_bytes(index.wheel)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", (tmp_path / "my wheels").as_uri())
    assert (provide("weights", pip_entry(index)) / "weights.dat").read_bytes() == PAYLOAD
    assert index.requests == []


def test_take_that_names_nothing(index: Any, cache: Path) -> None:
    with pytest.raises(AssetError, match=r"no file of the archive matches `take` \(\*\.gguf\)"):
        from_index(index, take=["*.gguf"])
    assert leftovers(cache) == []


def test_full_disk_is_seen_before_the_download(index: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    with pytest.raises(AssetError, match=r"needs 0\.00 GB in .*free some space, or set ANYMAL_CACHE"):
        from_index(index)
    assert leftovers(cache) == []


def test_cache_that_cannot_be_written(index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "occupied").write_text("a file")
    monkeypatch.setenv("ANYMAL_CACHE", str(tmp_path / "occupied"))
    with pytest.raises(AssetError, match=r"cannot be written.*set ANYMAL_CACHE"):
        from_index(index)


# --- archives nobody has to trust -------------------------------------------------------------------------------------------------------


def archive_entry(path: Path, **changes: Any) -> Any:
    document = {"kind": "file", "path": str(path), "sha256": sha256(path.read_bytes()), "licence": LICENCE, "take": ["*"]}
    return parse_entry("files", document | changes, "lock")


def folder_entry(path: Path, **changes: Any) -> Any:
    return parse_entry("own", {"kind": "file", "path": str(path), "sha256": assets.local_sha256(path), "licence": LICENCE, **changes}, "lock")


def make_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/../../x", "a\\..\\x"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_members_that_leave_the_folder_are_refused(tmp_path: Path, cache: Path, name: str, kind: str) -> None:
    path = tmp_path / "archive"
    if kind == "tar":
        make_tar(path, [(tarfile.TarInfo(name), b"x")])
    else:
        with zipfile.ZipFile(path, "w") as package:
            package.writestr(name, b"x")
    with pytest.raises(AssetError, match="leaves the folder"):
        provide("files", archive_entry(path))
    assert leftovers(cache) == [] and not (tmp_path / "x").exists()


def test_links_and_devices_are_left_out(tmp_path: Path) -> None:
    link, hard, device = tarfile.TarInfo("link"), tarfile.TarInfo("hard"), tarfile.TarInfo("device")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard.type, hard.linkname = tarfile.LNKTYPE, "/etc/passwd"
    device.type = tarfile.CHRTYPE
    path = make_tar(tmp_path / "a.tar.gz", [(link, b""), (hard, b""), (device, b""), (tarfile.TarInfo("./file"), b"x")])
    folder = provide("files", archive_entry(path))
    assert sorted(file.name for file in folder.iterdir()) == ["asset.json", "file", "manifest.json"]


def test_write_through_a_link_is_not_possible(tmp_path: Path) -> None:
    link = tarfile.TarInfo("out")
    link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
    path = make_tar(tmp_path / "a.tar.gz", [(link, b""), (tarfile.TarInfo("out/escaped"), b"x")])
    folder = provide("files", archive_entry(path))
    assert (folder / "out/escaped").is_file() and not (tmp_path / "escaped").exists()


def test_two_members_for_one_place(tmp_path: Path, cache: Path) -> None:
    path = make_tar(tmp_path / "a.tar.gz", [(tarfile.TarInfo("a/x"), b"1"), (tarfile.TarInfo("b/x"), b"2")])
    with pytest.raises(AssetError, match="two members of the archive go to x"):
        provide("files", archive_entry(path, take=[{"from": "a/*"}, {"from": "b/*"}]))
    assert leftovers(cache) == []


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_decompression_bomb(tmp_path: Path, cache: Path, kind: str) -> None:
    path, zeros = tmp_path / "bomb", bytes(80 * 2**20)
    if kind == "tar":
        make_tar(path, [(tarfile.TarInfo("zeros"), zeros)])
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as package:
            package.writestr("zeros", zeros)
    with pytest.raises(AssetError, match="decompression bomb"):
        provide("files", archive_entry(path))
    assert leftovers(cache) == []


@pytest.mark.parametrize("damage", ["cut", "noise"])
@pytest.mark.parametrize("kind", ["tar", "zip", "deb"])
def test_damaged_archive(tmp_path: Path, cache: Path, kind: str, damage: str) -> None:
    path = tmp_path / "archive"
    if kind == "tar":
        make_tar(path, [(tarfile.TarInfo("x"), PAYLOAD)])
    elif kind == "deb":
        path.write_bytes(deb({"usr/x": PAYLOAD[:100_000]}))
    else:
        path.write_bytes(wheel({"x": PAYLOAD}))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else content[:8] + os.urandom(2000))
    with pytest.raises(AssetError, match=r"damaged|no data\.tar"):
        provide("files", archive_entry(path))
    assert leftovers(cache) == []


def test_pickles_are_refused(tmp_path: Path, cache: Path) -> None:
    path = make_tar(tmp_path / "a.tar.gz", [(tarfile.TarInfo("model.pkl"), b"x")])
    with pytest.raises(AssetError, match=r"model\.pkl may hold pickled code.*torch_to_safetensors"):
        provide("files", archive_entry(path))
    assert leftovers(cache) == []


# --- Debian packages --------------------------------------------------------------------------------------------------------------------


def deb(files: dict[str, bytes], package: str = "sample-data") -> bytes:
    def tar_xz(members: dict[str, bytes]) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(f"./{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return lzma.compress(stream.getvalue(), preset=0)

    control = f"Package: {package}\nVersion: 1:1.0-1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n".encode()
    parts = {"debian-binary": b"2.0\n", "control.tar.xz": tar_xz({"control": control}), "data.tar.xz": tar_xz(files)}
    result = b"!<arch>\n"
    for name, data in parts.items():
        result += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    return result


@pytest.mark.parametrize("tool", [True, False])
def test_deb_with_and_without_dpkg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: bool) -> None:
    if tool and shutil.which("dpkg-deb") is None:
        pytest.skip("no dpkg-deb on this machine")
    if not tool:
        monkeypatch.setattr(shutil, "which", lambda _: None)
    path = tmp_path / "sample.deb"
    path.write_bytes(deb({"usr/share/sample/a/x.png": PICTURE, "usr/share/sample/y.ogg": b"sound"}))
    folder = provide("files", archive_entry(path, take=[{"from": "usr/share/sample/*.png"}]))
    assert set(verify_manifest(folder)) == {"a/x.png", "asset.json"} and (folder / "a/x.png").read_bytes() == PICTURE


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, bytes]:
    """A Debian repository in a folder, the only one that apt knows, and which its lists do not know yet."""
    if shutil.which("apt-get") is None:
        pytest.skip("no apt-get on this machine")
    folder = tmp_path / "repository"
    folder.mkdir()
    content = deb({"usr/share/sample/x.png": PICTURE})
    (folder / "sample.deb").write_bytes(content)
    (folder / "Packages").write_text(
        "Package: sample-data\nVersion: 1:1.0-1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"
        f"Filename: ./sample.deb\nSize: {len(content)}\nSHA256: {sha256(content)}\n\n")
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes] copy:{folder} ./\n")
    for name in ("lists", "parts", "etc"):
        (tmp_path / name).mkdir()
    (tmp_path / "apt.conf").write_text(f'Dir::Etc::SourceList "{tmp_path}/sources.list";\nDir::Etc::SourceParts "{tmp_path}/parts";\n'
                                       f'Dir::State::Lists "{tmp_path}/lists";\n')
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    return folder, content


def apt_entry(content: bytes, **changes: Any) -> Any:
    document = {"kind": "apt", "package": "sample-data", "version": "1:1.0-1", "sha256": sha256(content), "licence": LICENCE,
                "take": [{"from": "usr/share/sample/*"}]}
    return parse_entry("pictures", document | changes, "lock")


def test_apt_asset_without_root_and_with_lists_that_do_not_know_it(repository: tuple[Path, bytes], tmp_path: Path, cache: Path) -> None:
    folder = provide("pictures", apt_entry(repository[1]))
    assert (folder / "x.png").read_bytes() == PICTURE
    assert list((tmp_path / "lists").iterdir()) == []  # the system's lists were left alone
    assert [file for file in (cache / "apt/packages").rglob("*") if file.is_file()] == []


@pytest.mark.parametrize(("changes", "message"), [
    ({"package": "nosuch-data"}, "apt's sources have no package nosuch-data=1:1.0-1"),
    ({"version": "2.0"}, "apt's sources have no package sample-data=2.0"),
    ({"sha256": "0" * 64}, f"the lock names {'0' * 64}"),
])
def test_apt_errors(repository: tuple[Path, bytes], cache: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(AssetError, match=message):
        provide("pictures", apt_entry(repository[1], **changes))
    assert leftovers(cache) == []


def test_apt_without_network(repository: tuple[Path, bytes], tmp_path: Path, cache: Path) -> None:
    (tmp_path / "sources.list").write_text("deb [trusted=yes] http://127.0.0.1:9/debian ./\n")
    with pytest.raises(AssetError, match=r"`apt-get update` failed; check the network.*ingest\.sources\.pictures") as caught:
        provide("pictures", apt_entry(repository[1]))
    assert "127.0.0.1" not in str(caught.value) and leftovers(cache) == []


def test_package_that_is_gone_from_the_mirror(repository: tuple[Path, bytes], cache: Path) -> None:
    (repository[0] / "sample.deb").unlink()
    with pytest.raises(AssetError, match=r"could not download sample-data=1:1\.0-1.*run the same command again"):
        provide("pictures", apt_entry(repository[1]))
    assert leftovers(cache) == []


def test_machine_without_apt(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(AssetError, match=r"this machine has no apt-get.*point ingest\.sources\.pictures at a folder"):
        provide("pictures", apt_entry(b""))
    assert leftovers(cache) == []


# --- places of one's own ----------------------------------------------------------------------------------------------------------------


def test_own_folder_takes_the_place_of_a_package(index: Any, tmp_path: Path) -> None:
    own = tmp_path / "mine"
    (own / "sub").mkdir(parents=True)
    (own / "sub/picture.png").write_bytes(b"png")
    folder = provide("weights", pip_entry(index), str(own))
    record = json.loads((folder / "asset.json").read_text())
    assert (folder / "sub/picture.png").read_bytes() == b"png" and record["kind"] == "file" and record["path"] == str(own)
    assert index.requests == [] and resolve(record) == folder
    (own / "sub/picture.png").write_bytes(b"other")
    assert (provide("weights", pip_entry(index), str(own)) / "sub/picture.png").read_bytes() == b"other"


def test_copy_of_a_finished_asset_is_that_asset(index: Any, tmp_path: Path, cache: Path) -> None:
    entry = pip_entry(index)
    copy = tmp_path / "copy"
    shutil.copytree(from_index(index), copy)
    shutil.rmtree(cache)
    index.requests.clear()
    assert json.loads((provide("weights", entry, str(copy)) / "asset.json").read_text())["kind"] == "pip"
    assert index.requests == []
    (copy / "weights.dat").write_bytes(b"changed")
    with pytest.raises(AssetError, match=r"changed weights\.dat"):
        provide("weights", entry, str(copy))


@pytest.mark.parametrize("place", ["file", "http"])
def test_copy_of_the_archive_elsewhere(index: Any, tmp_path: Path, cache: Path, place: str) -> None:
    local = tmp_path / "copy.whl"
    local.write_bytes(index.wheel)
    source = str(local) if place == "file" else index.url + index.wheel_path
    entry = pip_entry(index)
    folder = provide("weights", entry, source)
    assert json.loads((folder / "asset.json").read_text())["kind"] == "pip" and (folder / "weights.dat").read_bytes() == PAYLOAD
    shutil.rmtree(cache)
    local.write_bytes(b"other")
    index.files[index.wheel_path] = b"other"
    with pytest.raises(AssetError, match="SHA-256"):
        provide("weights", entry, source)


def test_place_of_ones_own_that_is_not_there(index: Any, tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"ingest\.sources\.weights = .*nowhere: no such file or folder"):
        provide("weights", pip_entry(index), str(tmp_path / "nowhere"))


def test_local_folder_that_changed_is_refused(tmp_path: Path, cache: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "a.txt").write_text("a")
    entry = folder_entry(own)
    assert (provide("own", entry) / "a.txt").read_text() == "a"
    shutil.rmtree(cache)
    (own / "a.txt").write_text("b")
    with pytest.raises(AssetError, match="the lock names"):
        provide("own", entry)
    write_manifest(own)
    (own / "a.txt").write_text("c")
    with pytest.raises(AssetError, match=r"changed a\.txt"):
        provide("own", entry)
    assert leftovers(cache) == []


def test_resolve_prefers_the_working_directory_and_checks_it(index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = from_index(index)
    record = json.loads((folder / "asset.json").read_text())
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "data/assets/weights")
    assert resolve(record) == tmp_path / "data/assets/weights"
    changed = assets.read_asset(from_index(index, licence={"id": "Apache-2.0"}))
    assert changed is not None and resolve(changed) != tmp_path / "data/assets/weights"  # another entry of the same name
    (tmp_path / "data/assets/weights/weights.dat").write_bytes(b"changed")
    with pytest.raises(AssetError, match=r"changed weights\.dat"):
        resolve(record)
    with pytest.raises(ConfigError, match="has no name"):
        resolve({})


def test_two_processes_at_once_make_one_asset(index: Any, cache: Path, tmp_path: Path) -> None:
    lock = tmp_path / "lock.json"
    lock.write_text(json.dumps(assets.asset_document("weights", pip_entry(index))))
    code = f"import json; from anymal.data.assets import resolve; print(resolve(json.load(open({str(lock)!r}))))"
    command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) for _ in range(2)]
    outputs = {run.communicate()[0].strip() for run in runs}
    assert [run.returncode for run in runs] == [0, 0] and len(outputs) == 1
    assert sum(path == index.wheel_path and given is None for path, given in index.requests) <= 3  # one download, and pip's two looks at the metadata


# --- Hugging Face hub -------------------------------------------------------------------------------------------------------------------

REVISION = "1234567890" * 4


@pytest.fixture
def hub(server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A loopback hub with the repository `org/model` at one commit: one large file (LFS), small ones, and a pickle."""
    server.repo = {"config.json": b"{}", "model.safetensors": PAYLOAD, "pytorch_model.bin": b"pickle"}
    siblings = []
    for file, data in server.repo.items():
        large = file.endswith(".safetensors")
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        lfs = {"lfs": {"sha256": sha256(data), "size": len(data), "pointerSize": 134}} if large else {}
        siblings.append({"rfilename": file, "size": len(data), "blobId": blob, **lfs})
        path = f"/org/model/resolve/{REVISION}/{file}"
        server.files[path] = data
        server.headers[path] = {"X-Repo-Commit": REVISION, "ETag": f'"{sha256(data) if large else blob}"', "X-Linked-Size": str(len(data))}
    described = {"id": "org/model", "sha": REVISION, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
    tree = [{"type": "file", "path": s["rfilename"], "size": s["size"], "oid": s["blobId"],
             **({"lfs": {"oid": s["lfs"]["sha256"], "size": s["size"], "pointerSize": 134}} if "lfs" in s else {})} for s in siblings]
    for call, answer in ((f"/revision/{REVISION}", described), ("", described), (f"/tree/{REVISION}", tree)):
        path = f"/api/models/org/model{call}"
        server.files[path] = json.dumps(answer).encode()
        server.headers[path] = {"Content-Type": "application/json"}
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return server


def hf_entry(**changes: Any) -> Any:
    document = {"kind": "hf", "repo": "org/model", "revision": REVISION, "licence": LICENCE, "take": ["*.safetensors", "*.json"]}
    return parse_entry("model", document | changes, "lock")


def test_hub_asset_is_verified_against_the_hubs_own_hashes(hub: Any, cache: Path) -> None:
    folder = provide("model", hf_entry())
    assert set(verify_manifest(folder)) == {"config.json", "model.safetensors", "asset.json"}
    assert (folder / "model.safetensors").read_bytes() == PAYLOAD
    assert list((cache / "downloads").iterdir()) == []


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_hub_file_that_is_not_what_the_hub_says(hub: Any, cache: Path, file: str) -> None:
    path = f"/org/model/resolve/{REVISION}/{file}"
    hub.files[path] = b"x" * len(hub.files[path])
    with pytest.raises(AssetError, match=f"{file} has hash .*, expected"):
        provide("model", hf_entry())
    assert leftovers(cache) == [] and list((cache / "downloads").iterdir()) == []


def test_hub_file_that_is_not_what_the_lock_says(hub: Any, cache: Path) -> None:
    files = {file: sha256(hub.repo[file]) for file in ("config.json", "model.safetensors")}
    provide("model", hf_entry(files=files))
    for wrong, message in (({"config.json": "0" * 64}, "config.json has hash"), ({"more.json": "0" * 64}, "has no more.json")):
        with pytest.raises(AssetError, match=message):
            provide("model", hf_entry(files=files | wrong))
    with pytest.raises(AssetError, match=r"no SHA-256 for config\.json.*anymal lock --update model"):
        provide("model", hf_entry(files={"model.safetensors": files["model.safetensors"]}))


@pytest.mark.parametrize(("changes", "message"), [
    ({"take": ["*.bin"]}, r"pytorch_model\.bin may hold pickled code"),
    ({"take": ["*.gguf"]}, "has no file that `take` names"),
    ({"revision": "0" * 40}, "has no revision 0000"),
    ({"repo": "org/other"}, "hub has no org/other, or it is private and HF_TOKEN is not set"),
])
def test_hub_errors(hub: Any, cache: Path, changes: dict[str, Any], message: str) -> None:
    hub.error_code = "RepoNotFound" if "repo" in changes else "RevisionNotFound"
    with pytest.raises(AssetError, match=message):
        provide("model", hf_entry(**changes))
    assert leftovers(cache) == []


def test_hub_that_cannot_be_reached(hub: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(AssetError, match="hub cannot be reached for org/model; check the network, HF_ENDPOINT"):
        provide("model", hf_entry())
    assert leftovers(cache) == []


def test_gated_repository(hub: Any) -> None:
    hub.error_code = "GatedRepo"
    hub.broken[f"/api/models/org/model/revision/{REVISION}"] = 403
    with pytest.raises(AssetError, match="gated; accept its licence there with your account and set HF_TOKEN"):
        provide("model", hf_entry())


# --- whether it can be had --------------------------------------------------------------------------------------------------------------


def test_a_package_is_looked_for_without_fetching_it(index: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_available("weights", pip_entry(index)) == 0
    assert [path for path, _ in index.requests] == ["/simple/sample/"]
    with pytest.raises(AssetError, match=r"asset weights: the package index has no wheel sample==9 for this machine \(it has 1\.0\); correct"):
        check_available("weights", pip_entry(index, version="9"))
    with pytest.raises(AssetError, match=r"no wheel of nosuch==1\.0"):
        check_available("weights", pip_entry(index, package="nosuch"))
    with monkeypatch.context() as patch:
        patch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
        patch.setenv("PIP_RETRIES", "1")
        with pytest.raises(AssetError, match="the package index cannot be reached to find sample==1"):
            check_available("weights", pip_entry(index))
    from_index(index)
    index.requests.clear()
    assert check_available("weights", pip_entry(index)) == 0 and index.requests == []  # it is in the cache


def test_a_debian_package_is_looked_for_without_fetching_it(repository: tuple[Path, bytes], cache: Path) -> None:
    (cache / "locks").mkdir(parents=True)
    assert check_available("pictures", apt_entry(repository[1])) == len(repository[1])
    with pytest.raises(AssetError, match="the lock names 000"):
        check_available("pictures", apt_entry(repository[1], sha256="0" * 64))
    assert not (cache / "apt/packages").exists()


def test_a_repository_of_the_hub_is_asked_for_access(hub: Any) -> None:
    hub.files["/api/models/org/model/auth-check"] = b"{}"
    assert check_available("model", hf_entry()) == len(PAYLOAD) + 2
    assert not [path for path, _ in hub.requests if "/resolve/" in path]
    with pytest.raises(AssetError, match=r"has no more\.json"):
        check_available("model", hf_entry(files={"more.json": "0" * 64}))
    hub.error_code = "GatedRepo"
    hub.broken["/api/models/org/model/auth-check"] = 403
    with pytest.raises(AssetError, match="gated; accept its licence there with your account and set HF_TOKEN"):
        check_available("model", hf_entry())


def test_files_and_places_of_ones_own_are_looked_for(index: Any, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "a.txt").write_text("abc")
    write_manifest(own)
    entry = folder_entry(own)
    assert check_available("own", entry) == 3 + (own / "manifest.json").stat().st_size
    (own / "b.txt").write_text("b")
    write_manifest(own)
    with pytest.raises(AssetError, match="the lock names"):
        check_available("own", entry)
    assert check_available("weights", pip_entry(index), str(own / "a.txt")) == 3
    assert check_available("weights", pip_entry(index), index.url + index.wheel_path) == len(index.wheel)
    for place, message in ((f"{index.url}/nosuch", "its server answered 404"), ("http://127.0.0.1:9/x", "its server cannot be reached"),
                           (str(own / "nosuch"), "no such file or folder")):
        with pytest.raises(AssetError, match=rf"ingest\.sources\.weights = {place}: {message}"):
            check_available("weights", pip_entry(index), place)


# --- conversions ------------------------------------------------------------------------------------------------------------------------


def test_torch_weights_become_safetensors(tmp_path: Path) -> None:
    import torch
    from safetensors import safe_open

    own = tmp_path / "own"
    own.mkdir()
    weight = torch.arange(6.0).reshape(2, 3)
    torch.save({"a": weight, "b": weight.T, "n": torch.tensor(3)}, own / "pytorch_model.bin")
    entry = folder_entry(own, convert="torch_to_safetensors")
    folder = provide("own", entry)
    assert sorted(file.name for file in folder.iterdir()) == ["asset.json", "manifest.json", "model.safetensors"]
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("b"), weight.T) and file.metadata() == {"format": "pt"}


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("content", ["code", "noise", "list"])
def test_torch_file_that_is_no_plain_weights_is_refused(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    own = tmp_path / "own"
    own.mkdir()
    if content == "noise":
        (own / "x.pth").write_bytes(b"noise" * 100)
    else:
        torch.save(Evil() if content == "code" else [torch.zeros(1)], own / "x.pth")
    entry = folder_entry(own, convert="torch_to_safetensors")
    with pytest.raises(AssetError, match=r"x\.pth (is not a plain torch weights file|holds no dictionary of tensors)"):
        provide("own", entry)
    assert leftovers(cache) == [] and not (tmp_path / "evil").exists()


def test_conversions_name_what_they_lack(tmp_path: Path, cache: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "a.txt").write_text("a")
    for kind, message in (("gguf_to_hf", r"exactly one \.gguf file"), ("torch_to_safetensors", r"found no \.bin")):
        entry = folder_entry(own, convert=kind)
        with pytest.raises(AssetError, match=message):
            provide("own", entry)
    (own / "a.gguf").write_bytes(b"GGUF" + bytes(100))
    entry = folder_entry(own, convert="gguf_to_hf")
    with pytest.raises(AssetError, match=r"a\.gguf cannot be read as a GGUF model"):
        provide("own", entry)
    assert leftovers(cache) == []


def test_missing_manifest_is_a_data_error_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        verify_manifest(tmp_path)
