"""Labels and answers in texts."""

import pytest

from anymal.evaluation.names import Vocabulary, canonical

DRUMS = Vocabulary(["drum", "snare drum", "hi-hat", "tom drum", "clap"])


@pytest.mark.parametrize(("text", "named"), [
    ("A snare drum.", {"snare drum"}), ("A DRUM and a snare drum", {"drum", "snare drum"}), ("hi hats!", {"hi hat"}), ("Hi-Hat", {"hi hat"}),
    ("a snare-drum", {"snare drum"}), ("claps", {"clap"}), ("clapping", set()), ("eardrum", set()), ("", set()), ("a snare", set()),
    ("snare drum drum", {"snare drum", "drum"}), ("snare drums, tom drums", {"snare drum", "tom drum"}),
])  # fmt: skip
def test_phrases_are_named_whole_the_longest_first(text, named):
    assert DRUMS.named(text) == named


@pytest.mark.parametrize(("one", "other"), [("bicep curls", "bicep curl"), ("boxes", "box"), ("cherries", "cherry"), ("cookies", "cookie"),
                                            ("two dogs", "2 dog"), ("glasses", "glass"), ("axes", "axe")])  # fmt: skip
def test_a_plural_is_its_singular(one, other):
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize(("one", "other"), [("bus", "bu"), ("glass", "glas"), ("gas", "ga"), ("left", "lefts x")])
def test_other_words_are_not(one, other):
    assert canonical(one) != canonical(other)


def test_one_name_only_and_only_among_those_that_count():
    known = Vocabulary(["red", "blue", "bicep curls"])
    assert known.names_only("a red one", "red")
    assert not known.names_only("red or blue", "red")
    assert not known.names_only("neither", "red")
    assert known.names_only("Red, bicep curl", "bicep curls", among=["bicep curls"])
    assert not known.names_only("Red, bicep curl", "bicep curls")
    assert not Vocabulary(["?!"]).names_only("", "red")
