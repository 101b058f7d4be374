"""Answers released sentence by sentence, each after it was checked (paper section 4, step 3); nothing else leaves.

Pieces are pulled, no further than the reader has read: a slow reader slows the model down and fills no queue. Whoever stops reading closes what makes
the pieces.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Sequence
from contextlib import aclosing, suppress
from typing import Any

from anymal.safety.guard import Guard, Picture, Rejected
from anymal.safety.sentences import LONGEST, SentenceSplitter
from anymal.safety.verdicts import NOT_CHECKED, Code, Verdict

REACH = 600
"""Characters of what was released before that a sentence is looked at together with."""
REFUSAL = "I'm sorry, I can't go on with this answer."
UNCHECKED = "I'm sorry, this answer cannot be checked at the moment, so I can't go on with it."


class Refusal(str):
    """The last thing a guarded stream gives where the guard stops it: a text for the reader, and why."""

    verdict: Verdict

    def __new__(cls, verdict: Verdict) -> Refusal:
        """A text that fits the verdict, which it carries."""
        unchecked = any(reason.code is Code.UNAVAILABLE for reason in verdict.reasons)
        refusal = super().__new__(cls, UNCHECKED if unchecked else REFUSAL)
        refusal.verdict = verdict
        return refusal


class _Answer:
    """What is known of an answer while it grows."""

    def __init__(self, guard: Guard, images: Sequence[Picture], reach: int, longest: int) -> None:
        self.splitter = SentenceSplitter(longest)
        self.before = ""
        self._guard, self._reach = guard, reach
        self._images: Sequence[Picture] = images
        self._opened = not images

    def open(self) -> Verdict | None:
        """Decode the pictures, once; the verdict if that cannot be done."""
        if not self._opened:
            try:
                self._images = self._guard.open(self._images)
            except Rejected as error:
                return Verdict((error.reason,))
            except Exception:
                return NOT_CHECKED
            self._opened = True
        return None

    def check(self, sentence: str) -> Verdict:
        """The guard's verdict; whatever happens to it, there is one."""
        try:
            unreadable = self.open()
            return unreadable or self._guard.check_output(sentence, self._images, before=self.before)
        except Exception:
            return NOT_CHECKED

    def released(self, sentence: str) -> None:
        """Remember what the reader has."""
        self.before = (self.before + sentence)[-self._reach :] if self._reach else ""


def guarded_stream(guard: Guard, pieces: Iterator[str], images: Sequence[Picture] = (), *, reach: int = REACH,
                   longest: int = LONGEST) -> Generator[str, None, None]:
    """Sentences of an answer that may be released, then a `Refusal` if one may not.

    Args:
        pieces: of the answer, of any sizes; closed when the stream ends in whichever way.
        images: those of the prompt.
        reach: characters of what was released before that each sentence is looked at together with.
        longest: characters a sentence may have.

    Raises:
        whatever `pieces` raises; what was not yet checked is lost then.
    """
    answer = _Answer(guard, images, reach, longest)
    try:
        for sentence in _sentences(answer.splitter, pieces):
            verdict = answer.check(sentence)
            if not verdict.allowed:
                yield Refusal(verdict)
                return
            answer.released(sentence)
            yield sentence
    finally:
        _close(pieces)


async def aguarded_stream(guard: Guard, pieces: AsyncIterator[str], images: Sequence[Picture] = (), *, reach: int = REACH,
                          longest: int = LONGEST) -> AsyncGenerator[str, None]:
    """`guarded_stream` for an event loop: checks run in threads, and a cancelled reader closes `pieces`."""
    answer = _Answer(guard, images, reach, longest)
    try:
        async with aclosing(_asentences(answer.splitter, pieces)) as sentences:
            async for sentence in sentences:
                verdict = await asyncio.to_thread(answer.check, sentence)
                if not verdict.allowed:
                    yield Refusal(verdict)
                    return
                answer.released(sentence)
                yield sentence
    finally:
        await _aclose(pieces)


def _sentences(splitter: SentenceSplitter, pieces: Iterator[str]) -> Iterator[str]:
    for piece in pieces:
        yield from splitter.feed(piece)
    yield from splitter.finish()


async def _asentences(splitter: SentenceSplitter, pieces: AsyncIterator[str]) -> AsyncGenerator[str, None]:
    async for piece in pieces:
        for sentence in splitter.feed(piece):
            yield sentence
    for sentence in splitter.finish():
        yield sentence


def _close(pieces: Any) -> None:
    """Close a generator; other iterators have nothing to close. An error while closing is not the reader's."""
    if hasattr(pieces, "close"):
        with suppress(Exception):
            pieces.close()


async def _aclose(pieces: Any) -> None:
    if hasattr(pieces, "aclose"):
        with suppress(Exception):
            await pieces.aclose()
