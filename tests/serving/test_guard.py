"""The guard in the registry: a version with its card and evidence, judged by its own gates; what is no guard is refused."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from anymal import promotion, registry
from anymal.data.manifest import sha256_of, write_manifest
from anymal.errors import BundleError, DataError
from anymal.gates import rules_of
from anymal.guard_gates import guard_rules_of
from anymal.serving.guard import GUARD, guard_card, read_guard
from anymal.serving.guard_pyfunc import GuardPredictor
from tests import planted
from tests.test_guard_gates import RULES, evidence
from tests.tiny import picture

INTEGRITY: dict[str, Any] = {
    "text": {side: {who: {"refused": {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 24}, "harmful_classifier": {
        "value": 0.25, "low": None, "high": None, "n": 24}} for who, value in (("model", 0.2), ("guarded", 0.1 if side == "harmless" else 0.9))}
        for side in ("harmful", "harmless")}, "red_team": {"missed": ["morse"], "wished": 0.05, "worst_loss": 0.5, "tricks": {}}}


def make(folder: Path, **changes: Any) -> Path:
    for name in ("text", "image", "pair"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")
    (folder / "guard.json").write_text(json.dumps({"thresholds": {"request": {"hate": 0.5}}} | changes))
    (folder / "README.md").write_text("# Guard\n")
    write_manifest(folder)
    return folder


def safety() -> dict[str, Any]:
    found = evidence().safety
    assert found is not None
    return {"text": {**found["text"], "recall_at_fpr": {"value": 0.9, "low": 0.8, "high": 0.95, "n": 50}, "categories": {
        "privacy": {"recall": {"value": 0.2, "low": 0.1, "high": 0.3, "n": 9}}, "hate": {"recall": {"value": 0.9, "low": 0.8, "high": 1.0, "n": 9}}}}}


@pytest.fixture
def registered(store: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> registry.Registration:
    monkeypatch.setenv("ANYMAL_TRACKING", "off")
    files = {"safety.json": Path("safety.json"), "integrity.json": Path("integrity.json")}
    files["safety.json"].write_text(json.dumps(safety()))
    files["integrity.json"].write_text(json.dumps(INTEGRITY))
    tags = {"input.safety_data": "c" * 64, **{f"input.{path.stem}": sha256_of(path) for path in files.values()}}
    return registry.register_bundle(make(Path("guard")), name="anymal-guard", alias="candidate", metrics={}, tags=tags, evidence=files, kind=GUARD,
                                    card="# Card\n\nMeasured.")


def test_a_guard_is_registered_judged_and_becomes_champion(registered):
    version = registry.find_version("models:/anymal-guard@candidate")
    assert version.tags["bundle_sha256"] == registered.bundle_sha256
    assert registry.resolve_bundle(version.uri, GUARD).joinpath("guard.json").read_bytes() == Path("guard/guard.json").read_bytes()
    made = promotion.promote("models:/anymal-guard@candidate", guard_rules_of(RULES), dry_run=False)
    assert made.decision == "promoted", made.report
    assert registry.find_version("models:/anymal-guard@champion").number == 1
    strict = guard_rules_of(RULES | {"floors": [{"figure": "safety.text.auroc", "part": "low", "limit": 0.99}]})
    again = registry.register_bundle(make(Path("other"), thresholds={"request": {"hate": 0.6}}), name="anymal-guard", alias="candidate", metrics={},
                                     tags={}, evidence={}, kind=GUARD)
    assert again.version == 2
    refused = promotion.promote("models:/anymal-guard/2", strict, dry_run=False)
    assert refused.decision == "refused" and "evidence/safety.json does not go with the version" in refused.report
    assert registry.find_version("models:/anymal-guard@champion").number == 1


def test_a_guard_is_no_model_and_a_model_no_guard(registered):
    made = promotion.promote("models:/anymal-guard@candidate", rules_of(planted.RULES), dry_run=True)
    assert made.decision == "refused" and "bundle.json: cannot be read" in made.report
    with pytest.raises(BundleError, match=r"guard\.json: cannot be read .*this folder is no guard"):
        (Path("guard") / "guard.json").unlink()
        write_manifest(Path("guard"))
        read_guard(Path("guard"))


def test_a_damaged_guard_is_refused(tmp_path):
    folder = make(tmp_path / "guard")
    assert read_guard(folder)["checks"] == ["text", "image", "pair"]
    (folder / "text" / "config.json").write_text("{ }")
    with pytest.raises(BundleError, match=r"changed text/config\.json"):
        read_guard(folder)
    with pytest.raises(BundleError, match="no such folder of a guard"):
        read_guard(tmp_path / "none")
    with pytest.raises(BundleError, match="names no thresholds"):
        read_guard(make(tmp_path / "third", thresholds=None))


def test_the_card_names_figures_and_gaps(tmp_path):
    from huggingface_hub import ModelCard

    text = guard_card(name="anymal-guard", alias="candidate", document=read_guard(make(tmp_path / "guard")), safety=safety(), integrity=INTEGRITY,
                      inputs={"guard": "a" * 64}, seed=0)
    assert ModelCard(text).data.library_name == "anymal"
    assert "| text | auroc | 0.97 [0.95, 0.99] | 100 |" in text
    assert "| harmful texts of the trained sources | 24 | 0.20 [0.10, 0.30] | 0.90 [0.80, 1.00] | 0.20 [0.10, 0.30] | 0.10 [0.00, 0.20] |" in text
    assert "these categories for what they are: privacy 0.20 [0.10, 0.30]." in text and "hate 0.90" not in text
    assert "Disguises that it does not see through within 5%: morse; the worst costs 0.50" in text
    assert f"- guard: `{'a' * 64}`" in text


class Check:
    def probabilities(self, *given):
        return np.array([[len(given) / 4, 0.5]])


class Models:
    categories = ("hate", "cyber")
    text = image = pair = Check()


def test_rows_are_answered_with_probabilities():
    image = base64.b64encode(picture("red")).decode()
    rows = pd.DataFrame([{"text": "hello", "image": None}, {"text": None, "image": image},
                         {"text": "hello", "image": f"data:image/png;base64,{image}"}])
    answers = [json.loads(said) for said in GuardPredictor(Models()).predict(rows)]
    assert answers == [{"hate": 0.25, "cyber": 0.5}, {"hate": 0.25, "cyber": 0.5}, {"hate": 0.5, "cyber": 0.5}]
    with pytest.raises(DataError, match="row 0: has neither text nor image"):
        GuardPredictor(Models()).predict(pd.DataFrame([{"text": None, "image": None}]))
    with pytest.raises(DataError, match="row 0: column image is no picture"):
        GuardPredictor(Models()).predict(pd.DataFrame([{"image": base64.b64encode(b"words").decode()}]))
