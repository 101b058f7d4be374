"""Inputs and outputs on a real S3 server: what is sent, fetched and verified; what is wrong is said; broken transfers end with the right bytes."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from filelock import FileLock
from pydantic import Field

from anymal.data import remote
from anymal.data.lock import is_safe
from anymal.data.manifest import MANIFEST, verify_manifest, write_manifest
from anymal.data.remote import UNDER_WAY, address, check_target, fetch, send
from anymal.data.s3 import PART, S3Error, Storage
from anymal.errors import AnymalError, ConfigError, DataError
from anymal.stage import Config, In, Ins, Out, load_stage, resumable, run_stage
from tests.s3_server import BUCKET, READER, S3Server

ROOT = Path(__file__).parents[2]
slow = pytest.mark.slow


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ANYMAL_CACHE", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as a stage writes it: nested, with an empty file, odd names, and one file of several parts."""
    return make_folder(tmp_path / "made" / "features")


def make_folder(path: Path, *, large: int = PART + 1000) -> Path:
    (path / "sub").mkdir(parents=True)
    (path / "a.txt").write_text("a")
    (path / "empty").touch()
    (path / "sub" / "bär + 1.txt").write_text("b" * 5000)
    (path / "large.safetensors").write_bytes(os.urandom(large))
    write_manifest(path)
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operations that are asked of the server, `get_object` apart."""
    made: list[str] = []
    call = Storage.call

    def counted(self: Storage, operation: str, uri: str, **arguments: Any) -> Any:
        made.append(operation)
        return call(self, operation, uri, **arguments)

    monkeypatch.setattr(Storage, "call", counted)
    return made


# --- addresses, and what needs no server


@pytest.mark.parametrize("uri", ["s3://", "s3://b", "s3://bucket", "s3://bucket/", "s3://buck et/x", "s3://bucket//x", "s3://bucket/a//b",
                                 "s3://bucket/../x", "s3://bucket/a/./b", "s3:/bucket/x"])
def test_what_is_no_address_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"encode: --shards .*: is no place on S3; write s3://BUCKET/PREFIX"):
        address("encode: --shards", uri)


def test_an_address_has_one_form() -> None:
    assert address("x", "s3://bucket/a/b/") == address("x", "s3://bucket/a/b") == "s3://bucket/a/b"


@pytest.mark.parametrize("content", [b"", b"[]", b'{"files": []}', b'{"files": {"a": {"sha256": "x", "size": 1}}}',
                                     json.dumps({"files": {"../a": {"sha256": "0" * 64, "size": 1}}}).encode(),
                                     json.dumps({"files": {"/a": {"sha256": "0" * 64, "size": 1}}}).encode(),
                                     json.dumps({"files": {"a": {"sha256": "0" * 64, "size": -1}}}).encode(),
                                     json.dumps({"files": {"a": {"sha256": "0" * 64}}}).encode()])
def test_what_is_no_manifest_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match=r"x: --y s3://b/c/manifest\.json: "):
        remote._files("x: --y", "s3://b/c/manifest.json", content)
    assert not is_safe("../a")


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address at which nothing listens, and no credentials."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setattr("time.sleep", lambda _: None)


def test_without_credentials_without_a_server_and_with_no_endpoint(nowhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"x: --y s3://data/z/manifest\.json: no S3 credentials were found; set AWS_ACCESS_KEY_ID"):
        fetch("x: --y", "s3://data/z")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with pytest.raises(DataError, match=r"x: --y s3://data/z/manifest\.json: the S3 server cannot be reached; check the network and AWS_ENDP"):
        fetch("x: --y", "s3://data/z")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "nonsense")
    with pytest.raises(DataError, match="AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL: is no address"):
        fetch("x: --y", "s3://data/z")
    monkeypatch.setenv("AWS_PROFILE", "nosuch")
    with pytest.raises(DataError, match="S3 cannot be used"):
        fetch("x: --y", "s3://data/z")


# --- folders and files on a server


@slow
def test_a_folder_goes_there_and_back_once(s3_server: S3Server, folder: Path, cache: Path, requests: list[str], capsys: Any) -> None:
    uri = f"s3://{BUCKET}/round/trip/features"
    send("x: --y", folder, uri)
    assert requests.count("upload_part") == 2 and requests.count("create_multipart_upload") == 1
    assert "4 files sent, 0 were there" in capsys.readouterr().err
    assert s3_server.keys("round/trip/features/") == {name: len(data) for name, data in contents(folder).items()}
    found = fetch("x: --y", f"{uri}/")
    assert found.name == "features" and found.is_relative_to(cache) and contents(found) == contents(folder)
    assert "4 files fetched, 0 were here" in capsys.readouterr().err
    requests.clear()
    assert fetch("x: --y", uri) == found == fetch("x: --y", uri, thorough=False)
    assert set(requests) == {"head_object"} and capsys.readouterr().err == ""
    send("x: --y", folder, uri)
    assert "0 files sent, 4 were there" in capsys.readouterr().err
    assert not {"upload_part", "create_multipart_upload"} & set(requests)


@slow
def test_what_is_damaged_in_the_cache_is_fetched_again_and_nothing_else(s3_server: S3Server, folder: Path, capsys: Any) -> None:
    uri = f"s3://{BUCKET}/damaged"
    send("x: --y", folder, uri)
    found = fetch("x: --y", uri)
    (found / "a.txt").write_text("x")
    (found / "foreign").touch()
    (found / "large.safetensors").write_bytes((found / "large.safetensors").read_bytes()[:1000])
    capsys.readouterr()
    assert fetch("x: --y", uri, thorough=False) == found
    assert "2 files fetched, 2 were here" in capsys.readouterr().err
    assert contents(found) == contents(folder)


@slow
def test_a_file_goes_there_and_back(s3_server: S3Server, tmp_path: Path, requests: list[str]) -> None:
    file = tmp_path / "metrics.json"
    file.write_text('{"loss": 1}')
    uri = f"s3://{BUCKET}/results/metrics.json"
    for _ in range(2):
        send("x: --y", file, uri)
    assert requests.count("put_object") == 1
    found = fetch("x: --y", uri)
    assert found.name == "metrics.json" and found.read_bytes() == file.read_bytes()
    found.write_text('{"loss": 2}')
    assert fetch("x: --y", uri).read_bytes() == file.read_bytes()
    s3_server.client.put_object(Bucket=BUCKET, Key="results/foreign.json", Body=b"{}")  # without a SHA-256 of its own: told by its ETag
    assert fetch("x: --y", f"s3://{BUCKET}/results/foreign.json").read_bytes() == b"{}"
    s3_server.client.put_object(Bucket=BUCKET, Key="results/foreign.json", Body=b"[]")
    assert fetch("x: --y", f"s3://{BUCKET}/results/foreign.json").read_bytes() == b"[]"


@slow
def test_a_new_folder_replaces_an_earlier_one_and_leaves_foreign_objects(s3_server: S3Server, folder: Path, tmp_path: Path, capsys: Any) -> None:
    uri = f"s3://{BUCKET}/replaced"
    send("x: --y", folder, uri)
    s3_server.client.put_object(Bucket=BUCKET, Key="replaced/notes.md", Body=b"mine")
    other = tmp_path / "other"
    other.mkdir()
    (other / "a.txt").write_text("other")
    (other / "empty").touch()
    write_manifest(other)
    capsys.readouterr()
    send("x: --y", other, uri)
    assert "1 files sent, 1 were there, 2 of an earlier folder removed" in capsys.readouterr().err
    assert s3_server.keys("replaced/").keys() == {"a.txt", "empty", MANIFEST, "notes.md"}
    assert contents(fetch("x: --y", uri)) == contents(other)


@slow
def test_a_broken_upload_is_not_taken_for_whole_and_goes_on(s3_server: S3Server, folder: Path, requests: list[str],
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"s3://{BUCKET}/broken"
    call = Storage.call

    def breaks(self: Storage, operation: str, uri: str, **arguments: Any) -> Any:
        if operation == "complete_multipart_upload":
            raise S3Error(f"{uri}: the line is cut")
        return call(self, operation, uri, **arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "call", breaks)
        with pytest.raises(DataError, match="the line is cut"):
            send("x: --y", folder, uri)
    assert MANIFEST not in s3_server.keys("broken/") and len(Storage().uploads(uri)) == 1
    with pytest.raises(DataError, match="its upload is under way or broke off; wait, or run the stage that makes it again"):
        fetch("x: --y", uri)
    s3_server.client.create_multipart_upload(Bucket=BUCKET, Key="broken/old.bin")  # of something that is no longer sent
    requests.clear()
    send("x: --y", folder, uri)
    assert not {"upload_part", "create_multipart_upload"} & set(requests)  # both parts had arrived
    assert contents(fetch("x: --y", uri)) == contents(folder)
    assert Storage().uploads(uri) == {} and UNDER_WAY not in s3_server.keys("broken/")


@slow
def test_parts_that_the_server_does_not_find_right_are_sent_again(s3_server: S3Server, folder: Path, requests: list[str],
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise every later run would go on with them, and fail."""
    uri, call, refused = f"s3://{BUCKET}/refused", Storage.call, []

    def refuses(self: Storage, operation: str, uri: str, **arguments: Any) -> Any:
        if operation == "complete_multipart_upload" and len(refused) < 2:
            refused.append(arguments["UploadId"])
            answer = {"Error": {"Code": "InvalidPart"}, "ResponseMetadata": {"HTTPStatusCode": 503 if len(refused) == 1 else 400}}
            raise S3Error(f"{uri}: S3 answered InvalidPart") from ClientError(answer, operation)
        return call(self, operation, uri, **arguments)

    monkeypatch.setattr(Storage, "call", refuses)
    with pytest.raises(DataError, match="InvalidPart"):
        send("x: --y", folder, uri)
    send("x: --y", folder, uri)
    assert refused[0] == refused[1] and requests.count("create_multipart_upload") == 2 and requests.count("upload_part") == 4
    assert contents(fetch("x: --y", uri)) == contents(folder) and Storage().uploads(uri) == {}


