from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anymal.errors import DataError
from anymal.evaluation.controls import derangement, draw, draw_stratified


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
