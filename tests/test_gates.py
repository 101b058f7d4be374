"""Each gate passes what it should and refuses the rest with figure, value and threshold."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from anymal.errors import ConfigError
from anymal.gates import (
    Champion,
    Evidence,
    Result,
    judge_against,
    judge_bundle,
    judge_comparable,
    judge_lineage,
    judge_measured,
    markdown,
    rules_of,
    rules_problems,
)
from tests import planted

RULES = rules_of(planted.RULES)
SHA = {"evaluation.json": "a" * 64, "samples.jsonl": "b" * 64, "leakage.json": "c" * 64}


def evidence(share: float = 0.6, *, salt: int = 0, blind: bool = False, **changes: Any) -> Evidence:
    right = planted.answers(share, salt=salt)
    whole = {"evaluation": planted.evaluation(right, blind=blind), "samples": {"image.vqa": planted.rows(right)}, "leakage": {"passed": True},
             "sha256": SHA}
    return Evidence(**(whole | changes))


def refused(results: Sequence[Result]) -> list[str]:
    return [f"{result.rule}: {result.sentence}" for result in results if not result.passed]


def with_rules(**changes: Any) -> Any:
    return rules_of(planted.RULES | changes)


# --- the section
def test_the_section_is_checked_whole():
    assert rules_problems(planted.RULES) == []
    wrong = copy.deepcopy(planted.RULES) | {"resamples": 3, "revision": "dirty", "grounding": ["noise"]}
    wrong["floors"] = [{"figure": "image.vqa.accuracy", "part": "low", "limit": 0.4}]
    problems = rules_problems(wrong)
    assert len(problems) == 4
    knobs = ("resamples", "revision", "grounding", "floors.0.figure")
    assert all(any(problem.startswith(f"promote.{knob}") for problem in problems) for knob in knobs)
    assert rules_problems({**planted.RULES, "champion": "x"}) == [
        "promote.champion: unknown knob; known knobs: ceilings, common, floors, grounding, modalities, regressions, resamples, revision, seed"]
    assert rules_problems({**planted.RULES, "floors": planted.RULES["floors"] * 2}) == [
        "promote.floors: evaluation.image.vqa.accuracy, low comes twice; keep one"]
    with pytest.raises(ConfigError, match=r"promote\.regressions: evaluation\.image\.vqa\.accuracy comes twice"):
        rules_of({**planted.RULES, "regressions": planted.RULES["regressions"] * 2})


# --- floors and ceilings
def test_good_figures_pass():
    assert refused(judge_measured(RULES, evidence())) == []


def test_a_figure_below_its_floor_or_above_its_ceiling_is_named_with_both_numbers():
    (sentence,) = refused(judge_measured(RULES, evidence(0.42)))
    assert sentence.startswith("floor: evaluation.image.vqa.accuracy: low 0.3") and sentence.endswith(" is below the floor of 0.4.")
    long = evidence()
    assert long.evaluation is not None
    long.evaluation["image"]["vqa"]["rates"]["right"]["max_length"] = 0.3
    assert refused(judge_measured(RULES, long)) == ["ceiling: evaluation.image.vqa.rates.right.max_length: value 0.3 is above the ceiling of 0.1."]


@pytest.mark.parametrize("figure", ["safety.text.auroc", "evaluation.audio.caption.nll", "evaluation.image.vqa.prompt", "leakage.hits"])
def test_a_figure_that_is_missing_refuses(figure):
    for kind in ("floor", "ceiling"):
        rules = with_rules(**{f"{kind}s": [*planted.RULES[f"{kind}s"], {"figure": figure, "part": "low", "limit": 0.9}]})
        assert refused(judge_measured(rules, evidence())) == [f"{kind}: {figure}: its low was not measured, so the {kind} of 0.9 cannot be checked."]


def test_safety_figures_come_from_their_own_document():
    rules = with_rules(floors=[{"figure": "safety.text.auroc", "part": "low", "limit": 0.9}])
    for low, count in ((0.95, 0), (0.85, 1)):
        assert len(refused(judge_measured(rules, evidence(safety={"text": {"auroc": {"value": 0.96, "low": low, "high": 0.99, "n": 9}}})))) == count


# --- grounding and leakage
def test_a_blind_model_is_refused_for_each_control():
    (sentence,) = refused(judge_measured(RULES, evidence(blind=True)))
    assert sentence.startswith("grounding: image.vqa: accuracy is 60.0%")
    assert sentence.endswith("not on the better side of zero: accuracy against shuffled input, accuracy against blank input.")


@pytest.mark.parametrize(("changes", "words"), [
    ({"evaluation": None}, "There is no evaluation"), ({"evaluation": {}}, "has no task"),
    ({"evaluation": {"image": 1}}, "is not what the stage score writes"),
    ({"leakage": None}, "no audit of leakage"), ({"leakage": {"hits": 0}}, "does not say that it passed"),
    ({"unreadable": {"samples.jsonl": "line 3 is not JSON"}}, "samples.jsonl: line 3 is not JSON.")])
def test_what_is_missing_or_malformed_refuses(changes, words):
    assert any(words in sentence for sentence in refused(judge_measured(RULES, evidence(**changes))))


# --- the champion
def test_without_a_champion_there_is_nothing_to_fall_behind():
    (result,) = judge_against(RULES, evidence(), None)
    assert result.passed and "there is no champion yet" in result.sentence
    for judge in (lambda: judge_against(RULES, evidence(samples={}), None), lambda: judge_comparable(RULES, evidence(samples={}))):
        (result,) = judge()
        assert not result.passed and "no sample has this score" in result.sentence


@pytest.mark.parametrize(("share", "passed"), [(0.5, False), (0.57, False), (0.6, True), (0.65, True)])
def test_falling_behind_by_more_than_the_margin_is_refused(share, passed):
    (result,) = judge_against(RULES, evidence(share), Champion(3, evidence(0.6)))
    assert result.passed is passed
    assert f"{share:g} against 0.6 on 400 samples" in result.sentence and "champion (version 3)" in result.sentence
    assert result.value == pytest.approx(share - 0.6) and result.threshold == 0.02


def test_a_loss_that_cannot_be_ruled_out_is_refused_though_the_figures_are_equal():
    """Another model of the same accuracy, right on other samples: the interval is wide."""
    (result,) = judge_against(RULES, evidence(0.6, salt=1), Champion(3, evidence(0.6)))
    assert not result.passed and "may have fallen behind by more than the margin of 0.02" in result.sentence
    (result,) = judge_against(with_rules(regressions=[planted.RULES["regressions"][0] | {"margin": 0.2}]), evidence(0.6, salt=1),
                              Champion(3, evidence(0.6)))
    assert result.passed


def test_less_may_be_better():
    rules = with_rules(regressions=[planted.RULES["regressions"][0] | {"better": "lower"}])
    assert [judge_against(rules, evidence(share), Champion(3, evidence(0.6)))[0].passed for share in (0.5, 0.6, 0.7)] == [True, True, False]


def test_only_what_both_were_measured_on_is_compared():
    champion, own = evidence(0.6), evidence(0.6)
    assert own.samples is not None
    for kept, passed in ((370, True), (300, False)):
        (result,) = judge_against(RULES, replace(own, samples={"image.vqa": own.samples["image.vqa"][:kept]}), Champion(3, champion))
        assert result.passed is passed
        assert f"{kept} " in result.sentence
    (result,) = judge_against(RULES, own, Champion(3, replace(champion, samples={})))
    assert result.passed and "was not measured on it" in result.sentence
    (result,) = judge_against(RULES, own, Champion(3, Evidence()))
    assert not result.passed and "was registered without evidence" in result.sentence
    regrouped = {"image.vqa": [row | {"group": "other"} for row in own.samples["image.vqa"]]}
    (result,) = judge_against(RULES, replace(own, samples=regrouped), Champion(3, champion))
    assert not result.passed and "cannot be compared" in result.sentence


# --- bundle and lineage
def test_the_bundle_must_be_whole_and_read_every_modality():
    document: dict[str, Any] = {"encoders": {"image": "x", "imu": None}}
    assert judge_bundle(RULES, document, None).passed
    lacking = judge_bundle(with_rules(modalities=["image", "audio"]), document, None)
    assert not lacking.passed and lacking.sentence == "The bundle reads image, imu, but not audio."
    assert not judge_bundle(RULES, None, "missing README.md").passed


TAGS = {"input.checkpoints.0": "d" * 64, "input.image.statistics": "e" * 64, "input.evaluation": "a" * 64, "input.samples": "b" * 64,
        "input.leakage": "c" * 64, "git.revision": "f" * 40, "git.dirty": "false"}
DOCUMENT: dict[str, Any] = {"provenance": {"inputs": {key.removeprefix("input."): value for key, value in TAGS.items() if key.startswith("input.")}}}


def test_a_whole_lineage_passes():
    for revision in ("any", "known", "clean"):
        assert refused(judge_lineage(with_rules(revision=revision), evidence(), TAGS, DOCUMENT)) == []


@pytest.mark.parametrize(("changes", "words"), [
    ({"input.samples": None}, "no tag input.samples"), ({"input.samples": "0" * 64}, "is not the one that was registered"),
    ({"input.checkpoints.0": None}, "no SHA-256 of checkpoints"), ({"input.image.statistics": "unknown"}, "no SHA-256 of image.statistics"),
    ({"input.checkpoints.0": "0" * 64}, "differ in checkpoints.0")])
def test_a_broken_lineage_is_refused(changes, words):
    tags = {key: value for key, value in (TAGS | changes).items() if value is not None}
    assert any(words in sentence for sentence in refused(judge_lineage(RULES, evidence(), tags, DOCUMENT)))


def test_evidence_that_does_not_go_with_the_version_is_refused():
    found = refused(judge_lineage(RULES, Evidence(), TAGS, DOCUMENT))
    assert [sentence.split(" ")[1] for sentence in found] == [f"evidence/{name}" for name in SHA]
    unregistered = evidence(sha256=SHA | {"safety.json": "0" * 64})
    assert refused(judge_lineage(RULES, unregistered, TAGS, DOCUMENT)) == [
        "lineage: The version has no tag input.safety, so evidence/safety.json may be another's."]


@pytest.mark.parametrize(("tags", "passing"), [({}, {"any"}), ({"git.revision": "f" * 40, "git.dirty": "true"}, {"any", "known"})])
def test_the_revision_is_asked_for_as_the_rule_says(tags, passing):
    rest = {key: value for key, value in TAGS.items() if not key.startswith("git.")}
    for revision in ("any", "known", "clean"):
        found = refused(judge_lineage(with_rules(revision=revision), evidence(), rest | tags, DOCUMENT))
        assert (not found) is (revision in passing)


def test_refusals_are_read_first():
    text = markdown("Title", [Result("floor", "a", True, "A."), Result("floor", "b", False, "B.")], ["Note."])
    assert text == "# Title\n\nNote.\n\n- ✗ floor: B.\n- ✓ floor: A.\n"
