"""The stage register_guard, with a real SQLite store: a version with its card, its evidence, and what it was made from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anymal import promotion, registry
from anymal.data.manifest import fingerprint
from anymal.errors import BundleError, ConfigError, DataError
from anymal.guard_gates import guard_rules_of
from anymal.profile import read_config
from anymal.stage import load_stage, run_stage
from tests.serving.test_guard import INTEGRITY, make, safety
from tests.test_guard_gates import RULES

CONFIG = {"seed": 0, "name": "anymal-guard", "alias": "candidate"}


def run(folder: Path, **changes: object) -> dict[str, object]:
    stage = load_stage("register_guard")
    ports = {"guard": folder / "guard", "data": folder / "data", "safety": folder / "safety.json", "integrity": folder / "integrity.json",
             "registration": folder / "registration.json"}
    run_stage(stage, read_config(stage, json.dumps(CONFIG | changes)), ports)
    document: dict[str, object] = json.loads(ports["registration"].read_text())
    return document


@pytest.fixture
def inputs(store: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ANYMAL_TRACKING", "off")
    make(workspace / "guard")
    (workspace / "data").mkdir(exist_ok=True)
    (workspace / "data" / "texts.jsonl").write_text("{}\n")
    (workspace / "safety.json").write_text(json.dumps(safety()))
    (workspace / "integrity.json").write_text(json.dumps(INTEGRITY))
    return workspace


def test_a_guard_is_registered_with_its_card_and_passes_its_gates(inputs):
    first = run(inputs)
    assert first["version"] == 1 and first["uri"] == "models:/anymal-guard@candidate"
    version = registry.find_version("models:/anymal-guard@candidate")
    assert version.tags["input.safety_data"] == fingerprint(inputs / "data") and version.tags["input.guard"] == fingerprint(inputs / "guard")
    with registry.evidence_of(version) as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["integrity.json", "safety.json"]
    from mlflow.tracking import MlflowClient

    from anymal.tracking import tracking_uri

    described = MlflowClient(tracking_uri()).get_model_version("anymal-guard", "1").description
    assert "what is harmful in texts, pictures and both together" in described and "privacy 0.20 [0.10, 0.30]" in described
    assert promotion.promote("models:/anymal-guard@candidate", guard_rules_of(RULES), dry_run=True).decision == "promoted"
    assert run(inputs) == first


def test_what_cannot_be_registered_is_said(inputs):
    (inputs / "guard" / "guard.json").write_text("{}")
    with pytest.raises(BundleError, match=r"changed guard\.json"):
        run(inputs)
    (inputs / "safety.json").write_text("[]")
    with pytest.raises(DataError, match=r"safety\.json: must hold a JSON object, found list"):
        run(inputs)
    for changes in ({"alias": "champion"}, {"alias": "v3"}, {"name": "x-decisions"}):
        with pytest.raises(ConfigError):
            run(inputs, **changes)
