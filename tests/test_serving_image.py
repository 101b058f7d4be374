"""The image anymal-serve as a cluster runs it: any user, nothing written but /tmp, bundle and guard mounted. It answers, refuses and drains."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.engine import Engine, Images
from tests.model.test_bundle import make
from tests.safety.tiny_guard import make_guard
from tests.serving.running_server import MODEL, asked, part, text

pytestmark = pytest.mark.slow
KEY = "k" * 24
HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def mounted(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, its assets, a guard and a file of keys, for anyone to read."""
    folder = tmp_path_factory.mktemp("mounted")
    make(tiny_model, str(folder / MODEL), ("image", "audio"))
    shutil.copytree(tiny_model / "data" / "assets", folder / "data" / "assets")
    make_guard(folder / "guard", tmp_path_factory.mktemp("networks"))
    (folder / "keys").write_text(f"{KEY}\n")
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
    return folder


class Container:
    """A running server."""

    def __init__(self, engine: Engine, image: str, folder: Path, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._client = engine.client
        words = ["anymal", "serve", MODEL, *options, "--port", str(self.port), "--keys", "keys"]
        self.container = self._client.containers.run(
            image, words, detach=True, user="4321:0", read_only=True, tmpfs={"/tmp": ""}, network_mode="host", cap_drop=["ALL"], working_dir="/srv",
            security_opt=["no-new-privileges"], volumes={str(folder): {"bind": "/srv", "mode": "ro"}})

    @property
    def log(self) -> str:
        """All that it said."""
        return self.container.logs().decode()

    def wait_until_ready(self) -> None:
        """Return when it answers `/ready` with 200."""
        until = time.monotonic() + 300
        while True:
            self.container.reload()
            assert self.container.status == "running" and time.monotonic() < until, self.log
            try:
                if requests.get(f"http://127.0.0.1:{self.port}/ready", timeout=5).status_code == 200:
                    return
            except requests.ConnectionError:
                pass  # it does not listen yet
            time.sleep(0.5)

    def post(self, body: Any, **options: Any) -> requests.Response:
        """A chat request."""
        return requests.post(f"http://127.0.0.1:{self.port}/v1/chat/completions", json=body, timeout=120, **{"headers": HEADERS, **options})

    def exit_code(self) -> int:
        """Its status once it has ended by itself."""
        code: int = self.container.wait(timeout=120)["StatusCode"]
        return code

    def remove(self) -> None:
        """End it at once."""
        self.container.remove(force=True)
        self._client.close()


@pytest.fixture
def server(docker_engine: Engine, images: Images, mounted: Path) -> Iterator[Container]:
    found = Container(docker_engine, images.names["serve"], mounted, "--guard", "guard")
    try:
        found.wait_until_ready()
        yield found
    finally:
        found.remove()


def test_it_answers_behind_the_guard_and_writes_to_tmp_only(server: Container):
    answer = server.post(asked(text("what is red ?"), max_tokens=8))
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    assert choice["finish_reason"] in ("stop", "length") and choice["message"]["content"]
    # A picture is read for text too, by the reader that the image holds.
    seen = server.post(asked(part("image"), text("what colour ?"), max_tokens=8))
    assert seen.status_code == 200 and seen.json()["choices"][0]["finish_reason"] in ("stop", "length"), seen.text
    refused = server.post(asked(text("red " * 6000)))
    assert refused.json()["choices"][0]["finish_reason"] == "content_filter" and refused.headers["x-anymal-reasons"] == "too_long"
    assert server.post(asked(text("what is red ?")), headers={}).status_code == 401
    user = server.container.exec_run(["id", "-u"]).output.decode().strip()
    assert user == "4321"
    assert server.container.exec_run(["touch", "/opt/anymal/x"]).exit_code != 0
    assert {change["Path"] for change in server.container.diff() or []} <= {"/tmp", "/srv"}


def test_told_to_stop_it_ends_the_answers_under_way(server: Container):
    """Greedy answers are the same each time: the longest of a few is asked for once more, and the server told to stop in the middle of it."""
    bodies = [asked(text(f"what is {word} ?"), max_tokens=1000) for word in ("red", "a cat", "the sound of a drum", "there", "left", "the picture")]
    answers = [(server.post(body).json(), body) for body in bodies]
    whole, body = max(answers, key=lambda found: found[0]["usage"]["completion_tokens"])
    assert whole["usage"]["completion_tokens"] > 200
    with server.post(body | {"stream": True}, stream=True) as answer:
        lines = (line for line in answer.iter_lines() if line)
        first = next(lines)
        server.container.kill("SIGTERM")
        events = [json.loads(line.removeprefix(b"data: ")) for line in (first, *lines) if line != b"data: [DONE]"]
    assert "".join(event["choices"][0]["delta"].get("content") or "" for event in events) == whole["choices"][0]["message"]["content"]
    assert events[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert server.exit_code() == 0, server.log
    with pytest.raises(requests.ConnectionError):
        server.post(body)


@pytest.mark.parametrize(("options", "said"), [((), "Missing option '--guard'"), (("--guard", "nowhere"), "nowhere: no such folder of a guard")])
def test_without_a_guard_it_does_not_start(docker_engine: Engine, images: Images, mounted: Path, options: tuple[str, ...], said: str):
    found = Container(docker_engine, images.names["serve"], mounted, *options)
    try:
        assert found.exit_code() == 2, found.log
        assert said in found.log and "Traceback" not in found.log
    finally:
        found.remove()


def test_a_server_that_loads_ends_when_told_to(docker_engine: Engine, images: Images, mounted: Path):
    """The first process of a container ignores signals that it does not handle."""
    found = Container(docker_engine, images.names["serve"], mounted, "--guard", "guard")
    try:
        found.container.reload()
        status = Path(f"/proc/{found.container.attrs['State']['Pid']}/status")
        until = time.monotonic() + 60
        while not int(re.search(r"SigCgt:\s*(\w+)", status.read_text())[1], 16) >> (signal.SIGTERM - 1) & 1:
            assert time.monotonic() < until, found.log
            time.sleep(0.02)
        found.container.kill("SIGTERM")
        assert found.exit_code() == 0, found.log
        assert "answering" not in found.log
    finally:
        found.remove()