@slow
def test_parts_of_another_content_are_dropped(s3_server: S3Server, folder: Path) -> None:
    uri = f"s3://{BUCKET}/dropped"
    client = s3_server.client
    upload = client.create_multipart_upload(Bucket=BUCKET, Key="dropped/large.safetensors")["UploadId"]
    client.upload_part(Bucket=BUCKET, Key="dropped/large.safetensors", UploadId=upload, PartNumber=1, Body=b"other" * 2**20)
    send("x: --y", folder, uri)
    assert Storage().uploads(uri) == {} and contents(fetch("x: --y", uri)) == contents(folder)


@slow
def test_what_is_wrong_on_s3_is_said(s3_server: S3Server, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client, uri = s3_server.client, f"s3://{BUCKET}/wrong/features"
    send("x: --y", folder, uri)

    def refused(match: str, uri: str = uri) -> None:
        with pytest.raises(AnymalError, match=match) as caught:
            fetch("x: --y", uri)
        assert str(caught.value).startswith("x: --y s3://") and "\n" not in str(caught.value)
        assert not list((cache / "remote").rglob("features"))

    client.put_object(Bucket=BUCKET, Key="wrong/features/a.txt", Body=b"b")
    refused(r"a\.txt: has SHA-256 3e23e8160039594a.*, its manifest\.json says ca978112ca1bbdca.*; run the stage that makes it again")
    client.put_object(Bucket=BUCKET, Key="wrong/features/a.txt", Body=b"longer")
    refused(r"1 of its 4 files are missing or changed, e\.g\. a\.txt; run the stage")
    client.delete_object(Bucket=BUCKET, Key="wrong/features/a.txt")
    refused(r"1 of its 4 files are missing or changed, e\.g\. a\.txt; run the stage")
    client.put_object(Bucket=BUCKET, Key="wrong/features/manifest.json", Body=b"{")
    refused("is no manifest")
    client.delete_object(Bucket=BUCKET, Key="wrong/features/manifest.json")
    refused(r"has no manifest\.json, so it is not known whether it is whole")
    refused("there is no such object or folder; run the stage that makes it", f"s3://{BUCKET}/nosuch")
    refused("there is no such bucket; correct the address", "s3://nosuch/x")
    monkeypatch.setattr(remote, "MAX_MANIFEST_BYTES", 10)
    client.put_object(Bucket=BUCKET, Key="wrong/features/manifest.json", Body=b"{" * 100)
    refused("has 100 bytes, more than the 10 that are read")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "other")
    refused("access was denied|the secret key is wrong|S3 answered 403")


