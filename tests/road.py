"""The whole road on real packages and real weights at a small size, through two doors at once: `dvc repro`, and the pipeline in containers."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from anymal.config import read_document
from anymal.overrides import overridden

ROOT = Path(__file__).parent.parent
REDUCED = ROOT / "pipelines" / "reduced.yaml"
SECONDS = 3600
TRACKED = {"ANYMAL_TRACKING": "on", "OMP_NUM_THREADS": "1"}
"""Environment of both doors. They share two cores, and the number of threads is part of what a result depends on."""


def shrink(params: dict[str, Any]) -> dict[str, Any]:
    """The demo's profile as `pipelines.local --reduced` has it, without its largest source of pictures; the guard learns from some of them."""
    small = overridden(params, read_document(REDUCED).items(), "params.yaml")
    del small["curate_image"]["sources"]["openclipart"]
    return small


def clone_into(folder: Path) -> Path:
    """A copy of the files that git knows, with a small profile, committed in a repository of its own."""
    files = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, files.decode().split("\0")):
        if (ROOT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    with (folder / "params.yaml").open("w") as stream:
        YAML().dump(shrink(read_document(ROOT / "params.yaml")), stream)
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "small"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


class Command:
    """A command that runs in a folder while the test goes on."""

    def __init__(self, folder: Path, *words: str, **environment: str) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._words = words
        self._process = subprocess.Popen(words, cwd=folder, env={**os.environ, "PATH": path, **environment}, stdout=subprocess.PIPE,
                                         stderr=subprocess.PIPE, text=True)
        self._said: tuple[str, str] = ("", "")
        # What it prints is read while it runs: a full pipe would stop it.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        self._said = self._process.communicate()

    def wait(self) -> str:
        """Its standard output, once it ended well."""
        self._reader.join(SECONDS)
        if self._reader.is_alive():
            self.stop()
        stdout, stderr = self._said
        assert self._process.returncode == 0, f"{' '.join(self._words)}\n{stdout[-4000:]}\n{stderr[-4000:]}"
        return stdout

    def stop(self) -> None:
        """End it as `kill` does."""
        self._process.terminate()
        self._process.wait()


def run(folder: Path, *words: str, **environment: str) -> str:
    """What a command prints that ends well."""
    return Command(folder, *words, **environment).wait()


class Containers:
    """`python -m pipelines.local` at work; the first container that trains a projector is killed in the middle."""

    def __init__(self, clone: Path, folder: Path, client: Any, images: Path) -> None:
        self.folder, self.killed = folder, ""
        """The task whose container was killed."""
        self._client = client
        self._command = Command(clone, sys.executable, "-m", "pipelines.local", "training", "--folder", str(folder), ANYMAL_IMAGES=str(images),
                                **TRACKED)
        self._over = threading.Event()
        self._killer = threading.Thread(target=self._kill_one, daemon=True)
        self._killer.start()

    def _kill_one(self) -> None:
        from docker.errors import APIError

        while not (self._over.wait(0.05) or self.killed):
            with contextlib.suppress(OSError, ValueError, APIError):  # files are being replaced, containers end
                self.killed = self._kill_who_saved()

    def _kill_who_saved(self) -> str:
        """Kill the container of an alignment that saved its state before the last step, and say which; nothing if there is none."""
        for state in self.folder.glob("runs/1/outputs/*/align*/.checkpoint.partial/state/latest/state.json"):
            task = state.parents[3].name
            for container in self._client.containers.list(filters={"label": f"anymal.task={task}"}, ignore_removed=True):
                if 0 < json.loads(state.read_text())["step"] <= 4:
                    container.kill()
                    return task
        return ""

    def wait(self) -> Path:
        """The run's folder, once it is over."""
        try:
            self._command.wait()
        finally:
            self.stop()
        return self.folder / "runs" / "1"

    def stop(self) -> None:
        """End it, if it is not over."""
        self._over.set()
        self._killer.join()
        self._command.stop()
