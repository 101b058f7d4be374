import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anymal.errors import AnymalError
from anymal.evaluation.bootstrap import Measure, figures, mean_of, ratio, resampled_sums

SCORES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30)


def one(scores, *, resamples=200, seed=0):
    return figures({"m": mean_of(np.array(scores))}, {}, n=len(scores), resamples=resamples, seed=seed)["m"]


@settings(max_examples=40, deadline=None)
@given(SCORES)
def test_an_interval_lies_within_the_scores_and_is_reproducible(scores):
    figure = one(scores)
    slack = 1e-9 * (1 + max(map(abs, scores)))
    assert min(scores) - slack <= figure["low"] <= figure["high"] <= max(scores) + slack
    assert figure["value"] == pytest.approx(np.mean(scores))
    assert figure == one(scores)
    assert figure["n"] == len(scores)


@settings(max_examples=30, deadline=None)
@given(SCORES, st.floats(-50, 50))
def test_a_constant_difference_has_no_spread(scores, shift):
    measures = {"right": mean_of(np.array(scores) + shift), "other": mean_of(np.array(scores))}
    gap = figures(measures, {"gap": ("right", "other")}, n=len(scores), resamples=100, seed=1)["gap"]
    assert [gap["value"], gap["low"], gap["high"]] == pytest.approx([shift] * 3, abs=1e-6)


def test_intervals_hold_the_truth_about_95_times_in_100():
    generator = np.random.default_rng(0)
    truth, hits = 0.3, 0
    for trial in range(200):
        figure = one(generator.random(150) < truth, resamples=300, seed=trial)
        hits += figure["low"] <= truth <= figure["high"]
    assert 180 <= hits <= 199


def test_paired_gaps_hold_the_truth_and_are_narrower_than_unpaired_ones():
    generator = np.random.default_rng(1)
    hits = 0
    for trial in range(100):
        common = generator.normal(0, 5, 100)
        right, other = common + generator.normal(0.5, 1, 100), common + generator.normal(0, 1, 100)
        found = figures({"a": mean_of(right), "b": mean_of(other)}, {"gap": ("a", "b")}, n=100, resamples=200, seed=trial)
        hits += found["gap"]["low"] <= 0.5 <= found["gap"]["high"]
        assert found["gap"]["high"] - found["gap"]["low"] < (found["a"]["high"] - found["a"]["low"]) / 2
    assert 88 <= hits <= 100


def test_samples_weigh_by_their_denominator():
    figure = figures({"nll": Measure(np.array([[10.0, 1.0], [0.0, 9.0]]), ratio)}, {}, n=2, resamples=400, seed=0)["nll"]
    assert figure["value"] == 1.0
    assert (figure["low"], figure["high"]) == (0.0, 10.0)


def test_the_same_seed_draws_the_same_resamples_for_any_columns():
    rows = np.random.default_rng(0).random((9, 3))
    assert resampled_sums(rows, resamples=20, seed=4)[:, :1] == pytest.approx(resampled_sums(rows[:, :1], resamples=20, seed=4), rel=1e-12)
    assert resampled_sums(rows, resamples=20, seed=4) != pytest.approx(resampled_sums(rows, resamples=20, seed=5), rel=1e-3)


def test_one_sample_is_refused_in_a_sentence():
    with pytest.raises(AnymalError, match="at least 2 samples"):
        one([1.0])
