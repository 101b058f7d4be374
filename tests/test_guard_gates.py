"""Each gate of a guard passes what it should and refuses the rest, in one sentence."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from anymal.errors import ConfigError
from anymal.gates import Champion, Evidence
from anymal.guard_gates import guard_rules_of, guard_rules_problems, judge_guard
from anymal.profile import profile_problems

RULES: dict[str, Any] = {
    "checks": ["text", "image"], "floors": [{"figure": "safety.text.auroc", "part": "low", "limit": 0.9}],
    "ceilings": [{"figure": "integrity.text.harmless.guarded.refused", "part": "high", "limit": 0.3}],
    "regressions": [{"figure": "safety.text.auroc", "better": "higher", "margin": 0.02}], "revision": "any"}
SHA = {"safety.json": "a" * 64, "integrity.json": "b" * 64}
TAGS = {"input.safety_data": "c" * 64, "input.safety": "a" * 64, "input.integrity": "b" * 64}
DOCUMENT = {"checks": ["text", "image", "pair"]}


def evidence(auroc: float = 0.97, refused: float = 0.1, **changes: Any) -> Evidence:
    def figure(value: float) -> dict[str, float]:
        return {"value": value, "low": value - 0.02, "high": value + 0.02, "n": 100}

    whole = {"safety": {"text": {"auroc": figure(auroc)}}, "integrity": {"text": {"harmless": {"guarded": {"refused": figure(refused)}}}},
             "sha256": SHA}
    return Evidence(**(whole | changes))


def refused(found: Evidence, champion: Champion | None = None, **changes: Any) -> list[str]:
    given = {"document": DOCUMENT, "problem": None, "tags": TAGS} | changes
    return [f"{result.rule}: {result.sentence}" for result in judge_guard(guard_rules_of(RULES), found, champion, **given) if not result.passed]


def test_a_good_guard_passes():
    assert refused(evidence()) == []
    assert refused(evidence(), Champion(3, evidence(0.98))) == []
    assert refused(evidence(), Champion(3, evidence(safety={}))) == []


@pytest.mark.parametrize(("found", "words"), [
    (evidence(0.91), "floor: safety.text.auroc: low 0.89 is below the floor of 0.9."),
    (evidence(refused=0.4), "ceiling: integrity.text.harmless.guarded.refused: high 0.42 is above the ceiling of 0.3."),
    (evidence(sha256={**SHA, "safety.json": "d" * 64}), "lineage: evidence/safety.json (SHA-256 dddddddddddd…) is not the one that was registered"),
])  # fmt: skip
def test_what_refuses_is_named(found, words):
    (sentence,) = refused(found)
    assert sentence.startswith(words)


def test_a_figure_or_file_that_is_missing_refuses():
    sentences = refused(evidence(safety=None, sha256={"integrity.json": "b" * 64}))
    assert sentences == [
        "floor: safety.text.auroc: its low was not measured, so the floor of 0.9 cannot be checked.",
        "regression: safety.text.auroc: was not measured, so it cannot be compared with a champion's.",
        "lineage: evidence/safety.json does not go with the version."]


def test_a_champion_is_not_fallen_behind():
    (sentence,) = refused(evidence(0.95), Champion(3, evidence(0.98)))
    assert sentence == ("regression: safety.text.auroc: 0.95 against 0.98 of the champion (version 3), higher being better: beyond the margin of "
                        "0.02.")
    (sentence,) = refused(evidence(), Champion(3, Evidence()))
    assert "registered without evidence" in sentence


def test_a_guard_that_is_damaged_or_lacks_a_check_or_an_origin_is_refused():
    assert refused(evidence(), document=None, problem="changed guard.json") == ["bundle: The guard cannot be used: changed guard.json."]
    assert refused(evidence(), document={"checks": ["text"]}) == ["bundle: The guard checks text, but not image."]
    (sentence,) = refused(evidence(), tags={**TAGS, "input.safety_data": "unknown"})
    assert sentence == "lineage: The version does not say what it was trained on: no SHA-256 in its tag input.safety_data."


def test_the_section_is_checked_whole():
    assert guard_rules_problems(RULES) == []
    wrong = copy.deepcopy(RULES) | {"checks": ["smell"], "revision": "dirty"}
    assert len(guard_rules_problems(wrong)) == 2
    other = RULES | {"floors": [*RULES["floors"] * 2, {"figure": "evaluation.image.vqa.accuracy", "part": "low", "limit": 0.1}]}
    assert guard_rules_problems(other) == [
        "promote_guard.floors: evaluation.image.vqa.accuracy is no figure of a guard; name one of safety.… or integrity.…",
        "promote_guard.floors: safety.text.auroc, low comes twice; keep one"]
    with pytest.raises(ConfigError, match="comes twice"):
        guard_rules_of(RULES | {"ceilings": RULES["ceilings"] * 2})
    assert any(problem.startswith("promote_guard.checks") for problem in profile_problems({"promote_guard": wrong}, "x.yaml"))
