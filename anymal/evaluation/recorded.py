"""A model whose answers are on disk as soon as they are there, so that an evaluation that was killed asks nothing twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from anymal.data.journal import Journal

if TYPE_CHECKING:
    from anymal.model.anymal import Completion
    from anymal.model.prompt import Prompt, Template


class Batched(Protocol):
    """What is asked of `anymal.model.anymal.AnyMAL`: answers and losses by the place of their prompt, batch by batch.

    Without the prompts of the first batches, it makes the same batches of the others: padding may change the last bit of a result.
    """

    @property
    def templates(self) -> dict[str, dict[str, Template]]:
        """Modality -> prompts by name."""
        ...

    @property
    def metadata(self) -> dict[str, dict[str, Any]]:
        """Modality -> what its checkpoint records."""
        ...

    def completions(self, prompts: Sequence[Prompt], *, max_new_tokens: int, batch_size: int) -> Iterator[list[tuple[int, Completion]]]:
        """Greedy answers and how they ended."""
        ...

    def losses(self, prompts: Sequence[Prompt], targets: Sequence[str], *, batch_size: int) -> Iterator[list[tuple[int, tuple[float, int]]]]:
        """Summed nats and number of tokens of each target."""
        ...


class RecordedModel:
    """Asks a model, and writes each batch into a journal when it is there. What the journal at `path` holds is not asked again.

    A program that asks the same in the same order as the one that was killed gets the same results to the bit. Requests are told apart by their
    number and by what they hold (messages, features, limit or target); which model was asked the journal does not know, so keep it where a change
    of the model removes it (the folder of a `resumable` stage's output).
    """

    def __init__(self, model: Batched, path: Path) -> None:
        self._model = model
        self._journal = Journal(path)
        self._known = {(entry["number"], entry["digest"]): entry["result"] for group in self._journal.groups for entry in group}
        self._asked = 0
        self.templates, self.metadata = model.templates, model.metadata

    def complete(self, prompts: Sequence[Prompt], *, max_new_tokens: int, batch_size: int) -> list[Completion]:
        """Greedy answers, each with how it ended."""
        from anymal.model.anymal import Completion

        digests = [_digest(prompt, max_new_tokens) for prompt in prompts]
        found = self._answer(digests, lambda left: self._model.completions(
            [prompts[i] for i in left], max_new_tokens=max_new_tokens, batch_size=batch_size))
        return [Completion(*result) for result in found]

    def score(self, prompts: Sequence[Prompt], targets: Sequence[str], *, batch_size: int) -> list[tuple[float, int]]:
        """Summed nats (end of turn included) and number of tokens of each target given its prompt."""
        digests = [_digest(prompt, target) for prompt, target in zip(prompts, targets, strict=True)]
        found = self._answer(digests, lambda left: self._model.losses(
            [prompts[i] for i in left], [targets[i] for i in left], batch_size=batch_size))
        return [(float(nats), int(tokens)) for nats, tokens in found]

    def _answer(self, digests: Sequence[str], ask: Callable[[list[int]], Iterable[list[tuple[int, Any]]]]) -> list[Any]:
        names = list(enumerate(digests, start=self._asked))
        self._asked += len(names)
        left = [place for place, name in enumerate(names) if name not in self._known]
        for batch in ask(left) if left else ():
            entries = [(names[left[place]], list(result)) for place, result in batch]
            self._journal.append([{"number": number, "digest": digest, "result": result} for (number, digest), result in entries])
            self._known.update(entries)
        return [self._known[name] for name in names]


def _digest(prompt: Prompt, more: int | str) -> str:
    """SHA-256 of what the answer depends on."""
    digest = hashlib.sha256(json.dumps([prompt.messages, [medium.modality for medium in prompt.media], more]).encode())
    for medium in prompt.media:
        digest.update(str((medium.features.dtype, tuple(medium.features.shape))).encode())
        digest.update(medium.features.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
