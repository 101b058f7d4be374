from __future__ import annotations

import numpy as np
import pytest

from anymal.curation import duplicates
from anymal.curation.duplicates import Member

BITS, COLOUR = 4, 10.0


def flat(*values: int) -> np.ndarray:
    return np.array([[value] * 12 for value in values], dtype=np.uint8)


def test_near_pairs_need_both_shape_and_colour() -> None:
    hashes = ["00000000000000ff", "00000000000000fe", "00000000000000ff", "ffffffffffffffff"]
    assert duplicates.near_pairs(hashes, flat(100, 105, 200, 100), max_bits=BITS, max_colour=COLOUR) == [(0, 1)]
    assert duplicates.near_pairs(hashes, flat(100, 105, 200, 100), max_bits=BITS, max_colour=255) == [(0, 1), (0, 2), (1, 2)]
    assert duplicates.near_pairs([], flat(), max_bits=BITS, max_colour=COLOUR) == []


def test_near_pairs_agree_with_a_plain_double_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "BLOCK", 7)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2**12, size=60)
    colours = rng.integers(0, 60, size=(60, 12)).astype(np.uint8)
    expected = [
        (i, j) for i in range(60) for j in range(i + 1, 60)
        if int(codes[i] ^ codes[j]).bit_count() <= 3 and np.abs(colours[i].astype(int) - colours[j]).mean() <= 20
    ]
    assert expected
    assert duplicates.near_pairs([f"{code:016x}" for code in codes], colours, max_bits=3, max_colour=20) == expected


def test_components_and_groups() -> None:
    assert duplicates.components(6, [(1, 2), (4, 2)]) == [0, 1, 1, 3, 1, 5]
    assert duplicates.same_key_pairs(["a", None, "b", "a", None, "a"]) == [(0, 3), (0, 5)]


def test_split_depends_on_the_group_alone_and_meets_the_fractions() -> None:
    splits = [duplicates.assign_split(f"group-{index}", seed=1, val_fraction=0.1, test_fraction=0.2) for index in range(4000)]
    assert splits == [duplicates.assign_split(f"group-{index}", seed=1, val_fraction=0.1, test_fraction=0.2) for index in range(4000)]
    assert abs(splits.count("test") / 4000 - 0.2) < 0.03
    assert abs(splits.count("val") / 4000 - 0.1) < 0.03


CLEAN = [Member("a", "train", "g1", "0000000000000000"), Member("b", "test", "g2", "ffffffffffffffff"),
         Member("scene-1", "train", "s1", "00000000ffffffff", ("a",)), Member("scene-2", "test", "s2", "ffffffff00000000", ("b",))]


def leaks(members: list[Member]) -> list[str]:
    return duplicates.audit_leakage(members, flat(*[128] * len(members)), max_bits=BITS, max_colour=COLOUR)


def test_a_clean_split_has_no_leak() -> None:
    assert leaks(CLEAN) == []


@pytest.mark.parametrize(("planted", "named"), [
    (Member("c", "test", "g1", "0f0f0f0f0f0f0f0f"), "group 'g1'"),
    (Member("c", "test", "g9", "0000000000000001"), "looks like"),
    (Member("scene-3", "test", "s3", "0f0f0f0f0f0f0f0f", ("b", "a")), "part 'a'"),
    (Member("a", "val", "g9", "0f0f0f0f0f0f0f0f"), "key 'a'"),
])
def test_each_planted_leak_is_found(planted: Member, named: str) -> None:
    found = leaks([*CLEAN, planted])
    assert any(named in leak for leak in found), found
