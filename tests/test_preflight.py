"""`anymal preflight`: each thing that can be missing is found, all at once, and a run that has all it needs passes."""

from __future__ import annotations

import hashlib
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ruamel.yaml import YAML

from anymal.cluster import SECTION
from anymal.commands.preflight import command
from anymal.config import read_document, without_nulls
from anymal.data.manifest import MANIFEST, write_manifest
from anymal.data.remote import send
from anymal.preflight import Finding, Run, preflight
from anymal.profile import profile_problems, read_profile, section_problems
from anymal.stage import load_stage
from tests.s3_server import BUCKET, READER, S3Server

ROOT = Path(__file__).parent.parent
PRODUCTION = ROOT / "params.production.yaml"
DEMO = ROOT / "params.yaml"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ANYMAL_CACHE", str(folder))
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    write_manifest(folder)
    return folder


@pytest.fixture
def lock(tmp_path: Path, own: Path) -> Path:
    path = tmp_path / "assets.lock.yaml"
    sha256 = hashlib.sha256((own / MANIFEST).read_bytes()).hexdigest()
    path.write_text(f"pictures: {{kind: file, path: '{own}', sha256: '{sha256}', licence: {{id: MIT}}}}\n"
                    f"gone: {{kind: file, path: '{own / 'nosuch'}', sha256: '{sha256}', licence: {{id: MIT}}}}\n"
                    f"changed: {{kind: file, path: '{own}', sha256: '{'0' * 64}', licence: {{id: MIT}}}}\n")
    return path


def profile(**ingest: Any) -> dict[str, Any]:
    return {"ingest": {"seed": 0, "assets": ["pictures"], "sources": {}} | ingest}


def problems(run: Run) -> dict[str, list[str]]:
    """Check -> what is wrong."""
    found: dict[str, list[str]] = {}
    for finding in preflight(run):
        if finding.problem is not None:
            assert "\n" not in finding.problem and "Traceback" not in finding.problem
            found.setdefault(finding.check, []).append(finding.problem)
    return found


def test_a_run_that_has_all_it_needs_passes(lock: Path, own: Path, tmp_path: Path) -> None:
    findings = preflight(Run(profile(), "x.yaml", (), lock, (own, lock), (tmp_path / "out" / "model",)))
    assert [finding for finding in findings if finding.problem is not None] == []
    assert [finding.check for finding in findings] == ["configuration", "mlflow", "assets", "inputs", "inputs", "outputs", "disk"]
    assert not (tmp_path / "out").exists()


def test_all_problems_are_listed_at_once(lock: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYMAL_TRACKING", "on")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:password@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "user")
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1))  # type: ignore[attr-defined]
    write_manifest(own)
    whole = shutil.copytree(own, tmp_path / "whole")
    (whole / "a.txt").write_text("b")
    (whole / "more.txt").touch()
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "x").touch()
    run = Run(profile(assets=["pictures", "gone", "changed", "picture"], sources={"pictures": "nosuch.zip"}, colour="red") | {"algin": {}}, "x.yaml",
              ("ingest", "align", "paint"), lock, (whole, bare, tmp_path / "nosuch"), (bare, lock / "below"), ("DATABASE_PASSWORD",))
    found = problems(run)
    assert {check: len(lines) for check, lines in found.items()} == {
        "configuration": 4, "secrets": 2, "mlflow": 1, "assets": 4, "inputs": 3, "outputs": 2, "disk": 1}
    text = "\n".join(line for lines in found.values() for line in lines)
    for part in (
            "ingest.colour: unknown knob", "x.yaml: section 'algin' belongs to no stage; did you mean 'align'?", "x.yaml: has no section 'align'",
            "--stages paint: no such stage", "DATABASE_PASSWORD: is not set", "MLFLOW_TRACKING_PASSWORD: is not set, but MLFLOW_TRACKING_USERNAME is",
            "MLFLOW_TRACKING_URI = http://127.0.0.1:9: the MLflow server cannot be reached", "ingest.sources.pictures = nosuch.zip: no such file",
            "asset gone: ", "asset changed: what came has SHA-256", "no asset named 'picture'; did you mean 'pictures'?",
            f"{whole}: does not match its manifest.json: extra more.txt; changed a.txt", f"{bare}: has no manifest.json",
            "nosuch: no such file or folder", f"--output {bare}: is a folder that no stage wrote",
            f"--output {lock / 'below'}: {lock} is not a folder that can be written", "GB free"):
        assert part in text, part
    assert "password@" not in text


