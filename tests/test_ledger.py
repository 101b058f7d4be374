"""Which decisions hold, and where roll-backs lead."""

from __future__ import annotations

from anymal.ledger import Entry, champions, holding


def entry(number: int, target: int, basis: str, *, origin: int | None = None, decision: str = "promoted", settled: bool = True) -> Entry:
    return Entry(number, decision, origin, target, f"r{number}", basis, settled)


def test_of_two_decisions_on_the_same_standing_the_first_holds():
    entries = [entry(1, 1, ""), entry(2, 5, "r1", origin=1, settled=False), entry(3, 6, "r1", origin=1, settled=False)]
    assert [one.number for one in holding(entries[::-1])] == [1, 2]
    further = [*entries, entry(4, 7, "r3", origin=6, settled=False), entry(5, 8, "r2", origin=5, settled=False)]
    assert [one.number for one in holding(further)] == [1, 2, 5], "what builds on one that does not hold does not hold either"


def test_refusals_change_nothing():
    entries = [entry(1, 1, ""), entry(2, 5, "r1", origin=1, decision="refused", settled=False), entry(3, 6, "r1", origin=1)]
    assert [one.number for one in holding(entries)] == [1, 3]
    assert champions(entries) == [1, 6]


def test_what_was_settled_held_though_an_entry_before_it_is_gone():
    entries = [entry(1, 1, ""), entry(3, 6, "r2", origin=5), entry(4, 7, "r3", origin=6, settled=False), entry(5, 8, "r2", settled=False)]
    assert [one.number for one in holding(entries)] == [1, 3, 4]


def test_the_line_of_champions():
    promoted = [entry(1, 1, ""), entry(2, 3, "r1", origin=1), entry(3, 4, "r2", origin=3)]
    assert champions(promoted) == [1, 3, 4]
    back = [*promoted, entry(4, 3, "r3", origin=4, decision="rolled back")]
    assert champions(back) == [1, 3]
    assert champions([*back, entry(5, 1, "r4", origin=3, decision="rolled back")]) == [1]
    assert champions([*back, entry(5, 6, "r4", origin=3)]) == [1, 3, 6], "a promotion after a roll-back goes on from there"
    assert champions([*back, entry(5, 6, "r4", origin=9)]) == [1, 3, 9, 6], "one made champion by hand is known as what the next replaced"
    assert champions([]) == []
