import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anymal.errors import AnymalError, DataError
from anymal.evaluation.bootstrap import (
    Measure,
    Statistic,
    by_unit,
    figures,
    mean_of,
    paired_difference,
    ratio,
    read_samples,
    resampled_sums,
    write_samples,
)

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


def rows(scores, *, groups=None, metric="accuracy"):
    return [{"branch": "image.vqa", "id": f"q{n:03d}", "group": f"g{n if groups is None else groups[n]}", "scores": {metric: float(score)}}
            for n, score in enumerate(scores)]


def paired(first, second, *, by="sample", metric="accuracy", resamples=300, seed=0):
    return paired_difference(first, second, metric=metric, by=by, resamples=resamples, seed=seed)


def test_a_statistic_is_resampled_as_a_measure_is():
    """The mean as a function of how often each sample was drawn has the interval of the mean as a function of sums."""
    scores = np.random.default_rng(0).random(40)
    mean = Statistic(40, lambda drawn: float(drawn @ scores / drawn.sum()))
    found = figures({"sums": mean_of(scores), "drawn": mean}, {"gap": ("sums", "drawn")}, n=40, resamples=200, seed=3)
    for part in ("value", "low", "high"):
        assert found["drawn"][part] == pytest.approx(found["sums"][part], abs=1e-12)
        assert found["gap"][part] == pytest.approx(0, abs=1e-12)


def test_resamples_that_leave_a_statistic_undefined_do_not_count_and_all_of_them_are_refused():
    sometimes = Statistic(3, lambda drawn: 7.0 if drawn[0] else math.nan)
    assert figures({"m": sometimes}, {}, n=3, resamples=50, seed=0)["m"] == {"value": 7.0, "low": 7.0, "high": 7.0, "n": 3}
    with pytest.raises(AnymalError, match="none of 20 resamples defines"):
        figures({"m": Statistic(3, lambda drawn: math.nan)}, {}, n=3, resamples=20, seed=0)


def test_units_are_resampled_whole():
    scores, units = np.array([1.0, 1.0, 0.0, 0.0]), ["b", "b", "a", "a"]
    whole = by_unit(mean_of(scores), units)
    assert whole.rows.tolist() == [[0.0, 2.0], [2.0, 2.0]]
    figure = figures({"m": whole}, {}, n=4, resamples=400, seed=0)["m"]
    assert (figure["value"], figure["low"], figure["high"]) == (0.5, 0.0, 1.0)


@settings(max_examples=40, deadline=None)
@given(SCORES, st.randoms(use_true_random=False))
def test_a_paired_difference_is_the_gap_of_the_means_whatever_the_order(scores, generator):
    first, second = rows(scores), rows([score / 2 for score in scores])
    found = paired(first, second, resamples=50)
    assert found["value"] == pytest.approx(np.mean(scores) / 2, abs=1e-9)
    assert (found["first"], found["n"], found["units"], found["by"]) == (pytest.approx(np.mean(scores)), len(scores), len(scores), "sample")
    shuffled = list(first)
    generator.shuffle(shuffled)
    assert paired(shuffled, second[::-1], resamples=50) == found


def test_paired_intervals_hold_the_truth_about_95_times_in_100():
    generator, hits = np.random.default_rng(5), 0
    truth = 0.6 - 0.5  # the noise is as likely to lift as to lower
    for trial in range(150):
        common = generator.random(120)
        first, second = (common < 0.6).astype(float), (common + generator.normal(0, 0.2, 120) < 0.5).astype(float)
        found = paired(rows(first), rows(second), resamples=200, seed=trial)
        hits += found["low"] <= truth <= found["high"]
    assert 135 <= hits <= 149


def test_groups_are_resampled_whole_and_say_less():
    """Eight groups whose samples all do the same: 80 samples tell no more than 8."""
    generator = np.random.default_rng(2)
    groups = np.repeat(np.arange(8), 10)
    effect = generator.normal(0, 1, 8)[groups]
    first, second = rows(effect, groups=groups), rows(np.zeros(80), groups=groups)
    by_sample, by_group = paired(first, second), paired(first, second, by="group")
    assert by_group["value"] == pytest.approx(by_sample["value"])
    assert (by_group["units"], by_group["n"], by_group["by"]) == (8, 80, "group")
    assert by_group["high"] - by_group["low"] > 2 * (by_sample["high"] - by_sample["low"])


def test_models_that_cannot_be_paired_are_refused_in_a_sentence():
    same = rows([1, 0, 1])
    with pytest.raises(DataError, match=r"2 ids, such as 'q002', are in one of the two models' samples only \(3 and 3\)"):
        paired(same, [*same[:2], {**same[2], "id": "q009"}])
    with pytest.raises(DataError, match="'q000' is of group 'g0' for one model and 'other' for the other"):
        paired(same, [{**same[0], "group": "other"}, *same[1:]])
    with pytest.raises(DataError, match="'q000' stands twice among the second"):
        paired(same, [*same, same[0]])
    with pytest.raises(DataError, match=r"'q000' of the first model has no score 'nll' \(it has accuracy\)"):
        paired(same, same, metric="nll")
    with pytest.raises(AnymalError, match="at least 2 samples"):
        paired(rows([1, 0], groups=[0, 0]), rows([1, 0], groups=[0, 0]), by="group")


def test_sample_files_round_trip_sorted_and_name_what_is_wrong(tmp_path):
    path = tmp_path / "samples.jsonl"
    some = rows([1, 0.25])
    write_samples(path, [*some[::-1], {**some[0], "branch": "audio.caption"}])
    assert read_samples(path) == {"audio.caption": [{**some[0], "branch": "audio.caption"}], "image.vqa": some}
    assert [json.loads(line)["branch"] for line in path.read_text().splitlines()] == ["audio.caption", "image.vqa", "image.vqa"]
    write_samples(path, some[:1])
    assert read_samples(path) == {"image.vqa": some[:1]}, "a file of one line is JSON too"
    write_samples(path, [])
    assert read_samples(path) == {}
    with pytest.raises(DataError, match="cannot be read as text"):
        read_samples(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match=r"sample 'q000' stands twice in image\.vqa"):
        write_samples(path, [some[0], some[0]])
    path.write_text('{"branch": "b", "id": "q", "group": "g", "scores": {"accuracy": "high"}}\n')
    with pytest.raises(DataError, match=r"samples\.jsonl entry 1: scores: accuracy must be a whole number or a number, found text"):
        read_samples(path)
    path.write_text('{"branch": "b", "id": "q", "scores": {}}\n')
    with pytest.raises(DataError, match=r"samples\.jsonl entry 1: has no field 'group'"):
        read_samples(path)
