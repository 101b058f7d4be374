"""Near-duplicates among kept pairs: texts whose word triples overlap, found by MinHash so that many pairs stay cheap."""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np

from anymal.synthesis.words import words

ROWS, BANDS = 4, 32
"""With 32 bands of 4 hashes a pair at 0.8 is looked at with a probability above 0.9999, one at 0.4 in half of the cases."""
_PRIME = (1 << 31) - 1


class Alike:
    """Counts, for each new text, the kept ones that are like it."""

    def __init__(self, similarity: float) -> None:
        """
        Args:
            similarity: share of common word triples (Jaccard) from which two texts are alike.
        """
        rng = np.random.default_rng((0, ROWS, BANDS))
        self._factors = rng.integers(1, _PRIME, (2, ROWS * BANDS, 1), dtype=np.uint64)
        self._similarity = similarity
        self._texts: list[frozenset[str]] = []
        self._buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)

    def count(self, text: str) -> int:
        """How many kept texts are like this one."""
        triples = _triples(text)
        near = {index for bucket in self._bands(triples) for index in self._buckets.get(bucket, [])}
        return sum(_overlap(triples, self._texts[index]) >= self._similarity for index in near)

    def keep(self, text: str) -> None:
        """Remember a text."""
        triples = _triples(text)
        for bucket in self._bands(triples):
            self._buckets[bucket].append(len(self._texts))
        self._texts.append(triples)

    def _bands(self, triples: frozenset[str]) -> list[tuple[int, bytes]]:
        digests = [hashlib.blake2b(triple.encode(), digest_size=4).digest() for triple in sorted(triples)]
        hashes = np.array([int.from_bytes(digest) % _PRIME for digest in digests], np.uint64)
        least = ((self._factors[0] * hashes + self._factors[1]) % _PRIME).min(1).reshape(BANDS, ROWS)
        return [(band, row.tobytes()) for band, row in enumerate(least)]


def _triples(text: str) -> frozenset[str]:
    found = words(text)
    return frozenset(" ".join(found[index : index + 3]) for index in range(max(1, len(found) - 2)))


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)
