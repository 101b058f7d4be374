"""Parts that several tests share: MLflow stores, a real MLflow server, and a tiny model with its assets."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported. Processes that share the cores and compute with two threads each spend most of the time waiting for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from pipelines.servers import MlflowServer
from tests.browser import Chromium, find_chromium
from tests.engine import Engine, Images, build_images
from tests.road import TRACKED, Containers, clone_into, run
from tests.s3_server import S3Server

AWS_VARIABLES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE")
MLFLOW_VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "ANYMAL_GRAPH_RUN", "ANYMAL_TRACKING", "ANYMAL_GIT_REVISION",
                    "RANK")


CONTAINERS = {"clone", "road", "containers", "docker_engine", "images"}
"""Fixtures that one process has for the whole session."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `--dist loadgroup` a file's tests stay together, and those of all files that need containers or the graph's results do.

    First of all plugins, for xdist reads the groups in the same hook.
    """
    needing = {item.path for item in items if CONTAINERS & set(getattr(item, "fixturenames", ()))}
    for item in items:
        item.add_marker(pytest.mark.xdist_group("containers" if item.path in needing else item.nodeid.partition("::")[0]))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to go on where xdist left the groups aside, as 3.8.0 does under pytest 9.2: two processes would build the same images at once."""
    if session.config.getoption("loadgroup", False) and any("@" not in item.nodeid for item in session.items):
        raise pytest.UsageError("pytest-xdist did not group the tests: it does not know this version of pytest. Use the versions of constraints.txt.")


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


class Server(MlflowServer):
    """A real MLflow server on the loopback, which can be made to answer nothing."""

    def freeze(self) -> None:
        """Let it answer nothing, its connections open, until `thaw`."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGCONT)


@pytest.fixture(scope="session")
def session_server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Server]:
    """The server of `mlflow_server`, which starts it."""
    folder = tmp_path_factory.mktemp("mlflow-server")
    shutil.copyfile(empty_store, folder / "mlflow.db")
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
def chromium() -> Chromium:
    """A Chromium that can be started."""
    return find_chromium()


@pytest.fixture(scope="module")
def browser(chromium: Chromium) -> Iterator[Any]:
    """A running headless Chromium, shared by the tests of one file (see `Chromium.launched`): a `playwright.sync_api.Browser`."""
    with chromium.launched() as started:
        yield started


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[Engine]:
    """A running Docker engine that the environment names."""
    engine = Engine()
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture(scope="session")
def images(docker_engine: Engine) -> Images:
    """The project's container images, built by `docker_engine`; a first build takes minutes."""
    return build_images()


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with these sources and a small profile; assets come through the user's cache, if there is one."""
    return clone_into(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="session")
def containers(clone: Path, docker_engine: Engine, images: Images, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """The small profile's pipeline, at work in containers."""
    client = docker_engine.client
    started = Containers(clone, tmp_path_factory.mktemp("kfp"), client, images.file)
    yield started
    started.stop()
    client.close()


@pytest.fixture(scope="session")
def road(request: pytest.FixtureRequest, clone: Path) -> Path:
    """The clone after a `dvc repro`. If this session runs the pipeline in containers too, that goes on beside it."""
    if any("containers" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("containers")
    run(clone, "dvc", "repro", MLFLOW_TRACKING_URI=f"sqlite:///{clone / 'mlflow.db'}", ANYMAL_GRAPH_RUN="end-to-end", **TRACKED)
    return clone


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
