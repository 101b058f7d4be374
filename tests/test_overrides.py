"""Overrides of a profile's knobs."""

import pytest

from anymal.errors import ConfigError
from anymal.overrides import differences, overridden, read_override

PROFILE = {"align": {"image": {"layers": 6, "caption": {"system": None, "user": "what?"}, "adapter": None}}, "score": {"seed": 0}}


@pytest.mark.parametrize(("setting", "read"), [
    ("align.image.layers=2", ("align.image.layers", 2)),
    ("a.b=1e-4", ("a.b", 1e-4)),
    ("a.b=null", ("a.b", None)),
    ("a.b=[1, x]", ("a.b", [1, "x"])),
    ("a.b='2'", ("a.b", "2")),
    ("a.b=x=y", ("a.b", "x=y")),
])  # fmt: skip
def test_a_value_is_yaml(setting, read):
    assert read_override(setting) == read


@pytest.mark.parametrize("setting", ["layers=2", "align.image.layers", ".layers=1", "a.b=[1"])
def test_what_is_no_override_is_refused(setting):
    with pytest.raises(ConfigError, match="--set "):
        read_override(setting)


def test_a_copy_is_changed_and_the_difference_is_told():
    changed = overridden(PROFILE, [("align.image.layers", 2), ("align.image.adapter", {"rank": 4}), ("score.seed", 1), ("score.seed", 0)], "p.yaml")
    assert PROFILE["align"]["image"]["layers"] == 6
    assert differences(PROFILE, changed) == [("align.image.layers", 6, 2), ("align.image.adapter", None, {"rank": 4})]
    assert differences(PROFILE, overridden(PROFILE, [("align.image.caption", None)], "p.yaml")) == [
        ("align.image.caption", PROFILE["align"]["image"]["caption"], None)]


def test_all_unknown_knobs_are_named_with_the_nearest():
    wrong = [("align.image.layer", 2), ("aline.image.layers", 2), ("score.seed.x", 1), ("align.image.caption", "x"), ("align.sound.layers", 2)]
    with pytest.raises(ConfigError) as caught:
        overridden(PROFILE, wrong, "p.yaml")
    assert str(caught.value).split("\n") == [
        "align.image.layer: p.yaml has no such knob; did you mean 'align.image.layers'?",
        "aline.image.layers: p.yaml has no such knob; did you mean 'align.image.layers'?",
        "score.seed.x: p.yaml has no such knob; score.seed has no knobs below it",
        "align.image.caption = x: is a group of knobs in p.yaml; name one of system, user, or set the group to null",
        "align.sound.layers: p.yaml has no such knob; align has image",
    ]
