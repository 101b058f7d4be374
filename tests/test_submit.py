"""Submitting a run: what is checked before, what is sent, and what becomes of it. The server is a stand-in (tests/kfp_server.py)."""

from __future__ import annotations

import hashlib
import json
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipelines import submit
from pipelines.compile import compile_one
from tests.graph import ROOT
from tests.kfp_server import KfpServer, running

SECRET = "a-token-that-nobody-may-see"
LOCK = f"s3://bucket/locks/{'0' * 64}.yaml"
VARIABLES = ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT", "KF_PIPELINES_TOKEN", "KF_PIPELINES_SA_TOKEN_PATH", "KF_PIPELINES_NAMESPACE",
             "KF_PIPELINES_CA_FILE")


@pytest.fixture(scope="module")
def compiled() -> Callable[..., None]:
    """`compile_one`, which takes a second, once for each pipeline and profile; with images as if they were built."""
    done: dict[str, bytes] = {}

    def compile_once(name: str, document: Mapping[str, Any], source: str, file: Path) -> None:
        key = json.dumps([name, document, source], sort_keys=True)
        if key not in done:
            compile_one(name, document, source, file)
            done[key] = file.read_bytes()
        file.write_bytes(done[key].replace(b":unbuilt", b"@sha256:" + b"1" * 64))

    return compile_once


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, compiled: Callable[..., None]) -> Iterator[None]:
    monkeypatch.setattr("pipelines.compile.compile_one", compiled)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(ROOT)
    yield
    socket.setdefaulttimeout(None)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpServer]:
    with KfpServer(token=SECRET) as running_server:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", running_server.uri)
        monkeypatch.setenv("KF_PIPELINES_TOKEN", SECRET)
        yield running_server