@slow
def test_a_target_that_may_not_be_written_or_is_someone_elses(s3_server: S3Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s3_server.client.put_object(Bucket=BUCKET, Key="foreign/x", Body=b"x")
    for refuse in (lambda: send("x: --y", folder, f"s3://{BUCKET}/foreign"), lambda: check_target("x: --y", f"s3://{BUCKET}/foreign", Storage())):
        with pytest.raises(ConfigError, match=rf"x: --y s3://{BUCKET}/foreign: holds objects that no stage wrote \(there is no manifest\.json\)"):
            refuse()
    with pytest.raises(DataError, match="there is no such bucket"):
        check_target("x: --y", "s3://nosuch/x", Storage())
    check_target("x: --y", f"s3://{BUCKET}/new", Storage())
    assert s3_server.keys("new") == {}
    for name, value in READER.items():
        monkeypatch.setenv(name, value)
    for refuse in (lambda: send("x: --y", folder, f"s3://{BUCKET}/new"), lambda: check_target("x: --y", f"s3://{BUCKET}/new", Storage())):
        with pytest.raises(DataError, match=rf"x: --y s3://{BUCKET}/new.*: access was denied; correct the address, or the credentials"):
            refuse()


@slow
def test_a_changed_local_folder_is_not_sent(s3_server: S3Server, folder: Path) -> None:
    (folder / "a.txt").write_text("changed")
    with pytest.raises(DataError, match=r"does not match its manifest\.json: changed a\.txt"):
        send("x: --y", folder, f"s3://{BUCKET}/unsent")
    assert s3_server.keys("unsent") == {}


# --- servers and processes that are killed in the middle


@slow
@pytest.mark.parametrize("way", ["up", "down"])
def test_a_transfer_outlives_the_server(s3_server: S3Server, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the middle, the server is back a while later; the same call ends with the right bytes."""
    folder, uri = make_folder(tmp_path / "large", large=12 * PART + 5), f"s3://{BUCKET}/outlives-{way}"
    middle, moved = threading.Event(), []
    if way == "up":
        call = Storage.call

        def watched(self: Storage, operation: str, uri: str, **arguments: Any) -> Any:
            if operation == "upload_part":
                moved.append(arguments["PartNumber"])
                if len(moved) == 5:
                    middle.set()
            return call(self, operation, uri, **arguments)

        monkeypatch.setattr(Storage, "call", watched)
    else:
        send("x: --y", folder, uri)
        opened = Storage.open

        def slowly(self: Storage, uri: str, at: int, **arguments: Any) -> Any:
            offset, total, blocks = opened(self, uri, at, **arguments)
            moved.append(offset)

            def through() -> Iterator[bytes]:
                for number, block in enumerate(blocks):
                    if uri.endswith("large.safetensors") and len(moved) < 100 and number == 20:
                        middle.set()
                        time.sleep(1)
                    yield block

            return offset, total, through()

        monkeypatch.setattr(Storage, "open", slowly)

    def kill_and_restart() -> None:
        assert middle.wait(60)
        s3_server.kill()
        time.sleep(3)
        s3_server.start()

    killer = threading.Thread(target=kill_and_restart)
    killer.start()
    if way == "up":
        send("x: --y", folder, uri)
    found = fetch("x: --y", uri)
    killer.join()
    assert middle.is_set()
    assert contents(found) == contents(folder)
    verify_manifest(found)
    assert way == "up" or any(offset > 0 for offset in moved), "the download began again instead of going on"
    assert Storage().uploads(uri) == {}


SCRIPT = """
import os, sys, time
from pathlib import Path
from anymal.data import s3, remote
moved = 0
way, place, uri = sys.argv[1:]
if way == "up":
    call = s3.Storage.call
    def slowly(self, operation, *rest, **arguments):
        global moved
        answer = call(self, operation, *rest, **arguments)
        if operation == "upload_part":
            moved += 1
            os.write(1, b"moved\\n")  # whole, though several threads write
            time.sleep(0.2 if moved < 6 else 60)
        return answer
    s3.Storage.call = slowly
    remote.send("x: --y", Path(place), uri)
else:
    opened = s3.Storage.open
    def slowly(self, uri, at, **arguments):
        offset, total, blocks = opened(self, uri, at, **arguments)
        def through():
            for number, block in enumerate(blocks):
                yield block
                if uri.endswith("large.safetensors") and number == 40:
                    os.write(1, b"moved\\n")
                    time.sleep(60)
        return offset, total, through()
    s3.Storage.open = slowly
    remote.fetch("x: --y", uri)
"""


@slow
@pytest.mark.parametrize("way", ["up", "down"])
def test_a_killed_process_is_gone_on_from(s3_server: S3Server, tmp_path: Path, way: str, requests: list[str],
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    folder, uri = make_folder(tmp_path / "large", large=8 * PART + 5), f"s3://{BUCKET}/killed-{way}"
    if way == "down":
        send("x: --y", folder, uri)
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, way, str(folder), uri], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    wanted = 6 if way == "up" else 1
    for _ in range(wanted):
        assert process.stdout.readline().startswith("moved")
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    if way == "up":
        with pytest.raises(DataError, match="its upload is under way or broke off"):
            fetch("x: --y", uri)
        requests.clear()
        send("x: --y", folder, uri)
        assert requests.count("upload_part") <= 3 and requests.count("create_multipart_upload") == 0
    offsets: list[int] = []
    opened = Storage.open

    def watched(self: Storage, uri: str, at: int, **arguments: Any) -> Any:
        offsets.append(at)
        return opened(self, uri, at, **arguments)

    monkeypatch.setattr(Storage, "open", watched)
    assert contents(fetch("x: --y", uri)) == contents(folder)
    assert way == "up" or max(offsets) >= 30 * 2**20
    assert Storage().uploads(uri) == {}


# --- the ports of stages


class ToyConfig(Config):
    times: int = Field(gt=0)
    fail: bool = False


CONFIG = ToyConfig(seed=0, times=3)
runs: list[dict[str, Any]] = []


def toy(config: ToyConfig, *, source: In, more: Ins, model: Out, metrics: Out) -> None:
    """Repeat a text."""
    runs.append({"source": source, "more": more})
    model.mkdir(exist_ok=True)
    (model / "weights.txt").write_text((source / "a.txt").read_text() * config.times)
    if config.fail:
        raise DataError("toy: it fails")
    metrics.write_text(json.dumps({"loss": 0.5}))


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], Any]:
    runs.clear()

    def install(function: Callable[..., None]) -> Any:
        module = types.ModuleType("anymal.stages.toy")
        module.toy = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "anymal.stages.toy", module)
        return load_stage("toy")

    return install


@pytest.mark.parametrize(("changes", "message"), [
    ({"model": "s3://b"}, "toy: --model s3://b: is no place on S3"),
    ({"model": "s3://bucket/in"}, r"toy: --model s3://bucket/in: would replace source \(s3://bucket/in\)"),
    ({"model": "s3://bucket/out", "metrics": "s3://bucket/out/metrics.json"}, r"--model s3://bucket/out: would replace metrics"),
    ({"model": "s3://bucket/out", "metrics": "s3://bucket/out/"}, r"would replace (metrics|model)"),
])
def test_addresses_of_ports_are_checked_first(install: Any, tmp_path: Path, changes: dict[str, str], message: str) -> None:
    ports = {"source": "s3://bucket/in", "more": (tmp_path,), "model": tmp_path / "model", "metrics": tmp_path / "metrics.json"} | changes
    with pytest.raises(ConfigError, match=message):
        run_stage(install(toy), CONFIG, ports)
    assert runs == []


@slow
def test_a_stage_from_s3_to_s3_gives_what_it_gives_locally(s3_server: S3Server, install: Any, folder: Path, tmp_path: Path, cache: Path) -> None:
    stage = install(toy)
    send("x: --y", folder, f"s3://{BUCKET}/stage/in")
    executor = {"outputs": {"outputFile": str(tmp_path / "executor.json"), "artifacts": {
        "model": {"artifacts": [{"uri": "minio://m", "metadata": {}}]}, "metrics": {"artifacts": [{"uri": "minio://x", "metadata": {}}]}}}}
    ports = {"source": f"s3://{BUCKET}/stage/in", "more": (folder, f"s3://{BUCKET}/stage/in/"), "model": f"s3://{BUCKET}/stage/out/model",
             "metrics": f"s3://{BUCKET}/stage/out/metrics.json"}
    run_stage(stage, CONFIG, ports, json.dumps(executor))
    assert runs[0]["more"] == (folder, runs[0]["source"])
    run_stage(stage, CONFIG, {"source": folder, "more": (folder,), "model": tmp_path / "model", "metrics": tmp_path / "metrics.json"})
    assert contents(fetch("x: --y", f"s3://{BUCKET}/stage/out/model")) == contents(tmp_path / "model")
    assert fetch("x: --y", f"s3://{BUCKET}/stage/out/metrics.json").read_bytes() == (tmp_path / "metrics.json").read_bytes()
    assert json.loads((tmp_path / "executor.json").read_text())["artifacts"]["metrics"]["artifacts"][0]["metadata"] == {"loss": 0.5}
    assert [path for path in (cache / "remote" / "outputs").rglob("*") if path.is_file()] == []
    assert s3_server.keys("stage/out").keys() == {"/model/weights.txt", "/model/manifest.json", "/metrics.json"}


@slow
def test_a_stage_that_fails_sends_nothing(s3_server: S3Server, install: Any, folder: Path) -> None:
    ports = {"source": folder, "more": (folder,), "model": f"s3://{BUCKET}/fails/model", "metrics": f"s3://{BUCKET}/fails/metrics.json"}
    with pytest.raises(DataError, match="toy: it fails"):
        run_stage(install(toy), ToyConfig(seed=0, times=1, fail=True), ports)
    assert s3_server.keys("fails") == {}


@slow
def test_an_output_that_cannot_be_sent_is_refused_before_the_work(s3_server: S3Server, install: Any, folder: Path) -> None:
    ports = {"source": folder, "more": (folder,), "model": "s3://nosuch/model", "metrics": "s3://nosuch-either/metrics.json"}
    with pytest.raises(DataError) as caught:
        run_stage(install(toy), CONFIG, ports)
    assert [line.split(" ")[1] for line in str(caught.value).split("\n")] == ["--model", "--metrics"]
    assert runs == []


@slow
def test_what_was_made_is_kept_when_it_cannot_be_sent_and_only_sent_by_the_next_run(
        s3_server: S3Server, install: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def last(config: ToyConfig, *, source: In, more: Ins, model: Out, metrics: Out) -> None:
        """Repeat a text while the server goes away."""
        toy(config, source=source, more=more, model=model, metrics=metrics)
        s3_server.kill()

    monkeypatch.setattr("anymal.data.s3.ATTEMPTS", 2)
    ports = {"source": folder, "more": (folder,), "model": f"s3://{BUCKET}/kept/model", "metrics": tmp_path / "metrics.json"}
    with pytest.raises(DataError, match=r"the S3 server cannot be reached.*the stage itself succeeded and its outputs are kept in .*: "
                                        "the same command sends them without running it again"):
        run_stage(install(last), CONFIG, ports)
    s3_server.start()
    stage = install(toy)
    runs.clear()
    run_stage(stage, CONFIG, ports)
    assert runs == []
    assert s3_server.keys("kept/").keys() == {"model/weights.txt", "model/manifest.json"}
    run_stage(stage, CONFIG, ports)  # nothing waits any more
    assert len(runs) == 1
    run_stage(stage, ToyConfig(seed=0, times=5), ports)
    assert (fetch("x: --y", f"s3://{BUCKET}/kept/model") / "weights.txt").read_text() == "a" * 5


@slow
def test_a_resumable_stage_finds_its_partial_output(s3_server: S3Server, install: Any, folder: Path) -> None:
    @resumable
    def halting(config: ToyConfig, *, source: In, more: Ins, model: Out, metrics: Out) -> None:
        """Fail once."""
        runs.append({"there": model.exists()})
        model.mkdir(exist_ok=True)
        (model / "weights.txt").write_text("w")
        if len(runs) == 1:
            raise DataError("toy: stopped")
        metrics.write_text("{}")

    ports = {"source": folder, "more": (folder,), "model": f"s3://{BUCKET}/resumes/model", "metrics": f"s3://{BUCKET}/resumes/metrics.json"}
    with pytest.raises(DataError, match="stopped"):
        run_stage(install(halting), CONFIG, ports)
    run_stage(install(halting), CONFIG, ports)
    assert runs == [{"there": False}, {"there": True}]


@slow
def test_two_processes_do_not_make_the_same_output(s3_server: S3Server, install: Any, folder: Path, cache: Path) -> None:
    uri = f"s3://{BUCKET}/twice/model"
    (cache / "locks").mkdir(parents=True)
    ports = {"source": folder, "more": (folder,), "model": uri, "metrics": folder.parent / "metrics.json"}
    with (FileLock(cache / "locks" / f"{hashlib.sha256(uri.encode()).hexdigest()[:24]}.output.lock"),
          pytest.raises(ConfigError, match="toy: --model: another process on this machine works on the same output")):
        run_stage(install(toy), CONFIG, ports)


@slow
def test_the_command_line_takes_addresses(s3_server: S3Server, tmp_path: Path) -> None:
    """`ingest`, its lock read from S3 and its assets written there; no traceback for what is not there."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "a.txt").write_text("a")
    write_manifest(own)
    sha256 = hashlib.sha256((own / MANIFEST).read_bytes()).hexdigest()
    lock = tmp_path / "assets.lock.yaml"
    lock.write_text(f"pictures: {{kind: file, path: '{own}', sha256: {sha256}, licence: {{id: MIT}}}}\n")
    send("x: --y", lock, f"s3://{BUCKET}/command/assets.lock.yaml")
    config = json.dumps({"seed": 0, "assets": ["pictures"], "sources": {}})

    def ingest(place: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "anymal", "ingest", "--config", config, "--lock", place, "--assets",
                               f"s3://{BUCKET}/command/assets"], cwd=ROOT, capture_output=True, text=True, check=False)

    done = ingest(f"s3://{BUCKET}/command/assets.lock.yaml")
    assert done.returncode == 0, done.stderr
    assert "pictures/a.txt" in s3_server.keys("command/assets/")
    done = ingest(f"s3://{BUCKET}/command/nosuch")
    assert done.returncode == 2
    assert done.stderr == (f"anymal: error: ingest: --lock s3://{BUCKET}/command/nosuch: there is no such object or folder; "
                           "run the stage that makes it, or correct the address\n")
