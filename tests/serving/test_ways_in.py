"""The requests of README.md and docs/serving.md as they stand there, but for the ports: at the server, at MLflow's server and in a Python process.

All ask one tiny model behind one tiny guard, both from a real registry, and agree with each other.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import requests

from anymal import registry
from anymal.serving.guard import GUARD
from pipelines.servers import Server, free_port
from tests import tiny
from tests.conftest import Server as MlflowServer
from tests.model.test_bundle import make
from tests.safety.tiny_guard import make_guard
from tests.serving.running_server import asked, part, text

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent
PAGES = ("README.md", "docs/serving.md")
PORTS = {"chat": 8000, "invocations": 5001}
"""Of the pages."""
ANSWER_SECONDS = 300
LASTING = ("object", "model", "system_fingerprint", "usage", "choices")
"""Of an answer, all but its number and its time."""


def blocks(language: str) -> list[tuple[str, str]]:
    """Page and content of the fenced blocks of a language."""
    return [(page, block) for page in PAGES
            for block in re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)]


def command_of(words: str) -> str:
    """The line of docs/serving.md that begins to serve."""
    lines = [line for page, block in blocks("sh") if page == "docs/serving.md" for line in block.splitlines()]
    return next(line.partition("  #")[0].strip() for line in lines if words in line)


class Shown(Server):
    """A server that one of the pages' commands starts, at a port of its own."""

    def __init__(self, name: str, command: str, folder: Path, environment: dict[str, str], health: str) -> None:
        self.name = name
        super().__init__(folder)
        self._command, self._environment, self.port = re.sub(r" --port \d+", "", command), environment, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._health = f"{self.url}{health}"

    def start(self) -> None:
        self._launch(["bash", "-c", f"{self._command} --port {self.port}"], self._environment, self._ready)

    def _ready(self) -> bool:
        try:
            return requests.get(self._health, timeout=2).ok
        except requests.RequestException:
            return False


class World:
    """Where the requests are made: a folder with `cat.png`, an environment that names the registry, and the two servers."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.chat = Shown("serve", command_of("anymal serve models:/"), folder, environment, "/ready")
        self.invocations = Shown("mlflow-models-serve", command_of("mlflow models serve"), folder, environment, "/ping")

    def run(self, command: Sequence[str]) -> str:
        """What a command prints, its ports replaced."""
        for name, port in PORTS.items():
            command = [word.replace(f":{port}/", f":{getattr(self, name).port}/") for word in command]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def invoke(self, body: Any) -> requests.Response:
        """A request to MLflow's server."""
        return requests.post(f"{self.invocations.url}/invocations", json=body, timeout=ANSWER_SECONDS)

    def post(self, body: Any) -> requests.Response:
        """A request to the server."""
        return requests.post(f"{self.chat.url}/v1/chat/completions", json=body, timeout=ANSWER_SECONDS)


@pytest.fixture(scope="module")
def world(session_server: MlflowServer, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A registry with the champions `anymal` and `anymal-guard`, and both servers answering."""
    if session_server.process is None:
        session_server.start()
    folder = tmp_path_factory.mktemp("ways-in")
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
    (folder / "cat.png").write_bytes(tiny.picture("blue"))
    places = {"MLFLOW_TRACKING_URI": session_server.uri, "ANYMAL_CACHE": str(folder / "cache")}
    environment = {name: value for name, value in os.environ.items() if name != "ANYMAL_GUARD"}
    environment |= places | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ANYMAL_TRACKING", "off")
        for name, value in places.items():
            patch.setenv(name, value)
        bundle = make(folder, modalities=("image", "audio", "imu", "video"))
        registry.register_bundle(bundle, name="anymal", alias="champion", metrics={}, tags={}, evidence={})
        registry.register_bundle(make_guard(folder / "guard", folder / "networks"), name="anymal-guard", alias="champion", metrics={}, tags={},
                                 evidence={}, kind=GUARD)
        made = World(folder, environment)
        try:
            made.chat.start()
            made.invocations.start()
            yield made
        finally:
            made.chat.stop()
            made.invocations.stop()


def lasting(body: dict[str, Any]) -> dict[str, Any]:
    assert set(body) == {*LASTING, "id", "created"}, body
    return {name: body[name] for name in LASTING}


def test_every_curl_of_the_pages_is_answered(world: World):
    assert shutil.which("curl"), "curl is needed; on Debian: apt-get install curl"
    found = [(page, block) for page, block in blocks("sh") if "curl " in block]
    assert [page for page, _ in found] == ["README.md", "docs/serving.md", "docs/serving.md"]
    answers = [json.loads(world.run(["bash", "-euo", "pipefail", "-c", block])) for _, block in found]
    for answer in answers:
        assert answer["object"] == "chat.completion" and answer["model"].startswith("anymal/")
        assert answer["choices"][0]["finish_reason"] in ("stop", "length") and answer["choices"][0]["message"]["content"]
    assert lasting(answers[0]) == lasting(answers[1])


def test_every_python_block_of_the_pages_runs(world: World):
    found = [(page, block) for page, block in blocks("python") if "OpenAI(" in block or "mlflow" in block]
    assert len(found) == 2
    client, mlflow = (world.run([sys.executable, "-c", block]) for _, block in found)
    half = len(mlflow) // 2
    assert client.strip() and half > 1 and mlflow[:half] + "\n" + mlflow[:half] == mlflow, "predict and predict_stream differ"


def test_mlflows_server_answers_as_the_server_does(world: World):
    picture = asked(part("image"), text("what colour ?"), max_tokens=12)
    drawn = asked(text("what is red ?"), temperature=1.5, seed=4, stop=["a"])
    for body in (picture, asked(part("audio"), text("and"), part("imu"), text("?")), drawn, asked(text("what is red ? " * 1500))):
        body["model"] = "anymal"
        wanted = world.post(body)
        assert wanted.ok, wanted.text
        said = world.invoke(body)
        assert said.ok and lasting(said.json()) == lasting(wanted.json())
    assert wanted.json()["choices"][0]["finish_reason"] == "content_filter"
    wanted = lasting(world.post(picture | {"model": "anymal"}).json())
    del picture["model"]
    for wrapped, several in (({"inputs": picture}, False), ({"dataframe_records": [picture, picture]}, True),
                             ({"dataframe_split": {"columns": [*picture], "data": [[*picture.values()]]}}, True)):
        found = world.invoke(wrapped).json()["predictions"]
        assert [lasting(answer) for answer in (found if several else [found])] == [wanted] * (len(found) if several else 1)


def test_mlflows_server_says_what_is_wrong(world: World):
    for body, said in ((asked(text("x"), n=2), "n: input should be 1"), (asked(text("x"), tempurature=1), "tempurature: is not supported"),
                       (asked({"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}), "fetches no media from addresses")):
        body["model"] = "anymal"
        refused = world.invoke(body)
        assert refused.status_code == 400 and refused.json()["stack_trace"].strip().splitlines()[-1].count(said) == 1


def test_mlflows_server_does_not_start_without_a_guard(world: World):
    command = re.sub(r"^ANYMAL_GUARD=\S+ |--port \d+", "", command_of("mlflow models serve"))
    done = subprocess.run(["bash", "-c", f"{command} --port {free_port()}"], cwd=world.folder, env=world.environment, capture_output=True, text=True,
                          timeout=ANSWER_SECONDS, check=False)
    assert done.returncode != 0 and "ANYMAL_GUARD is not set: this model answers behind its guard only" in done.stderr
