"""A real server on the loopback over a tiny model, behind a guard that knows planted words."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from anymal.model.loading import load_bundle
from anymal.safety.guard import Guard
from anymal.serving.api import Limits, create_app
from anymal.serving.desk import Desk
from anymal.serving.host import Host
from anymal.serving.web import server_of
from tests import tiny
from tests.safety.planted_guard import PlantedModels

MODEL = "bundle"


class Running:
    """A server that answers."""

    def __init__(self, url: str, host: Host, desk: Desk) -> None:
        self.url, self.host, self.desk = url, host, desk

    def post(self, body: Any, **options: Any) -> requests.Response:
        """A chat request, as it comes."""
        return requests.post(f"{self.url}/v1/chat/completions", json=body, timeout=60, **options)

    def get(self, path: str, **options: Any) -> requests.Response:
        """Anything else."""
        return requests.get(f"{self.url}{path}", timeout=60, **options)


@contextmanager
def running(reference: str | Path, *, rows: int = 4, waiting: int = 16, models: Any = None, limits: Limits | None = None, seconds: float = 60.0,
            follow_seconds: float = 0.2, connections: int = 100, wait: bool = True, **options: Any) -> Iterator[Running]:
    """The server, until the block ends."""
    host = Host(str(reference), rows=rows, waiting=waiting, follow_seconds=follow_seconds, load=load_bundle)
    desk = Desk(host, Guard(models or PlantedModels(), reader=None), seconds=seconds, limit=64)
    server = server_of(create_app(desk, limits=limits or Limits(), **options), host="127.0.0.1", port=0, connections=connections, grace=30.0)
    thread = threading.Thread(target=server.run, daemon=True)
    host.start()
    thread.start()
    try:
        until = time.monotonic() + 60
        while not server.started or (wait and host.served is None):
            assert time.monotonic() < until and thread.is_alive(), host.problem
            time.sleep(0.02)
        yield Running(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", host, desk)
    finally:
        server.should_exit = True
        thread.join(20)
        host.close(timeout=10)
        assert not thread.is_alive()


FILES = {"image": lambda: tiny.picture("blue"), "audio": tiny.sound, "video": lambda: tiny.clip(("blue", "grey")), "imu": tiny.motion}
"""Modality -> content of a file that the planted guard lets pass: a red corner it does not."""


def encoded(modality: str) -> str:
    """The content of a small file of a modality, in base64."""
    return base64.b64encode(FILES[modality]()).decode()


def part(modality: str, data: str | None = None) -> dict[str, Any]:
    """A small file of a modality, as a part of a message."""
    data = data or encoded(modality)
    if modality in ("image", "video"):
        kind = {"image": "image/png", "video": "video/mp4"}[modality]
        return {"type": f"{modality}_url", f"{modality}_url": {"url": f"data:{kind};base64,{data}"}}
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}} if modality == "audio" else {
        "type": "imu", "imu": {"data": data, "format": "npy"}}


def text(words: str) -> dict[str, str]:
    """A text, as a part of a message."""
    return {"type": "text", "text": words}


def asked(*parts: Any, **options: Any) -> dict[str, Any]:
    """The body of a request of one message."""
    return {"model": MODEL, "messages": [{"role": "user", "content": list(parts)}], **options}
