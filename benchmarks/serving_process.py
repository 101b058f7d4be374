"""`anymal serve` as a process of its own, on the loopback, with its memory and its log."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

START_SECONDS, STOP_SECONDS = 600.0, 60.0
ENTRY = " anymal.serving {"
"""What stands before a request's line in the log."""


class ServerProcess:
    """A server that answers."""

    def __init__(self, url: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.url = url
        self._process, self._log = process, log
        self._memory = psutil.Process(process.pid)
        self.model: str = httpx.get(f"{url}/v1/models", timeout=30).raise_for_status().json()["data"][0]["id"]

    def resident_mib(self) -> float:
        """Resident set of the process."""
        return self._memory.memory_info().rss / 2**20

    def journal(self, identifier: str) -> dict[str, Any]:
        """What the server noted of an answer; it does so just after the answer's last byte."""
        until = time.monotonic() + 10
        while time.monotonic() < until:
            for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines():
                if ENTRY in line and identifier in line:
                    entry: dict[str, Any] = json.loads(line[line.index(ENTRY) + len(ENTRY) - 1 :])
                    return entry
            time.sleep(0.02)
        raise SystemExit(f"the server's log has no line of {identifier}")


@contextmanager
def served(bundle: str, guard: str, folder: Path, options: Sequence[str]) -> Iterator[ServerProcess]:
    """The server, loaded and ready, until the block ends.

    Args:
        folder: for its log.
        options: of `anymal serve`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / f"server-{port}.log"
    command = [sys.executable, "-m", "anymal", "serve", bundle, "--guard", guard, "--port", str(port), *options]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=stream, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url, process, log)
            yield ServerProcess(url, process, log)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until, said = time.monotonic() + START_SECONDS, "nothing"
    while process.poll() is None and time.monotonic() < until:
        try:
            ready = httpx.get(f"{url}/ready", timeout=5)
        except httpx.TransportError as error:
            said = str(error)
        else:
            if ready.status_code == httpx.codes.OK:
                return
            said = ready.text
        time.sleep(0.5)
    raise SystemExit(f"the server did not become ready ({said}); its log ends:\n{log.read_text(encoding='utf-8', errors='replace')[-3000:]}")
