"""Why samples are left out, and how that is counted: what the curation of every modality shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anymal.errors import DataError


@dataclass(frozen=True)
class Drop:
    """Why a sample was left out: one of its modality's `REASONS`, and what exactly was found."""

    reason: str
    detail: str = ""


def count_reasons(drops: Iterable[Drop | None], reasons: Iterable[str]) -> dict[str, int]:
    """Reason -> how many were left out for it, in the order of `reasons`; those of none are absent."""
    counts = Counter(drop.reason for drop in drops if drop is not None)
    return {reason: counts[reason] for reason in reasons if counts[reason]}


def count_verdicts(drops: Sequence[Drop | None], reasons: Iterable[str]) -> dict[str, Any]:
    """`seen`, `kept` and `dropped` (by reason) of samples, given each one's verdict."""
    dropped = count_reasons(drops, reasons)
    kept = sum(drop is None for drop in drops)
    assert kept + sum(dropped.values()) == len(drops), "a reason is not in the list"
    return {"seen": len(drops), "kept": kept, "dropped": dropped}


def all_dropped(stage: str, things: str, drops: Sequence[tuple[Drop, str]], reasons: Mapping[str, str]) -> DataError:
    """The error for samples that were all left out: the reason that took most, and an example.

    Args:
        things: what they are, in the plural.
        drops: verdict and name of each.
        reasons: what each reason means.
    """
    reason, count = Counter(drop.reason for drop, _ in drops).most_common(1)[0]
    example = next(name for drop, name in drops if drop.reason == reason)
    return DataError(f"{stage}: all {len(drops)} {things} were dropped, {count} of them for '{reason}' ({reasons[reason]}), for example {example}; "
                     "relax that rule's knob or correct the source")
