"""A real Label Studio on the loopback, in an environment of its own, and the calls of its API that a study makes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests
from filelock import FileLock

from anymal.data.asset_folders import cache_folder
from pipelines.servers import Server, free_port

REQUIREMENTS = Path(__file__).with_name("label-studio.txt")
USER, PASSWORD, TOKEN = "ann@example.org", "only-for-tests", "0123456789abcdef0123456789abcdef01234567"
SETTINGS = {
    "COLLECT_ANALYTICS": "false", "LATEST_VERSION_CHECK": "false", "SENTRY_DSN": "", "FRONTEND_SENTRY_DSN": "", "FEATURE_FLAGS_OFFLINE": "true",
    "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true", "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true", "DJANGO_DB": "sqlite", "DEBUG": "false",
    "LOG_LEVEL": "WARNING",
}  # fmt: skip
"""Nothing is reported to anybody, and nobody else can make an account."""


def environment() -> Path:
    """The folder of the pinned Label Studio (`venv`) and an empty database of it (`data`); made once, then found in the cache."""
    text = REQUIREMENTS.read_text(encoding="utf-8")
    version = next(line.partition("==")[2] for line in text.splitlines() if line.startswith("label-studio=="))
    folder = cache_folder() / "label-studio" / f"{version}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            uv, python = Path(sys.executable).with_name("uv"), folder / "venv" / "bin" / "python"
            for command in ([uv, "venv", "--python", sys.executable, folder / "venv"],
                            [uv, "pip", "install", "--python", python, "--requirement", REQUIREMENTS]):
                done = subprocess.run(command, check=False, capture_output=True, text=True)
                assert done.returncode == 0, done.stderr
            template = LabelStudio(folder / "data", venv=folder / "venv")
            template.start()
            template.stop()
            (folder / "complete").touch()
    return folder


class LabelStudio(Server):
    """`label-studio start` with its data in a folder and one account."""

    name = "label-studio"

    def __init__(self, folder: Path, *, venv: Path, served: Path | None = None) -> None:
        """
        Args:
            served: folder below which projects may be given local files.
        """
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder)
        self._port = free_port()
        self._program = venv / "bin" / "label-studio"
        self.served = served or folder
        self._settings = {**SETTINGS, **({} if served is None else {
            "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true", "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(served)})}
        self.uri = f"http://127.0.0.1:{self._port}"
        self._session = requests.Session()
        self._session.headers["Authorization"] = f"Token {TOKEN}"

    def start(self) -> None:
        command = [str(self._program), "start", "--no-browser", "--data-dir", str(self._folder), "--internal-host", "127.0.0.1",
                   "--port", str(self._port), "--username", USER, "--password", PASSWORD, "--user-token", TOKEN]
        self._launch(command, {**os.environ, **self._settings}, self._ready)

    def _ready(self) -> bool:
        try:
            return self._session.get(f"{self.uri}/api/projects/", timeout=5).ok
        except requests.RequestException:
            return False

    def call(self, method: str, path: str, **arguments: Any) -> Any:
        """What the API answers; a refusal is an error that holds its text."""
        answer = self._session.request(method, f"{self.uri}{path}", timeout=60, **arguments)
        assert answer.ok, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json() if answer.content else None

    def user(self, email: str = USER) -> int:
        """The number of an account, which is made if there is none."""
        known = {entry["email"]: entry["id"] for entry in self.call("GET", "/api/users/")}
        return int(known[email] if email in known else self.call("POST", "/api/users/", json={"email": email, "username": email})["id"])

    def create(self, folder: Path, title: str) -> int:
        """A project with a study's labelling configuration and tasks; its number."""
        project = self.call("POST", "/api/projects/", json={"title": title, "label_config": (folder / "labelling.xml").read_text()})["id"]
        tasks = json.loads((folder / "tasks.json").read_text())
        done = self.call("POST", f"/api/projects/{project}/import", json=tasks)
        assert done["task_count"] == len(tasks)
        return int(project)

    def serve(self, project: int, folder: Path) -> None:
        """Let a project show the files of a folder below the one that is served."""
        self.call("POST", "/api/storages/localfiles/", json={"project": project, "path": str(folder), "title": folder.name, "use_blob_urls": True})

    def export(self, project: int) -> list[dict[str, Any]]:
        """A project's tasks with their annotations, as the button Export gives them in the format JSON."""
        chosen = {"exportType": "JSON", "download_all_tasks": "true"}
        exported: list[dict[str, Any]] = self.call("GET", f"/api/projects/{project}/export", params=chosen)
        return exported

    def annotate(self, task: int, annotation: Mapping[str, Any]) -> None:
        """Submit an annotation."""
        self.call("POST", f"/api/tasks/{task}/annotations/", json=dict(annotation))


def wait_for(condition: Any, seconds: float = 30) -> None:
    """Until a condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
