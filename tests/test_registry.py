"""The registry against a real MLflow server (artifacts go through it), and what may be sent to a served model."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from anymal import registry, tracking
from anymal.errors import BundleError, DataError, TrackingError
from anymal.serving.base64_media import decode_medium
from pipelines.servers import free_port
from tests.conftest import Server
from tests.model.test_bundle import contents, make


@pytest.mark.slow
def test_registers_on_a_server_and_comes_back_byte_for_byte(mlflow_server: Server, workspace: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    bundle = make(workspace)
    first = registry.register_bundle(bundle, name="served", alias="candidate", metrics={}, tags={"input.checkpoint": "a" * 64},
                                     evidence={"README.md": bundle / "README.md"})
    again = registry.register_bundle(bundle, name="served", alias="champion", metrics={}, tags={}, evidence={})
    assert (first.version, first.created, again.version, again.created) == (1, True, 1, False)
    for reference in ("models:/served@candidate", "models:/served@champion", "models:/served/1"):
        assert contents(registry.resolve_bundle(reference)) == contents(bundle)
        with registry.evidence_of(registry.find_version(reference)) as evidence:
            assert contents(evidence) == {"README.md": (bundle / "README.md").read_bytes()}

    cached = registry.resolve_bundle("models:/served/1")
    assert cached.is_relative_to(workspace / "cache")
    (cached / "README.md").write_text("changed")
    with pytest.raises(BundleError, match=r"changed README\.md"):
        registry.resolve_bundle("models:/served/1")


def test_an_unreachable_registry_is_named_before_anything_is_written(workspace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    for action in (lambda: registry.resolve_bundle("models:/anymal@candidate"),
                   lambda: registry.register_bundle(make(workspace), name="anymal", alias="candidate", metrics={}, tags={}, evidence={})):
        with pytest.raises(TrackingError, match="MLFLOW_TRACKING_URI = http://127"):
            action()
    assert tracking.run_id() is None


def test_a_local_folder_needs_no_registry(workspace, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert registry.resolve_bundle("models/bundle") == Path("models/bundle")


@pytest.mark.parametrize("reference", ["models:/anymal", "models:/anymal@", "models:/anymal/x", "models:/../x@y/z", "models:/"])
def test_addresses_that_name_no_version_are_refused(reference):
    with pytest.raises(BundleError, match="is no address of a registered model"):
        registry.resolve_bundle(reference)


def test_media_arrive_as_base64_or_data_uri_and_never_as_a_path(tmp_path):
    content = bytes(range(256))
    text = base64.b64encode(content).decode()
    assert decode_medium(text, "row 0") == decode_medium(f"data:image/png;base64,{text}", "row 0") == content
    (tmp_path / "secret.png").write_bytes(content)
    for bad in (str(tmp_path / "secret.png"), "data:image/png,plain", "not base64!", text[:-3] + "*"):
        with pytest.raises(DataError, match=r"row 0.*neither base64 nor a data URI"):
            decode_medium(bad, "row 0")


def test_media_above_the_limit_are_refused_before_decoding(monkeypatch):
    monkeypatch.setattr("anymal.serving.base64_media.MAX_MEDIUM_BYTES", 2**20)
    assert len(decode_medium(base64.b64encode(bytes(2**20)).decode(), "row 0")) == 2**20
    with pytest.raises(DataError, match="more than 1 MiB"):
        decode_medium(base64.b64encode(bytes(2**20 + 8)).decode(), "row 0")