def test_the_lock_is_read_only_if_ingest_runs(lock: Path, tmp_path: Path) -> None:
    lock.write_text("pictures: {kind: tape}\nother: {kind: file}\n")
    assert problems(Run(profile(), "x", ("ingest",), lock))["assets"][0].startswith("assets.lock.yaml: pictures")
    assert len(problems(Run(profile(), "x", ("ingest",), lock))["assets"]) > 1
    assert problems(Run(profile(), "x", (), None)) == {"assets": ["--lock: not given, but ingest runs; give the asset lock"]}
    assert "assets" not in problems(Run(profile(), "x", ("register",), lock))


def test_a_cache_that_cannot_be_written(lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYMAL_CACHE", str(lock / "cache"))
    assert "cannot be written (Not a directory); set ANYMAL_CACHE" in problems(Run(profile(), "x", (), lock))["assets"][0]


class Handler(http.server.BaseHTTPRequestHandler):
    """A server of chat completions that lists one model and wants the key `k`."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        body = b"<html>" if self.path.startswith("/web") else json.dumps({"data": [{"id": "llama"}]}).encode()
        self.send_response(200 if self.headers.get("Authorization") == "Bearer k" else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[str]:
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def test_the_server_of_a_section_is_asked(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(url: str, model: str = "llama") -> list[str]:
        sections = {"synthesize": {"image": {"server": {"url": url, "model": model}}, "audio": {"server": None}}}
        return [finding.problem or "" for finding in preflight(Run(sections, "x", ("synthesize",))) if finding.check == "servers"]

    assert "refuses the key (HTTP 401); set OPENAI_API_KEY" in answer(f"{server}/v1")[0]
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert answer(f"{server}/v1") == [""]
    assert "server.model = other: the server has llama" in answer(f"{server}/v1", "other")[0]
    assert "not as a server of chat completions does" in answer(f"{server}/web")[0]
    assert "cannot be reached; start the server" in answer("http://127.0.0.1:9/v1")[0]


@pytest.mark.parametrize("name", ["params.yaml", "params.production.yaml"])
def test_both_profiles_are_valid_as_files_and_as_kubeflow_carries_them(name: str) -> None:
    document = read_document(ROOT / name)
    assert profile_problems(document, name) == []
    carried = json.dumps({key: value if key == SECTION else without_nulls(value) for key, value in document.items()})
    assert read_profile(carried) == json.loads(json.dumps(document))
    assert profile_problems(read_profile(carried), "--config") == []


def test_wrong_knobs_are_found_in_every_section(tmp_path: Path) -> None:
    document = read_document(DEMO)
    document["align"]["audio"]["steps"] = -1
    document["finetune"]["seed"] = "x"
    assert [line.split(" ")[0] for line in profile_problems(document, "x")] == ["align.audio.steps", "finetune.seed"]
    assert section_problems(load_stage("align"), {}) == ["align: must hold a section per modality"]


def run_command(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(command, list(arguments))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def test_the_command_says_so_with_its_exit_status(lock: Path, own: Path, tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    YAML().dump(profile(), path)
    status, text = run_command("--config", str(path), "--lock", str(lock), "--stages", "ingest", "--input", str(own))
    assert status == 0 and text.splitlines()[-1] == "0 problems in 5 checks" and "PROBLEM" not in text
    assert f"ok      inputs        {own}" in text
    inline = json.dumps(profile(assets=["gone"]))
    status, text = run_command("--config", inline, "--lock", str(lock), "--secret", "NOSUCH", "--stages", "ingest, align")
    assert status == 2 and text.splitlines()[-1] == "3 problems in 5 checks"
    assert text.count("PROBLEM") == 3 and "PROBLEM secrets       NOSUCH: is not set" in text
    status, text = run_command("--config", str(path), "--lock", str(lock), "--output", str(own / "a.txt" / "b"), "--json")
    found = json.loads(text)
    assert status == 2 and found["problems"] == 1
    assert [finding["check"] for finding in found["findings"] if finding["problem"]] == ["outputs"]
    assert found["findings"][0] == vars(Finding("configuration", f"{path}: 1 sections"))


# --- S3


@pytest.mark.slow
def test_s3_is_reached_compared_and_tried(s3_server: S3Server, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    send("x: --y", own, f"s3://{BUCKET}/flight/own")
    lock = tmp_path / "assets.lock.yaml"
    pin = hashlib.sha256((own / MANIFEST).read_bytes()).hexdigest()
    lock.write_text(f"bucket: {{kind: s3, url: 's3://{BUCKET}/flight/own/', manifest_sha256: '{pin}', licence: {{id: MIT}}}}\n"
                    f"object: {{kind: s3, url: 's3://{BUCKET}/flight/own/a.txt', sha256: '{pin}', licence: {{id: MIT}}}}\n"
                    f"gone: {{kind: s3, url: 's3://{BUCKET}/flight/nosuch', sha256: '{pin}', licence: {{id: MIT}}}}\n")
    good = Run(profile(assets=["bucket", "object"], sources={"object": f"s3://{BUCKET}/flight/own/a.txt"}), "x", (), lock,
               (f"s3://{BUCKET}/flight/own/",), (f"s3://{BUCKET}/flight/new", f"s3://{BUCKET}/flight/own"))
    assert problems(good) == {}
    assert good.sizes["asset object"] == 1
    assert s3_server.keys("flight/").keys() == {"own/a.txt", "own/manifest.json"}

    s3_server.client.put_object(Bucket=BUCKET, Key="flight/own/a.txt", Body=b"longer")
    s3_server.client.put_object(Bucket=BUCKET, Key="flight/mine/x", Body=b"x")
    found = problems(Run(profile(assets=["gone", "object"], sources={"object": "s3://nosuch/x/"}), "x", (), lock,
                         (f"s3://{BUCKET}/flight/own", f"s3://{BUCKET}/flight/none", "s3://b"), (f"s3://{BUCKET}/flight/mine", "s3://nosuch/x")))
    assert {check: len(lines) for check, lines in found.items()} == {"assets": 2, "inputs": 3, "outputs": 2}
    assert f"s3://{BUCKET}/flight/own: does not match its manifest.json: changed a.txt" in found["inputs"][0]
    assert "holds objects that no stage wrote" in found["outputs"][0] and "there is no such bucket" in found["outputs"][1]

    for name, value in READER.items():
        monkeypatch.setenv(name, value)
    (denied,) = problems(Run({}, "x", outputs=(f"s3://{BUCKET}/flight/new",)))["outputs"]
    assert "access was denied" in denied
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "AWS_SECRET_ACCESS_KEY: is not set, but AWS_ACCESS_KEY_ID is" in problems(Run({}, "x"))["secrets"][0]


def test_an_s3_server_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setattr("time.sleep", lambda _: None)
    found = problems(Run({}, "x", inputs=("s3://data/in",), outputs=("s3://data/out",)))
    assert all("the S3 server cannot be reached; check the network and AWS_ENDPOINT_URL_S3" in lines[0] for lines in found.values())
    assert found.keys() == {"inputs", "outputs"}


def of_check(findings: list[Finding], check: str) -> list[Finding]:
    return [finding for finding in findings if finding.check == check]


def test_a_training_stage_that_fits_no_gpu_is_refused_before_it_starts():
    """A resampler of six layers as wide as the 70B LLM does not fit 80 GiB; the profile's narrower one does."""
    document = read_document(PRODUCTION)
    document["align"] = {"image": document["align"]["image"]}
    whole = of_check(preflight(Run(document, "production", ("align",))), "gpus")
    assert [(finding.subject, finding.problem) for finding in whole] == [("align.image: 32 GPUs of 80Gi", None)]
    document["align"]["image"]["width"] = None
    problem = of_check(preflight(Run(document, "production", ("align",))), "gpus")[0].problem
    assert problem is not None and problem.startswith("align.image.micro_batch_size = 4: needs ")
    assert "narrower" in problem
    assert not of_check(preflight(Run(document, "production", ("score",))), "gpus")


def test_what_gpus_hold_is_looked_at_only_where_the_profile_says_it():
    assert not of_check(preflight(Run(read_document(DEMO), "demo", ("align",))), "gpus")
