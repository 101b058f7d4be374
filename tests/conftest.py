"""Parts that several tests share: MLflow stores, a real MLflow server, and a tiny model with its assets."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.s3_server import S3Server

AWS_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE")
MLFLOW_VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "ANYMAL_GRAPH_RUN", "ANYMAL_TRACKING", "ANYMAL_GIT_REVISION",
                    "RANK")


@pytest.fixture(autouse=True)
def no_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests record nothing unless they ask for a store; what the caller's environment says of MLflow does not matter."""
    for variable in MLFLOW_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("ANYMAL_TRACKING", "off")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite store with MLflow's tables and nothing else: making one takes seconds, copying it none."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh SQLite store in an empty working directory, as the default address finds it; tracking is on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ANYMAL_TRACKING")
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    return tmp_path / "mlflow.db"


def free_port() -> int:
    """A port of the loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """A real MLflow server on the loopback, with an SQLite database and its own artifact folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with (self._folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port), "--workers", "1",
                 "--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}", "--artifacts-destination", str(self._folder / "artifacts")],
                env=environment, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if requests.get(f"{self.uri}/health", timeout=2).ok:
                    return
            except requests.RequestException:
                time.sleep(0.5)
        self.stop()
        raise RuntimeError(f"the MLflow server did not start: {(self._folder / 'server.log').read_text()[-2000:]}")

    def freeze(self) -> None:
        """Let it answer nothing, its connections open, until `thaw`."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End it and its workers at once."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def session_server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Server]:
    """The server of `mlflow_server`, which starts it."""
    folder = tmp_path_factory.mktemp("mlflow-server")
    shutil.copyfile(empty_store, folder / "server.db")
    server = Server(folder)
    yield server
    server.stop()


@pytest.fixture
def mlflow_server(session_server: Server) -> Server:
    """A running real server. One per session, for it takes 20 to 70 seconds to start; one that a test stopped is started again."""
    if session_server.process is None:
        session_server.start()
    return session_server


@pytest.fixture(scope="session")
def session_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The server of `s3_server`, which starts it."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    yield server
    server.kill()


@pytest.fixture
def s3_server(session_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """A running real S3 server that the environment names; one per session, and one that a test killed is started again."""
    if not session_s3.running:
        session_s3.start()
    for variable in AWS_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    for name, value in session_s3.environment.items():
        monkeypatch.setenv(name, value)
    return session_s3


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data/assets` (a random two-layer Llama and image encoder) and `models/checkpoints/{image,audio,video,imu}`, untrained."""
    from anymal.data.assets import asset_document, parse_entry
    from anymal.data.manifest import write_manifest
    from tests import tiny

    root = tmp_path_factory.mktemp("tiny-model")
    assets = tiny.make_assets(root / "data" / "assets")
    for folder in assets.iterdir():
        entry = {"kind": "file", "path": str(folder), "sha256": "0" * 64, "licence": {"id": "CC0-1.0"}}
        (folder / "asset.json").write_text(json.dumps(asset_document(folder.name, parse_entry(folder.name, entry, "test"))))
        write_manifest(folder)
    checkpoints = root / "models" / "checkpoints"
    tiny.make_checkpoint(checkpoints / "image", "image")
    tiny.make_checkpoint(checkpoints / "video", "video", seed=1, encoder=tiny.VIDEO_ENCODER, frames=2)
    for seed, modality in enumerate(("audio", "imu"), 2):
        encoder = tiny.make_trained_encoder(tmp_path_factory.mktemp("encoders") / modality, modality)
        tiny.make_checkpoint(checkpoints / modality, modality, seed=seed, trained_encoder=encoder, tokens=2, linear=True)
    return root


@pytest.fixture
def workspace(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a copy of the tiny model's files, a medium of each modality (`tiny.MEDIA`), and a cache of its own."""
    from tests import tiny

    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    for name, content in tiny.MEDIA.values():
        (tmp_path / name).write_bytes(content())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANYMAL_CACHE", str(tmp_path / "cache"))
    return tmp_path
