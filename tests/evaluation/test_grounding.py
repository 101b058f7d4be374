"""Which gaps to controls show that an input is used."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from anymal.evaluation.grounding import clear, verdicts


def figure(value: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1 if low is None else low, "high": value + 0.1 if high is None else high, "n": 50}


def gaps(**by_control: dict[str, Any]) -> dict[str, Any]:
    return {f"gap_{control}": found for control, found in by_control.items()}


RESULTS: dict[str, Any] = {
    "image": {"caption": {"nll": figure(2.0), "cider_d": figure(0.5), "groups": {"image": 3}, **gaps(
        shuffled={"nll": figure(-0.5), "cider_d": figure(0.3)}, blank={"nll": figure(-0.7), "cider_d": figure(0.4)})},
              "vqa": {"accuracy": figure(0.6), **gaps(shuffled={"accuracy": figure(0.2)}, blank={"accuracy": figure(0.3)})}},
    "imu": {"caption": {"nll": figure(2.0), "cider_d": figure(0.5), "class_accuracy": figure(0.8), **gaps(
        shuffled={"nll": figure(-0.5), "cider_d": figure(0.0), "class_accuracy": figure(0.5)},
        blank={"nll": figure(-0.5), "cider_d": figure(0.0), "class_accuracy": figure(0.6)})}},
    "mixed": {"qa": {"accuracy": figure(0.7), "accuracy_image": figure(0.8), "accuracy_imu": figure(0.9), **gaps(
        shuffled={"accuracy": figure(0.6), "accuracy_image": figure(0.7), "accuracy_imu": figure(0.7)},
        shuffled_image={"accuracy": figure(0.6), "accuracy_image": figure(0.7), "accuracy_imu": figure(0.0)},
        shuffled_imu={"accuracy": figure(0.6), "accuracy_image": figure(0.0), "accuracy_imu": figure(0.7)},
        blank={"accuracy": figure(0.6), "accuracy_image": figure(0.7), "accuracy_imu": figure(0.7)})}},
    "benchmarks": {"pope": {"main": "accuracy", "accuracy": figure(0.8), "yes_ratio": figure(0.5), **gaps(
        shuffled={"accuracy": figure(0.2), "yes_ratio": figure(0.0)}, blank={"accuracy": figure(0.3), "yes_ratio": figure(0.0)})},
                   "vqav2": {"skipped": "no such asset"}},
}
BRANCHES = ["benchmarks.pope", "image.caption", "image.vqa", "imu.caption", "mixed.qa"]


def test_every_task_that_ran_has_a_verdict():
    found = verdicts(RESULTS, ("shuffled", "blank"))
    assert [verdict.branch for verdict in found] == BRANCHES
    assert all(verdict.clear for verdict in found)
    assert found[2].sentence == ("image.vqa: accuracy is 60.0%, a gap of +20.0 points [10.0, 30.0] against shuffled input, "
                                 "+30.0 points [20.0, 40.0] against blank input.")
    assert found == verdicts(RESULTS)


@pytest.mark.parametrize(("branch", "control", "metric"), [
    ("image.caption", "shuffled", "nll"), ("image.caption", "blank", "cider_d"), ("image.vqa", "blank", "accuracy"),
    ("imu.caption", "shuffled", "class_accuracy"), ("mixed.qa", "shuffled_imu", "accuracy_imu"), ("mixed.qa", "blank", "accuracy_image"),
    ("benchmarks.pope", "shuffled", "accuracy")])
def test_one_interval_that_holds_zero_is_named(branch, control, metric):
    results = copy.deepcopy(RESULTS)
    modality, task = branch.split(".")
    results[modality][task][f"gap_{control}"][metric] |= {"low": -0.1, "high": 0.1}
    found = verdicts(results)
    assert [verdict.branch for verdict in found if not verdict.clear] == [branch]
    (sentence,) = [verdict.sentence for verdict in found if not verdict.clear]
    assert "not on the better side of zero" in sentence and control.partition("_")[0] in sentence.partition("zero: ")[2]


def test_a_control_that_is_asked_for_must_have_been_measured():
    assert not any(verdict.clear for verdict in verdicts(RESULTS, ("shuffled", "similar")))
    assert all("not measured: " in verdict.sentence and "against similar input" in verdict.sentence for verdict in verdicts(RESULTS, ("similar",)))
    bare = {"image": {"vqa": {"accuracy": figure(0.6)}}}
    (verdict,) = verdicts(bare)
    assert not verdict.clear and verdict.sentence == "image.vqa: accuracy is 60.0%; not measured: shuffled input, blank input, similar input."


def test_a_figure_that_is_missing_shows_nothing():
    (verdict,) = verdicts({"image": {"caption": {"groups": {"image": 3}}}}, ("blank",))
    assert not verdict.clear and verdict.sentence == "image.caption: not measured: the loss, CIDEr-D."
    results = copy.deepcopy(RESULTS)
    del results["benchmarks"]["pope"]["main"]
    (verdict,) = [verdict for verdict in verdicts(results) if not verdict.clear]
    assert verdict.sentence == "benchmarks.pope: not measured: its main figure."


def test_less_loss_is_better():
    assert clear("nll", figure(-0.5)) and not clear("nll", figure(0.5)) and clear("accuracy", figure(0.5)) and not clear("accuracy", figure(0.1))
