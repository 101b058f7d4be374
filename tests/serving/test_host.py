"""Following a real MLflow server: a new champion takes over under load without a dropped or wrong answer, and the registry may be down."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anymal import registry
from anymal.model.bundle import write_bundle
from anymal.serving.answer import Request, answer
from anymal.serving.host import Host
from tests.conftest import Server
from tests.model.test_bundle import INFERENCE
from tests.serving.running_server import asked, running, text

pytestmark = pytest.mark.slow
LENGTHS = {1: 5, 2: 3}
"""Version -> tokens of its answers: what tells them apart."""


def until(found: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What `found` gives once it gives something."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


@pytest.fixture
def versions(mlflow_server: Server, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two versions of a model in the registry that answer differently; version 1 is champion. Their name."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    name = f"served-{time.monotonic_ns()}"
    for number in (1, 2):
        bundle = workspace / f"bundle-{number}"
        write_bundle(bundle, checkpoints=[workspace / "models/checkpoints/image"], assets=workspace / "data/assets", card="# Card\n",
                     inference={**INFERENCE, "max_new_tokens": LENGTHS[number]}, provenance={"seed": number})
        registry.register_bundle(bundle, name=name, alias="candidate", metrics={}, tags={}, evidence={})
    point(name, 1)
    return name


def point(name: str, version: int) -> None:
    from mlflow.tracking import MlflowClient

    MlflowClient().set_registered_model_alias(name, "champion", str(version))


def test_the_champion_moves_under_load(versions: str):
    with running(f"models:/{versions}@champion", rows=3, waiting=50) as server:
        model = server.host.served.engine.model
        wanted = {f"{versions}/{number}": answer(model, [Request("what is red ?")], max_new_tokens=length, batch_size=1)[0]
                  for number, length in LENGTHS.items()}
        said: list[tuple[str, str]] = []
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                body = server.post(asked(text("what is red ?"), model=versions)).json()
                said.append((body["model"], body["choices"][0]["message"]["content"]))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: len(said) > 10)
        point(versions, 2)
        until(lambda: server.host.served.version == "2")
        count = len(said)
        until(lambda: len(said) > count + 20)
        stop.set()
        for thread in threads:
            thread.join(20)
        assert wanted[f"{versions}/1"] != wanted[f"{versions}/2"]
        assert [one for one in said if wanted[one[0]] != one[1]] == [] and {label for label, _ in said} == set(wanted)
        assert [label for label, _ in said[-8:]] == [f"{versions}/2"] * 8
        point(versions, 1)
        until(lambda: server.host.served.version == "1")
        until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("anymal-drain")])


def test_the_registry_may_be_down_at_the_start_and_later(versions: str, mlflow_server: Server):
    mlflow_server.freeze()
    try:
        with running(f"models:/{versions}@champion", wait=False) as server:
            assert server.get("/health").ok and server.get("/ready").status_code == 503
            refused = server.post(asked(text("what is red ?"), model=versions))
            assert (refused.status_code, refused.json()["error"]["code"], refused.headers["retry-after"]) == (503, "not_ready", "2")
            mlflow_server.thaw()
            until(lambda: server.host.served, 90)
            mlflow_server.freeze()
            until(lambda: server.host.problem, 90)
            assert server.post(asked(text("what is red ?"), model=versions)).ok and server.get("/ready").ok
            mlflow_server.thaw()
            until(lambda: server.host.problem is None, 90)
    finally:
        mlflow_server.thaw()


def test_a_version_that_cannot_be_loaded_leaves_the_one_before(versions: str):
    loaded: list[str] = []

    def load(folder: Path) -> Any:
        from anymal.errors import BundleError
        from anymal.model.loading import load_bundle

        loaded.append(folder.name)
        if len(loaded) == 2:
            raise BundleError("its projector is of another kind")
        return load_bundle(folder)

    host = Host(f"models:/{versions}@champion", rows=1, waiting=1, follow_seconds=0.1, load=load)
    host.start()
    until(lambda: host.served)
    point(versions, 2)
    until(lambda: host.problem)
    time.sleep(1)
    assert (len(loaded), host.served.version) == (2, "1") and "another kind" in host.problem
    point(versions, 1)
    until(lambda: host.problem is None)
    host.close(timeout=5)
    assert host.served is None
