"""Near-duplicates, groups of one source object, the split, and the audit that nothing leaks from one split to another."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

BLOCK = 2048
"""Rows compared at once: 2048 × 50,000 hashes take 100 MB."""
SPLITS = ("train", "val", "test")


def near_pairs(hashes: Sequence[str], fingerprints: np.ndarray, *, max_bits: int, max_colour: float) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of pictures that look alike, in order.

    Args:
        hashes: 64-bit perceptual hashes as hexadecimal.
        fingerprints: colour miniatures, shape (pictures, values) uint8.
        max_bits: greatest Hamming distance of two hashes, 0 to 64.
        max_colour: greatest mean absolute difference of two miniatures, 0 to 255.
    """
    import numpy as np

    codes = np.array([int(value, 16) for value in hashes], dtype=np.uint64)
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(codes), BLOCK):
        rows = codes[start : start + BLOCK]
        left, right = np.nonzero(np.bitwise_count(rows[:, None] ^ codes[None, :]) <= max_bits)
        left += start
        ahead = left < right
        left, right = left[ahead], right[ahead]
        for offset in range(0, len(left), BLOCK):
            a, b = left[offset : offset + BLOCK], right[offset : offset + BLOCK]
            apart = np.abs(fingerprints[a].astype(np.int16) - fingerprints[b].astype(np.int16)).mean(axis=1)
            pairs.extend((int(i), int(j)) for i, j in zip(a[apart <= max_colour], b[apart <= max_colour], strict=True))
    return sorted(pairs)


def components(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Connected components of `count` nodes: for each node, the smallest node of its component."""
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges), dtype=np.int8), (edges[:, 0], edges[:, 1])), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    first: dict[int, int] = {}
    for node, label in enumerate(labels.tolist()):
        first.setdefault(label, node)
    return [first[label] for label in labels.tolist()]


def same_key_pairs(keys: Sequence[Hashable | None]) -> list[tuple[int, int]]:
    """Pairs that link all nodes of equal key (each to the first of them); None links nothing."""
    first: dict[Hashable, int] = {}
    return [(first.setdefault(key, node), node) for node, key in enumerate(keys) if key is not None and first.setdefault(key, node) != node]


def assign_split(group: str, *, seed: int, val_fraction: float, test_fraction: float) -> str:
    """Split of a group, from a hash of its name: stays the same when other groups come or go."""
    value = int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:8], "big") / 2**64
    if value < test_fraction:
        return "test"
    return "val" if value < test_fraction + val_fraction else "train"


@dataclass(frozen=True)
class Member:
    """What the audit must know of one sample. `parts` are the keys of the pictures a composition is made of."""

    key: str
    split: str
    group: str
    phash: str
    parts: tuple[str, ...] = ()


def audit_leakage(members: Sequence[Member], fingerprints: np.ndarray, *, max_bits: int, max_colour: float) -> list[str]:
    """Everything that two splits share: groups, alike pictures, parts of compositions, keys. An empty list means no leak.

    Args:
        members: all samples, in the order of `fingerprints`' rows.
        fingerprints: colour miniatures, shape (samples, values) uint8.
        max_bits, max_colour: as in `near_pairs`.
    """
    leaks: list[str] = []
    owners: Mapping[str, dict[str, dict[str, str]]] = {kind: defaultdict(dict) for kind in ("key", "group", "part")}
    for member in members:
        owners["key"][member.key].setdefault(member.split, member.key)
        owners["group"][member.group].setdefault(member.split, member.key)
        # A picture is a part of itself: a composition and the bare picture must be in one split too.
        for part in (member.key, *member.parts):
            owners["part"][part].setdefault(member.split, member.key)
    for kind, table in owners.items():
        for name, splits in sorted(table.items()):
            if len(splits) > 1:
                leaks.append(f"{kind} {name!r} is in {', '.join(f'{split} ({key})' for split, key in sorted(splits.items()))}")
    for i, j in near_pairs([member.phash for member in members], fingerprints, max_bits=max_bits, max_colour=max_colour):
        if members[i].split != members[j].split:
            leaks.append(f"{members[i].key} ({members[i].split}) looks like {members[j].key} ({members[j].split})")
    return leaks
