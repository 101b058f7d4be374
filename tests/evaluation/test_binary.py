import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anymal.evaluation.binary import auc, auc_statistic, extract_yes_no, pope_measures, yes_probability
from anymal.evaluation.bootstrap import figures


def by_definition(labels, scores):
    """Every pair of a positive and a negative: 1 if the positive is higher, half if they tie."""
    sample = list(zip(scores, labels, strict=True))
    pairs = [(above > below) + (above == below) / 2 for above, one in sample if one for below, other in sample if not other]
    return sum(pairs) / len(pairs) if pairs else math.nan


def random_sets(seed, count):
    """Half of the sets have few distinct scores, so that ties are many."""
    generator = random.Random(seed)
    for number in range(count):
        size = generator.randint(2, 25)
        levels = [0.0, 0.25, 0.5, 1.0] if number % 2 else None
        yield ([generator.random() < 0.4 for _ in range(size)],
               [generator.choice(levels) if levels else generator.uniform(-5, 5) for _ in range(size)])  # fmt: skip


def test_auc_is_its_definition_on_1000_random_sets_with_ties():
    undefined = 0
    for labels, scores in random_sets(0, 1000):
        expected = by_definition(labels, scores)
        undefined += math.isnan(expected)
        assert auc(labels, scores) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert 0 < undefined < 200


def test_auc_is_scipys_rank_statistic():
    from scipy.stats import mannwhitneyu

    for labels, scores in random_sets(1, 60):
        above, below = ([s for s, label in zip(scores, labels, strict=True) if label is kind] for kind in (True, False))
        if above and below:
            assert auc(labels, scores) == pytest.approx(mannwhitneyu(above, below).statistic / (len(above) * len(below)), abs=1e-12)


def test_a_resampled_auc_is_that_of_the_drawn_samples():
    generator = np.random.default_rng(0)
    labels, scores = generator.random(40) < 0.5, generator.choice([0.1, 0.4, 0.9], 40)
    statistic = auc_statistic(labels, scores)
    for _ in range(20):
        drawn = generator.integers(40, size=40)
        assert statistic.close(np.bincount(drawn, minlength=40)) == pytest.approx(by_definition(labels[drawn], scores[drawn]), abs=1e-12)


def test_the_interval_of_an_auc_holds_the_truth():
    """Scores of positives are one standard deviation higher: the true area is Φ(1 / √2)."""
    truth, hits = 0.5 * (1 + math.erf(0.5)), 0
    for trial in range(100):
        generator = np.random.default_rng(trial)
        labels = generator.random(120) < 0.5
        scores = generator.normal(size=120) + labels
        figure = figures({"auc": auc_statistic(labels, scores)}, {}, n=120, resamples=200, seed=trial)["auc"]
        hits += figure["low"] <= truth <= figure["high"]
    assert 88 <= hits <= 99


def test_pictures_are_drawn_with_all_their_questions():
    statistic = auc_statistic([True, False, True], [0.9, 0.5, 0.1], ["x", "y", "x"])
    assert statistic.samples == 2
    assert statistic.close(np.array([1, 1])) == pytest.approx(0.5)
    assert math.isnan(statistic.close(np.array([2, 0])))


@settings(deadline=None)
@given(st.floats(0, 1000), st.floats(0, 1000))
def test_the_probability_of_yes_is_normalised(yes, no):
    found = yes_probability(yes, no)
    assert 0 <= found <= 1
    assert found + yes_probability(no, yes) == pytest.approx(1)
    if max(yes, no) < 300:
        assert found == pytest.approx(math.exp(-yes) / (math.exp(-yes) + math.exp(-no)))


@pytest.mark.parametrize(("said", "yes"), [
    ("yes", True), ("Yes.", True), ("YES, there is a dog", True), ("no", False), ("No, there is no dog.", False), ("There is not a dog", False),
    ("There isn't one", False), ("The answer is yes", True), ("No. But yes, a cat", False), ("yes and no", True), ("nope", False), ("  yes\n", True),
    ("I would say yes", True), ("there is a dog", None), ("", None), ("maybe", None), ("it is yes or no", None), ("Nothing", None),
    ("yesterday", None), ("There isn’t one", False), ("not yes", None),
])  # fmt: skip
def test_yes_and_no_are_told(said, yes):
    assert extract_yes_no(said) is yes


def recount(said, truth):
    """POPE's figures by counting, as its authors' script prints them; an answer that cannot be told is a wrong one."""
    hits = sum(answer is True and real for answer, real in zip(said, truth, strict=True))
    alarms = sum(answer is True and not real for answer, real in zip(said, truth, strict=True))
    rejections = sum(answer is False and not real for answer, real in zip(said, truth, strict=True))
    precision = hits / (hits + alarms) if hits + alarms else 0.0
    recall = hits / sum(truth) if any(truth) else 0.0
    return {"accuracy": (hits + rejections) / len(said), "precision": precision, "recall": recall,
            "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0, "yes_ratio": (hits + alarms) / len(said)}  # fmt: skip


def test_pope_figures_are_the_recount_on_1000_random_sets():
    generator = random.Random(0)
    for _ in range(1000):
        size = generator.randint(1, 12)
        said, truth = generator.choices([True, False, None], k=size), generator.choices([True, False], k=size)
        found = {name: float(measure.close(measure.rows.sum(axis=0))) for name, measure in pope_measures(said, truth).items()}
        assert found == pytest.approx(recount(said, truth), abs=1e-12), (said, truth)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([True, False, None]), st.booleans()), min_size=2, max_size=20))
def test_pope_figures_have_intervals_within_0_and_1(pairs):
    said, truth = zip(*pairs, strict=True)
    for figure in figures(pope_measures(said, truth), {}, n=len(said), resamples=50, seed=0).values():
        assert 0 <= figure["low"] <= figure["high"] <= 1
