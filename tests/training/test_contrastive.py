"""Retrieval by text: what counts as a right answer, with texts and media whose embeddings are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from anymal.errors import DataError
from anymal.training.contrastive import Retrieval

SHARED, LEFT, RIGHT, OTHER = "doing rows", "rows with the left arm", "rows with the right arm", "doing swings"


class Words:
    """Each text a direction of its own; texts of one arm are told apart by their second caption only."""

    def embed(self, texts: list[str]) -> torch.Tensor:
        return torch.eye(4)[[(SHARED, LEFT, RIGHT, OTHER).index(text) for text in texts]]


class Held:
    """A split whose media are vectors."""

    def __init__(self, samples: list[tuple[list[str], list[float]]]) -> None:
        keys = ["\n".join(sorted(captions)) for captions, _ in samples]
        self.captions = [captions for captions, _ in samples]
        self.meanings = sorted(set(keys))
        self.meaning = np.array([self.meanings.index(key) for key in keys])
        self._vectors = torch.tensor([vector for _, vector in samples])

    def __len__(self) -> int:
        return len(self.captions)

    def media(self, rows: Any) -> torch.Tensor:
        return self._vectors[np.asarray(rows)]


class Shared:
    """The space of media and texts is that of the texts."""

    def media(self, media: torch.Tensor) -> torch.Tensor:
        return functional.normalize(media, dim=-1)

    def texts(self, embeddings: torch.Tensor) -> torch.Tensor:
        assert torch.allclose(embeddings.norm(dim=-1), torch.ones(len(embeddings)))
        return embeddings


def recalls(samples: list[tuple[list[str], list[float]]]) -> dict[str, float]:
    found: dict[str, float] = Retrieval(Held(samples), Words(), batch_size=2).recalls(Shared())  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("shared_first", [True, False])
def test_meanings_that_share_a_caption_are_told_apart_by_the_others(shared_first):
    order = 1 if shared_first else -1
    samples = [([SHARED, RIGHT][::order], [1.0, 0.0, 1.0, 0.0]), ([SHARED, LEFT][::order], [1.0, 1.0, 0.0, 0.0]),
               ([SHARED, LEFT][::order], [1.0, 0.9, 0.0, 0.0]), ([OTHER], [0.0, 0.0, 0.0, 1.0])]
    found = recalls(samples)
    assert found["media_to_text_recall_at_1"] == found["text_to_media_recall_at_1"] == 1.0
    assert found["chance"] == 0.5


def test_a_medium_near_another_meaning_is_a_miss():
    found = recalls([([SHARED, RIGHT], [1.0, 1.0, 0.0, 0.0]), ([SHARED, LEFT], [1.0, 1.0, 0.0, 0.0]), ([OTHER], [0.0, 0.0, 0.0, 1.0])])
    assert found["media_to_text_recall_at_1"] == pytest.approx(2 / 3)
    assert found["media_to_text_recall_at_5"] == 1.0


def test_one_meaning_only_cannot_be_retrieved():
    with pytest.raises(DataError, match="the validation split holds 1 distinct label; at least 2 are needed"):
        recalls([([SHARED, LEFT], [1.0, 1.0, 0.0, 0.0])])
