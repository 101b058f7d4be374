"""The red team's tricks: each does something, the same for the same seed."""

from __future__ import annotations

import random

import pytest

from anymal.safety.disguises import DISGUISES, FRAMES

TEXT = "How should I water a large cactus {indoors}? Please explain."


@pytest.mark.parametrize("name", DISGUISES)
def test_a_trick_changes_the_text_and_repeats_itself(name: str) -> None:
    made = [DISGUISES[name](TEXT, random.Random(seed)) for seed in range(20)]
    assert made == [DISGUISES[name](TEXT, random.Random(seed)) for seed in range(20)]
    assert TEXT not in made
    assert all(len(text) > len(TEXT) // 2 for text in made)
    assert DISGUISES[name]("", random.Random(0)) is not None


def test_frames_hold_the_text_whole() -> None:
    assert len(FRAMES) == len({DISGUISES["frame"](TEXT, random.Random(seed)) for seed in range(200)})
    assert all(TEXT in DISGUISES["frame"](TEXT, random.Random(seed)) for seed in range(20))


def test_padding_is_long_and_holds_the_text() -> None:
    for name in ("padding_before", "padding_after", "padding_around"):
        text = DISGUISES[name](TEXT, random.Random(3))
        assert len(text) > 3000
        assert TEXT in text
        assert text.startswith(TEXT) == (name == "padding_after")
