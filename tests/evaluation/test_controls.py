from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anymal.errors import DataError
from anymal.evaluation.controls import derangement, draw, draw_stratified, even_sequence, most_similar, pool, stand_ins


@given(st.integers(2, 200), st.integers(0, 2**31))
def test_no_sample_stands_in_for_itself_and_each_stands_in_once(count, seed):
    order = derangement(count, seed=seed)
    assert sorted(order) == list(range(count))
    assert all(place != other for place, other in enumerate(order))
    assert order == derangement(count, seed=seed)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_samples_to_shuffle(count):
    with pytest.raises(DataError, match=f"at least 2 held-out samples, found {count}"):
        derangement(count, seed=0)


@given(st.lists(st.integers(), max_size=30, unique=True), st.integers(0, 40) | st.none(), st.integers(0, 99))
def test_draw_keeps_order_and_limit(rows, limit, seed):
    chosen = draw(rows, limit, seed=seed)
    assert len(chosen) == (len(rows) if limit is None else min(limit, len(rows)))
    assert chosen == [row for row in rows if row in set(chosen)]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=5), st.integers(0, 120) | st.none(), st.integers(0, 99))
def test_stratified_draws_are_as_even_as_can_be(sizes, limit, seed):
    kinds, start = {}, 0
    for number, size in enumerate(sizes):
        kinds[f"k{number}"] = list(range(start, start + size))
        start += size
    chosen = draw_stratified(kinds, limit, seed=seed)
    assert len(chosen) == len(set(chosen)) == (start if limit is None else min(limit, start))
    counts = Counter(kind for kind, items in kinds.items() for item in items if item in set(chosen))
    most = max(counts.values(), default=0)
    assert all(counts[kind] == len(items) or counts[kind] >= most - 1 for kind, items in kinds.items())
    assert chosen == draw_stratified(kinds, limit, seed=seed)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=12), st.integers(1, 40), st.integers(0, 99))
def test_a_sequence_is_even_over_answers_and_uses_all_before_any_again(answers, count, seed):
    places = even_sequence(answers, count, seed=seed, salt=1)
    assert len(places) == count and places == even_sequence(answers, count, seed=seed, salt=1)
    said = Counter(answers[place] for place in places)
    assert max(said.values()) - min(said.get(answer, 0) for answer in set(answers)) <= 1
    for answer, used in said.items():
        often = Counter(place for place in places if answers[place] == answer)
        assert max(often.values()) <= -(-used // answers.count(answer))


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=12), st.integers(0, 99))
def test_a_stand_in_has_another_answer(answers, seed):
    if len(set(answers)) == 1:
        with pytest.raises(DataError, match="needs samples with another answer than"):
            stand_ins(answers, answers, seed=seed, salt=0)
    else:
        found = stand_ins(answers, answers, seed=seed, salt=0)
        assert all(answers[place] != answer for place, answer in zip(found, answers, strict=True))


def brute(pooled, truths, rows, kinds):
    """The definition, item by item."""
    found = []
    for item, own in enumerate(truths):
        allowed = [j for j, other in enumerate(truths) if rows[j] != rows[item] and not set(own) & set(other)]
        same = [j for j in allowed if kinds is not None and kinds[j] == kinds[item]]
        alike = np.round(pooled[[rows[j] for j in same or allowed]] @ pooled[rows[item]], 5)
        found.append((same or allowed)[int(np.argmax(alike))])
    return found


@given(st.integers(0, 999), st.integers(2, 12), st.booleans())
def test_the_most_similar_item_is_of_another_medium_and_shares_no_truth(seed, media, with_kinds):
    generator = np.random.default_rng(seed)
    pooled = pool(generator.normal(size=(media, 3, 4)))
    rows = [*range(media), *generator.integers(media, size=5).tolist()]
    truths = [{f"t{row % 3}", f"own {row}"} for row in rows]
    kinds = [("a", "b")[int(generator.integers(2))] for _ in rows] if with_kinds else None
    assert most_similar(pooled, truths, rows=rows, kinds=kinds) == brute(pooled, truths, rows, kinds)


def test_copies_are_equally_alike_and_the_first_stands_in():
    pooled = pool(np.random.default_rng(0).normal(size=(300, 5, 8)))[[0, 1, 2, 1, 1]]
    assert most_similar(pooled, [{"x"}, {"y"}, {"x"}, {"y"}, {"y"}], rows=range(5))[2] == 1
    assert np.allclose(np.linalg.norm(pooled, axis=1), 1) and pool(np.zeros((1, 3, 4))).tolist() == [[0.0] * 4]


def test_similar_needs_another_answer():
    pooled = pool(np.ones((2, 1, 2)))
    with pytest.raises(DataError, match="shares nothing with 'red'; every sample does, evaluate on more or leave similar out of conditions"):
        most_similar(pooled, [{"red"}, {"red"}], rows=[0, 1])
    assert most_similar(pooled, [{"red"}, {"blue"}], rows=[0, 1]) == [1, 0]
