"""A real Docker engine, and the images that `make images` builds with it: for tests, once per session."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "engine.sh"


class Engine:
    """The engine that answers anyway, or a private one (scripts/engine.sh) that is ended by whoever started it."""

    def __init__(self) -> None:
        self._environment = pytest.MonkeyPatch()
        self._ours = False

    def start(self) -> None:
        """Make sure that one answers, and point this process and its children at it."""
        self._ours = subprocess.run([SCRIPT, "status"], check=False, capture_output=True).returncode != 0
        started = subprocess.run([SCRIPT, "start"], check=False, capture_output=True, text=True)
        assert started.returncode == 0, started.stderr
        for line in started.stdout.splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            self._environment.setenv(name, value.replace("$PATH", os.environ["PATH"]))

    @property
    def client(self) -> Any:
        """A client of docker's own library; the caller closes it."""
        import docker

        return docker.from_env(timeout=300)

    def stop(self) -> None:
        """End it if it was started here."""
        if self._ours:
            subprocess.run([SCRIPT, "stop"], check=True, capture_output=True)
        self._environment.undo()


@dataclass(frozen=True)
class Images:
    """What was built."""

    file: Path
    """dist/images.yaml, for ANYMAL_IMAGES."""
    names: dict[str, str] = field(default_factory=dict)
    """`data`, `train`, `eval`, `serve`, `mlflow` -> the image as the engine knows it."""


def build_images() -> Images:
    """Build all of them with the engine that the environment names; layers of earlier builds are used again."""
    built = subprocess.run([sys.executable, ROOT / "scripts" / "images.py"], check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    file = ROOT / "dist" / "images.yaml"
    entries = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))["images"]
    return Images(file, {entry["name"].removeprefix("anymal-"): f"{entry['newName']}:{entry['newTag']}" for entry in entries})
