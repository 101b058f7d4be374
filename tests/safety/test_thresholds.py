"""Calibration and thresholds: probabilities that mean what they say, and the false-positive rate that was asked for."""

from __future__ import annotations

import json

import numpy as np
import pytest

from anymal.errors import DataError
from anymal.safety.thresholds import ANY, Calibration, calibrate, choose_thresholds, hits, log_odds, margins, sigmoid, together

CATEGORIES = ("violence", "weapons", "hate")


def drawn(samples: int, seed: int, positives: tuple[float, ...] = (0.2, 0.1, 0.01)) -> tuple[np.ndarray, np.ndarray]:
    """True log-odds and labels drawn from them."""
    rng = np.random.default_rng(seed)
    offsets = np.log(np.array(positives) / (1 - np.array(positives)))
    odds = offsets + 2 * rng.standard_normal((samples, len(positives)))
    return odds, rng.random(odds.shape) < sigmoid(odds)


def test_calibration_recovers_distorted_probabilities():
    odds, truth = drawn(4000, 0)
    distorted = 3 * odds + np.array([1.0, -2.0, 4.0])
    calibration = calibrate(distorted, truth)
    fresh, labels = drawn(4000, 1)
    calibrated = calibration.probabilities(3 * fresh + np.array([1.0, -2.0, 4.0]))

    def entropy(probabilities: np.ndarray) -> float:
        return float(-np.mean(np.where(labels, np.log(probabilities), np.log1p(-probabilities))))

    assert entropy(calibrated) < entropy(np.clip(sigmoid(3 * fresh + np.array([1.0, -2.0, 4.0])), 1e-9, 1 - 1e-9))
    assert entropy(calibrated) == pytest.approx(entropy(sigmoid(fresh)), abs=0.01)
    for column in range(3):
        assert calibrated[:, column].mean() == pytest.approx(labels[:, column].mean(), abs=0.03)


def test_a_category_without_samples_keeps_the_common_slope():
    odds, truth = drawn(500, 2)
    truth[:, 2] = False
    calibration = calibrate(2 * odds, truth)
    assert calibration.slopes[2] > 0
    assert calibration.probabilities(2 * odds)[:, 2].mean() < 0.05


def test_separable_samples_give_finite_slopes():
    logits = np.array([[-3.0], [-2.0], [2.0], [3.0]] * 5)
    calibration = calibrate(logits, logits > 0)
    assert np.isfinite(calibration.slopes).all()
    assert np.isfinite(calibration.offsets).all()


def test_calibration_goes_through_json():
    calibration = Calibration((1.5, 0.25), (0.1, -3.0))
    assert Calibration.read(json.loads(json.dumps(calibration.document())), "classifier.json") == calibration
    for broken in ({"slopes": [1.0]}, {"slopes": [1.0], "offsets": []}, {"slopes": "x", "offsets": None}):
        with pytest.raises(DataError, match=r"classifier\.json"):
            Calibration.read(broken, "classifier.json")


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_harmless_samples_are_hit_at_the_stated_rate(rate):
    odds, truth = drawn(30000, 3)
    thresholds = choose_thresholds(sigmoid(odds), truth, CATEGORIES, rate=rate, floor=1e-4, least=20)
    harmless = ~truth.any(axis=1)
    on_validation = hits(sigmoid(odds), CATEGORIES, thresholds)[harmless].any(axis=1).mean()
    assert rate - 0.01 <= on_validation <= rate
    fresh, labels = drawn(30000, 4)
    clean = ~labels.any(axis=1)
    assert hits(sigmoid(fresh), CATEGORIES, thresholds)[clean].any(axis=1).mean() == pytest.approx(rate, abs=0.03)


def test_categories_with_few_samples_share_a_threshold():
    odds, truth = drawn(300, 5, (0.3, 0.02, 0.01))
    thresholds = choose_thresholds(sigmoid(odds), truth, CATEGORIES, rate=0.05, floor=1e-4, least=30)
    assert thresholds["weapons"] == thresholds["hate"] != thresholds["violence"]


def test_no_threshold_is_below_the_floor():
    odds, truth = drawn(300, 6)
    thresholds = choose_thresholds(sigmoid(odds - 12), truth, CATEGORIES, rate=0.5, floor=0.2, least=5)
    assert min(thresholds.values()) >= 0.2 - 1e-9


def test_equal_scores_never_exceed_the_rate():
    probabilities, truth = np.full((100, 1), 0.4), np.zeros((100, 1), dtype=bool)
    thresholds = choose_thresholds(probabilities, truth, ["hate"], rate=0.05, floor=0.01, least=1)
    assert not hits(probabilities, ["hate"], thresholds).any()


def test_margins_say_what_hits_say():
    odds, _ = drawn(400, 7)
    thresholds = {"violence": 0.4, "hate": 0.1}
    hit = hits(sigmoid(odds), CATEGORIES, thresholds)
    assert not hit[:, 1].any()
    np.testing.assert_array_equal(margins(sigmoid(odds), CATEGORIES, thresholds) >= 0, hit.any(axis=1))
    both = {**thresholds, ANY: 0.45}
    more = hits(sigmoid(odds), CATEGORIES, both)
    np.testing.assert_array_equal(margins(sigmoid(odds), CATEGORIES, both) >= 0, more.any(axis=1))
    assert more.sum() > hit.sum() and not more[:, 1].any() and (more | hit == more).all()
    assert log_odds(np.array([0.0, 1.0])) == pytest.approx([-13.8155, 13.8155], abs=1e-3)


def test_little_of_several_categories_is_a_hit_of_the_likeliest():
    probabilities = np.array([[0.3, 0.2, 0.25], [0.3, 0.0, 0.0], [0.1, 0.9, 0.1]])
    assert together(probabilities) == pytest.approx([1 - 0.7 * 0.8 * 0.75, 0.3, 1 - 0.9 * 0.1 * 0.9])
    found = hits(probabilities, CATEGORIES, {"violence": 0.5, "weapons": 0.5, "hate": 0.5, ANY: 0.55})
    assert found.tolist() == [[True, False, False], [False, False, False], [False, True, False]]


def test_without_harmless_samples_there_is_no_rate():
    with pytest.raises(DataError, match="no harmless validation sample"):
        choose_thresholds(np.ones((2, 1)), np.ones((2, 1), dtype=bool), ["hate"], rate=0.05, floor=0.01, least=1)
