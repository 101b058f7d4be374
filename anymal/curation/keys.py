"""Keys of samples, and the order that their hashes decide."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

Member = TypeVar("Member")


def make_key(source: str, name: str) -> str:
    """A shard key for a file of a source: readable, unique by its last eight digits."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", f"{source}-{name.rsplit('.', 1)[0]}").strip("-")[:70]
    return f"{slug}-{hashlib.sha256(f'{source}/{name}'.encode()).hexdigest()[:8]}"


def spread(members: Sequence[Member], key: Callable[[Member], str], count: int) -> list[Member]:
    """A sample in which no folder is preferred: the first `count` by a hash of the key."""
    return sorted(members, key=lambda member: hashlib.sha256(key(member).encode()).digest())[:count]