class Ran:
    """What a command printed, and its exit status."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch
        self.status, self.out, self.err = 0, "", ""

    def __call__(self, *words: str) -> Ran:
        self._monkeypatch.setattr(sys, "argv", ["submit", *words])
        with pytest.raises(SystemExit) as caught:
            submit.main()
        self.status = caught.value.code if isinstance(caught.value.code, int) else 0
        self.out, self.err = self._capsys.readouterr()
        assert SECRET not in self.out + self.err
        assert "Traceback" not in self.err
        return self


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ran:
    return Ran(capsys, monkeypatch)


# --- before anything is sent


def test_a_dry_run_tells_all_and_sends_nothing(run, server):
    ran = run("training", "--set", "align.image.layers=5", "--set", "kubeflow.defaults.memory=3Gi", "--upload-to", "s3://bucket/locks/", "--dry-run")
    assert ran.status == 0
    assert server.calls == []
    lines = ran.out.split("\n")
    assert lines[0].startswith("align.image.layers: ") and lines[0].endswith(" -> 5")
    section = next(line.partition(" = ")[2] for line in lines if line.startswith("  align_image = "))
    assert json.loads(section)["layers"] == 5
    lock = hashlib.sha256((ROOT / "assets.lock.yaml").read_bytes()).hexdigest()
    assert f"upload: assets.lock.yaml -> s3://bucket/locks/{lock}.yaml" in ran.out
    assert f"  lock = s3://bucket/locks/{lock}.yaml" in lines
    assert "service account anymal-pipeline" in lines[2]
    rows = {line.split()[0]: line.split()[1:] for line in lines[lines.index("tasks:") + 1:] if line.startswith("  ")}
    assert len(rows) > 25
    assert "3Gi" in rows["score"]
    assert "nothing was sent; the run would be called training-" in lines[-2]
    assert run("training", "--set", "align.image.layers=5", "--set", "kubeflow.defaults.memory=3Gi", "--upload-to", "s3://bucket/locks/",
               "--dry-run").out == ran.out


def test_a_stage_on_several_nodes_is_told_as_its_job(run):
    ran = run("alignment", "--profile", "params.production.yaml", "--lock", LOCK, "--dry-run")
    assert ran.status == 0, ran.err
    row = next(line for line in ran.out.split("\n") if line.strip().startswith("align-on-nodes "))
    assert " align_" in row and "TrainJob: nodes " in row and "nvidia.com/gpu 8" in row and "retries" in row


@pytest.mark.parametrize(("words", "sentences"), [
    (["training", "--lock", LOCK, "--set", "align.image.layer=2", "--set", "alien.x=1"],
     ["align.image.layer: params.yaml has no such knob; did you mean 'align.image.layers'?", "alien.x: params.yaml has no such knob"]),
    (["training", "--lock", LOCK, "--set", "align.image.layers=none", "--set", "score.seed=-1"],
     ["align.image.layers = none: ", "score.seed = -1: "]),
    (["training", "--lock", LOCK, "--set", "kubeflow.defaults.memory=lots"], ["kubeflow.defaults.memory = lots: is no amount of memory"]),
    (["training"], ["--upload-to not given: steps on the cluster cannot read the file assets.lock.yaml"]),
    (["training", "--upload-to", "/tmp"], ["--upload-to /tmp: "]),
    (["training", "--lock", "none.yaml", "--upload-to", "s3://b/c"], ["--lock none.yaml: no such file"]),
    (["training", "--lock", "s3://bucket/assets.lock.yaml"], ["name the file by its SHA-256"]),
    (["training", "--lock", LOCK, "--input", "features=s3://b/f"], ["features: is no input of the pipeline training"]),
    (["training", "--upload-to", "s3://b/c", "--profile", "params.production.yaml"], ["ingest.assets: assets.lock.yaml has no clap-htsat-unfused, "]),
    (["evaluation"], ["missing; name the URI of this input"]),
    (["evaluation", "--input", "assets"], ["--input assets: is no input; write it as NAME=URI"]),
    (["evaluation", "--input", "assets=s3://b/1", "--input", "assets=s3://b/2"], ["--input assets: comes twice"]),
    (["trainings", "--lock", LOCK], ["trainings: no such pipeline; there are training,"]),
    (["training", "--profile", "nowhere.yaml", "--lock", LOCK], ["nowhere.yaml: no such file"]),
], ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None)
def test_what_is_wrong_is_said_before_anything_is_sent(run, server, words, sentences):
    ran = run(*words)
    assert ran.status == 2
    for sentence in sentences:
        assert sentence in ran.err
    assert server.calls == []


def test_images_that_were_not_built_are_not_run(run, server, monkeypatch):
    monkeypatch.setattr("pipelines.compile.compile_one", lambda name, document, source, file: file.write_text(
        "deploymentSpec: {executors: {exec-align: {container: {image: 'anymal-train:unbuilt'}}, exec-lock: {importer: {}}}}"))
    ran = run("alignment", "--lock", LOCK)
    assert ran.status == 2
    assert "anymal-train:unbuilt: not built; build and push them" in ran.err
    assert server.calls == []


# --- what is sent


def test_a_run_is_sent_and_its_page_told(run, server):
    ran = run("alignment", "--lock", LOCK, "--set", "align.image.layers=5", "--experiment", "layers", "--pipeline-root", "s3://bucket/runs")
    assert ran.status == 0, ran.err
    assert server.calls == ["GET /apis/v2beta1/healthz"] * 2 + ["GET /apis/v2beta1/experiments", "POST /apis/v2beta1/experiments",
                                                                "POST /apis/v2beta1/runs"]
    (sent,) = server.runs
    assert server.experiments[0]["display_name"] == "layers"
    assert sent["service_account"] == "anymal-pipeline"
    assert sent["runtime_config"]["pipeline_root"] == "s3://bucket/runs"
    assert json.loads(sent["runtime_config"]["parameters"]["align_image"])["layers"] == 5
    assert sent["runtime_config"]["parameters"]["lock"] == LOCK
    assert sent["pipeline_spec"]["pipeline_spec"]["pipelineInfo"]["name"] == "anymal-alignment"
    assert sent["display_name"].startswith("alignment-")
    assert ran.out.split("\n")[1:] == [f"run {sent['display_name']}: {server.uri}/#/runs/details/run-1", ""]


def test_the_same_run_has_the_same_name_and_another_another(run, server):
    for setting in ("align.image.layers=5", "align.image.layers=5", "align.image.layers=3"):
        assert run("alignment", "--lock", LOCK, "--set", setting).status == 0
    first, second, third = (entry["display_name"] for entry in server.runs)
    assert first == second != third
    assert len(server.experiments) == 1, "an experiment that is there is used"


def test_a_token_file_is_read_and_a_namespace_named(run, monkeypatch, tmp_path):
    (tmp_path / "token").write_text(SECRET + "\n")
    with KfpServer(token=SECRET, multi_user=True) as server:
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", server.uri + "/")
        monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "token"))
        assert "KF_PIPELINES_NAMESPACE: not set" in run("alignment", "--lock", LOCK).err
        monkeypatch.setenv("KF_PIPELINES_NAMESPACE", "anymal")
        monkeypatch.setenv("KF_PIPELINES_UI_ENDPOINT", "https://kubeflow.example/pipeline")
        ran = run("alignment", "--lock", LOCK, "--run-name", "mine")
        assert "run mine: https://kubeflow.example/pipeline/#/runs/details/run-1" in ran.out
        assert server.experiments[0]["namespace"] == "anymal"


@pytest.mark.slow
@pytest.mark.usefixtures("s3_server")
def test_the_lock_is_uploaded_by_its_hash(run, server):
    from anymal.data.s3 import Storage

    assert run("training", "--upload-to", "s3://data/locks").status == 0
    content = (ROOT / "assets.lock.yaml").read_bytes()
    uri = f"s3://data/locks/{hashlib.sha256(content).hexdigest()}.yaml"
    assert server.runs[0]["runtime_config"]["parameters"]["lock"] == uri
    assert Storage().read(uri, 10**7) == content


# --- a server in trouble


@pytest.mark.parametrize(("path", "answer", "sentence"), [
    ("/healthz", (401, {"error": "x"}), "asked how it is, it answered 401: not logged in; renew the token in KF_PIPELINES_SA_TOKEN_PATH"),
    ("/healthz", (404, "<html>nginx</html>"), "it answered 404: there is no such thing; correct KF_PIPELINES_ENDPOINT"),
    ("/runs", (403, {"message": "no"}), "it answered 403: not allowed"),
    ("/runs", (400, {"message": "Invalid input: pipeline root"}), "it answered 400: Invalid input: pipeline root"),
    ("/experiments", (500, {"message": "database is away"}), "it answered 500: database is away"),
    ("", (200, "<html>Log in</html>"), "answers, but not as Kubeflow Pipelines does (perhaps with a log-in page)"),
])  # fmt: skip
def test_a_server_that_refuses_is_told_in_a_sentence(run, server, path, answer, sentence):
    server.override = lambda asked: answer if asked.endswith(path) else None
    ran = run("alignment", "--lock", LOCK)
    assert ran.status == 2
    assert sentence in ran.err
    assert server.uri in ran.err
    assert server.runs == []


@pytest.mark.parametrize(("variables", "sentence"), [
    ({}, "KF_PIPELINES_ENDPOINT = not set: names no server"),
    ({"KF_PIPELINES_ENDPOINT": "kubeflow.example"}, "KF_PIPELINES_ENDPOINT = kubeflow.example: names no server"),
    ({"KF_PIPELINES_ENDPOINT": "http://127.0.0.1:9"}, "it did not answer; check the address"),
    ({"KF_PIPELINES_ENDPOINT": "http://127.0.0.1:9", "KF_PIPELINES_SA_TOKEN_PATH": "/no"}, "KF_PIPELINES_SA_TOKEN_PATH = /no: cannot be read"),
])  # fmt: skip
def test_a_server_that_is_not_there_is_told_in_a_sentence(run, monkeypatch, variables, sentence):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    ran = run("alignment", "--lock", LOCK)
    assert ran.status == 2
    assert sentence in ran.err


# --- to the end


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.api.PAUSE", 0.01)


@pytest.mark.usefixtures("hurried")
def test_a_run_is_followed_to_its_end(run, server):
    server.progress = [running("PENDING", {}), running("RUNNING", {"preflight": "RUNNING"}), (503, {"message": "restarting"}),
                       running("RUNNING", {"preflight": "SUCCEEDED", "ingest": "RUNNING"}),
                       running("SUCCEEDED", {"preflight": "SUCCEEDED", "ingest": "SUCCEEDED"})]
    ran = run("alignment", "--lock", LOCK, "--wait")
    assert ran.status == 0, ran.err
    assert ran.out.split("\n")[1:-2] == [
        "preflight: running (0 of 1 begun tasks ended)", "preflight: succeeded (1 of 2 begun tasks ended)",
        "ingest: running (1 of 2 begun tasks ended)", "ingest: succeeded (2 of 2 begun tasks ended)"]


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(("state", "tasks", "sentence"), [
    ("FAILED", {"preflight": "SUCCEEDED", "align": "FAILED"}, "ended as failed: tasks that failed: align; exit status 2; its pages and logs: http"),
    ("CANCELED", {"align": "CANCELED"}, "the run ended as canceled; its pages"),
])  # fmt: skip
def test_a_run_that_fails_gives_its_status_and_names_the_tasks(run, server, state, tasks, sentence):
    server.progress = [running(state, tasks, error="exit status 2")]
    ran = run("alignment", "--lock", LOCK, "--wait")
    assert ran.status == 2
    assert sentence in ran.err


@pytest.mark.usefixtures("hurried")
def test_a_server_that_stays_away_is_not_waited_for_for_ever(server):
    from pipelines.api import Server, Unanswered, follow

    server.progress = [(502, {"message": "bad gateway"})]
    with pytest.raises(Unanswered, match=r"502: bad gateway; the run itself goes on: http"):
        follow(Server(), "run-1", patience=0.1)


def test_the_stand_in_refuses_what_the_schemas_do_not_have(server, tmp_path):
    """Otherwise it would prove nothing."""
    from pipelines.api import Server, ServerError

    package = tmp_path / "pipeline.yaml"
    prepared = submit.prepare("alignment", Path("params.yaml"), [], {"lock": LOCK}, package)
    client = Server()
    for arguments, sentence in (({}, "missing parameters"), (prepared.arguments | {"surprise": 1}, "surprise is not declared"),
                                (prepared.arguments | {"align_image": {"layers": 1}}, "align_image is no STRING")):
        with pytest.raises(ServerError, match=sentence):
            client.start(package, arguments, experiment="x", name="x", pipeline_root=None, service_account="x")
    client.start(package, prepared.arguments, experiment="x", name="x", pipeline_root=None, service_account="x")
    assert len(server.runs) == 1
