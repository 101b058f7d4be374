"""The order of decisions about a model's champion: which of them hold, and which version was champion before which.

A registry has no compare-and-swap of aliases. But it numbers the versions of a registered model one after another, whoever asks at once, and
never gives a number twice. So each decision is a version of a registered model of its own, the ledger; it names the decision that it builds
on, and of several that build on the same one the first alone holds (docs/decisions/0012-a-ledger-of-promotions.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PROMOTED, REFUSED, ROLLED_BACK = "promoted", "refused", "rolled back"


@dataclass(frozen=True)
class Entry:
    """One decision, as the ledger has it."""

    number: int
    """Of the ledger's version: the order of decisions."""
    decision: str
    """`promoted`, `refused` or `rolled back`."""
    origin: int | None
    """The champion before; None if there was none."""
    target: int
    """The version that was to become champion."""
    run: str
    """MLflow's run that holds the decision document."""
    basis: str
    """The run of the decision that it builds on; empty for the first."""
    settled: bool
    """Whether all that follows from it was done: the alias was seen to be where it leads."""
    reasons: str = ""
    """What was said of it, line by line."""


def holding(entries: Sequence[Entry]) -> list[Entry]:
    """The decisions that hold, in order: each builds on the one before it. One that was settled held, whatever is missing before it now."""
    held: list[Entry] = []
    for entry in sorted(entries, key=lambda entry: entry.number):
        if entry.decision != REFUSED and (entry.settled or entry.basis == (held[-1].run if held else "")):
            held.append(entry)
    return held


def champions(entries: Sequence[Entry]) -> list[int]:
    """The versions to which roll-backs lead, the present champion last.

    A version that became champion by hand is known as the origin of the next promotion. A roll-back takes all that came after its target away.
    """
    line: list[int] = []
    for entry in holding(entries):
        if entry.decision == ROLLED_BACK and entry.target in line:
            del line[len(line) - line[::-1].index(entry.target) :]
            continue
        if entry.origin is not None and (not line or line[-1] != entry.origin):
            line.append(entry.origin)
        line.append(entry.target)
    return line
