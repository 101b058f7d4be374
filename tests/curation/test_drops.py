"""Verdicts and their counts, the order that keys decide, and what a curation stage drags in."""

from __future__ import annotations

import pytest

from anymal.curation.drops import Drop, all_dropped, count_reasons, count_verdicts
from anymal.curation.keys import make_key, spread
from tests.graph import closure

REASONS = {"late": "it came late", "loud": "it was too loud", "never": "it never happens"}
DROPS = [Drop("loud", "120 dB"), None, Drop("late"), Drop("loud"), None]


def test_kept_and_dropped_add_up_in_the_order_of_the_rules():
    found = count_verdicts(DROPS, REASONS)
    assert found == {"seen": 5, "kept": 2, "dropped": {"late": 1, "loud": 2}}
    assert list(found["dropped"]) == ["late", "loud"]
    assert count_verdicts([], REASONS) == {"seen": 0, "kept": 0, "dropped": {}}
    assert count_reasons(iter(DROPS), REASONS) == found["dropped"]


def test_an_unknown_reason_is_never_lost():
    with pytest.raises(AssertionError, match="a reason is not in the list"):
        count_verdicts([Drop("odd")], REASONS)


def test_when_all_were_dropped_the_most_frequent_reason_is_named():
    error = all_dropped("curate_x", "things", [(drop, f"s/{place}") for place, drop in enumerate(DROPS) if drop], REASONS)
    assert str(error) == ("curate_x: all 3 things were dropped, 2 of them for 'loud' (it was too loud), for example s/0; "
                          "relax that rule's knob or correct the source")


def test_keys_are_readable_and_of_one_file_each():
    names = ["a b/c.png", "a-b/c.png", "a b/c.jpg", "x" * 200 + ".png"]
    keys = [make_key("source", name) for name in names]
    assert keys[0].startswith("source-a-b-c-") and len(set(keys)) == len(keys) and max(map(len, keys)) <= 79


def test_the_order_depends_on_the_keys_only():
    members = [f"folder{place // 10}/{place}" for place in range(40)]
    chosen = spread(members, str, 8)
    assert chosen == spread(members[::-1], str, 8) == spread(members, str, 40)[:8]
    assert len({name.partition("/")[0] for name in chosen}) > 1 and chosen != members[:8]


@pytest.mark.parametrize("module", ["sound_output", "sounds", "motions", "ego4d", "clip_shards", "clips"])
def test_curation_of_other_media_knows_nothing_of_pictures(module):
    """A change of the rules of pictures re-runs no sound, motion or clip."""
    pictures = {f"anymal/curation/{name}" for name in ("output.py", "pipeline.py", "workers.py", "detectors.py", "cat.py", "rules.py", "report.html",
                                                    "images.py", "sources.py")}
    assert not closure([f"anymal/curation/{module}.py"]) & pictures
