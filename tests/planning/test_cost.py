"""Steps, tokens, storage and hours."""

from __future__ import annotations

import pytest

from anymal.planning.cost import cost


def test_by_hand():
    found = cost(pairs=200_000_000, batch_size=2048, answer_tokens=30, sequence_tokens=120, media_values=577 * 1024, trained_bytes=4000, rate=10.0,
                 gpus=64)
    assert found.steps == 97657
    assert found.answer_tokens == 6_000_000_000
    assert found.llm_tokens == 24_000_000_000
    assert found.feature_bytes == 200_000_000 * 577 * 1024 * 2
    assert found.state_bytes == 2 * 3 * 4000
    assert found.gpu_hours == pytest.approx(200_000_000 / 10 / 3600)
    assert found.hours == pytest.approx(found.gpu_hours / 64)


def test_without_a_rate_there_are_no_hours():
    found = cost(pairs=10, batch_size=4, answer_tokens=1, sequence_tokens=2, media_values=3, trained_bytes=4, rate=None, gpus=2)
    assert (found.steps, found.gpu_hours, found.hours) == (3, None, None)
