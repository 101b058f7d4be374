"""One model answering many callers: a thread that decodes all of them together, and a bounded queue in front of it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from anymal.errors import AnymalError
from anymal.model.decoding import Decoder, Sampling
from anymal.model.layout import lay_out_for_few_rows
from anymal.serving.threads import compute_with

if TYPE_CHECKING:
    from anymal.model.anymal import AnyMAL
    from anymal.model.prompt import Pieces, Prompt

Finish = Literal["stop", "length", "cancelled"]
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer makes of the beginning of a character whose other bytes are in the next token."""


class Busy(AnymalError):
    """As many requests wait as may; try again later."""


class Stopped(AnymalError):
    """The engine ends, or could not compute this answer."""


@dataclass(frozen=True)
class _Failed:
    error: BaseException


class Answer:
    """An answer in the making: an iterator over its text, piece by piece; joined they are the answer, stripped of surrounding white space.

    It may be cancelled from any thread; its place in the batch is free a token later.
    """

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.tokens = 0
        """Chosen so far."""
        self.finish: Finish | None = None
        """How it ended; None while it goes on."""
        self.began: float | None = None
        """When the first token was chosen (`time.monotonic`)."""
        self._pieces: queue.SimpleQueue[str | _Failed | None] = queue.SimpleQueue()
        self._cancelled = threading.Event()

    def __iter__(self) -> Iterator[str]:
        """The text as it comes.

        Raises:
            Stopped: if the engine ended, or failed, before the answer did.
        """
        while (piece := self.next()) is not None:
            yield piece

    def next(self, timeout: float | None = None) -> str | None:
        """The next piece of text, waited for; None at the end.

        Raises:
            TimeoutError: if none came within `timeout` seconds.
            Stopped: if the engine ended, or failed, before the answer did.
        """
        try:
            piece = self._pieces.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError from None
        if isinstance(piece, _Failed):
            raise Stopped("the answer could not be computed; the server's log says why") from piece.error
        return piece

    def cancel(self) -> None:
        """Nobody wants it any longer."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._cancelled.is_set()

    def push(self, text: str) -> None:
        """Hand over a piece (the engine's side)."""
        if text:
            self._pieces.put(text)

    def end(self, finish: Finish) -> None:
        """Say that it is complete (the engine's side)."""
        self.finish = finish
        self._pieces.put(None)

    def fail(self, error: BaseException) -> None:
        """Say that it will not be completed (the engine's side)."""
        self._pieces.put(_Failed(error))


@dataclass
class _Work:
    answer: Answer
    pieces: Pieces
    sampling: Sampling
    limit: int
    stops: tuple[str, ...]
    ids: list[int] = field(default_factory=list)
    said: int = 0
    """Characters handed over."""


class Engine:
    """Answers prompts, up to `rows` of them at once, each token by token.

    Args:
        model: the engine's own from now on; its weights are laid out for decoding.
        rows: answers decoded together; memory grows with it.
        waiting: requests that may wait beside them; one more is refused.
        threads: that it computes with on processors; as many as every thread if not given.
    """

    def __init__(self, model: AnyMAL, *, rows: int, waiting: int, threads: int | None = None) -> None:
        lay_out_for_few_rows(model.llm)
        self.model = model
        self._rows, self._most, self._threads = rows, waiting, threads
        self._waiting: list[_Work] = []
        self._active: dict[int, _Work] = {}
        self._changed = threading.Condition()
        self._closing: Literal["drain", "now"] | None = None
        self._thread = threading.Thread(target=self._run, name="anymal-engine", daemon=True)
        self._thread.start()

    @property
    def load(self) -> tuple[int, int]:
        """Answers being decoded, and requests that wait."""
        with self._changed:
            return len(self._active), len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether it answers."""
        return self._thread.is_alive() and self._closing is None

    def ask(self, prompt: Prompt, *, max_new_tokens: int, sampling: Sampling, stops: Sequence[str] = ()) -> Answer:
        """Take a prompt in.

        Raises:
            DataError: if prompt and media do not match, or it is too long for the model.
            Busy: if too many wait.
            Stopped: if the engine was closed.
        """
        pieces = self.model.tokenize(prompt)
        length = self.model.length(pieces)
        self.model.check_fits([length], max_new_tokens)
        work = _Work(Answer(length), pieces, sampling, max_new_tokens, tuple(stops))
        with self._changed:
            if self._closing is not None:
                raise Stopped("this model answers no longer; ask again")
            if len(self._waiting) >= self._most:
                raise Busy(f"{len(self._active)} requests are being answered and {len(self._waiting)} wait, the most there may be; try again later")
            self._waiting.append(work)
            self._changed.notify_all()
        return work.answer

    def close(self, *, drain: bool, timeout: float | None = None) -> bool:
        """Take nothing in any longer, and end: after all answers are complete, or at once.

        Returns:
            Whether it ended within `timeout` seconds.
        """
        with self._changed:
            self._closing = "drain" if drain and self._closing != "now" else "now"
            self._changed.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        if self._threads is not None:
            compute_with(self._threads)
        decoder = Decoder(self.model)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._active or self._closing is not None)
                if self._closing == "now" or (self._closing == "drain" and not self._waiting and not self._active):
                    left = [*self._waiting, *self._active.values()]
                    self._waiting, self._active = [], {}
                    break
                come = self._admitted()
            try:
                # Those under way go first: they have waited for this token since the last one.
                self._take(decoder.step(), decoder)
                self._take(decoder.join({id(work): (work.pieces, work.sampling) for work in come}), decoder)
            except Exception as error:  # whatever torch raises; every caller must learn of it, and the next ones be served
                decoder = Decoder(self.model)
                self._fail(error)
        for work in left:
            work.answer.fail(Stopped("the server stops"))

    def _admitted(self) -> list[_Work]:
        """Requests that join the batch now; those cancelled while they waited are dropped."""
        for work in [work for work in self._waiting if work.answer.cancelled]:
            self._waiting.remove(work)
            work.answer.end("cancelled")
        free = self._rows - len(self._active)
        come, self._waiting = self._waiting[:free], self._waiting[free:]
        self._active |= {id(work): work for work in come}
        return come

    def _take(self, tokens: dict[Any, int], decoder: Decoder) -> None:
        """Hand each new token's text over; those that are complete leave the batch."""
        gone = []
        for key, token in tokens.items():
            work = self._active[key]
            finish = self._advance(work, token)
            if finish is not None:
                gone.append(key)
                with self._changed:
                    del self._active[key]
                work.answer.end(finish)
        decoder.leave(gone)

    def _advance(self, work: _Work, token: int) -> Finish | None:
        if work.answer.cancelled:
            return "cancelled"
        if work.answer.began is None:
            work.answer.began = time.monotonic()
        ended = token == self.model.end_of_turn
        if not ended:
            work.ids.append(token)
        work.answer.tokens += 1
        text = self.model.tokenizer.decode(work.ids, skip_special_tokens=True).lstrip()
        place = min((found for found in (text.find(stop) for stop in work.stops) if found >= 0), default=None)
        if place is not None:
            text, ended = text[:place], True
        full = len(work.ids) >= work.limit
        text = text.rstrip() if ended or full else text[: len(text) - _unsettled(text, work.stops)]
        work.answer.push(text[work.said :])
        work.said = max(work.said, len(text))
        return "stop" if ended else "length" if full else None

    def _fail(self, error: Exception) -> None:
        with self._changed:
            failed, self._active = list(self._active.values()), {}
        for work in failed:
            work.answer.fail(error)


def _unsettled(text: str, stops: Sequence[str]) -> int:
    """Characters at the end that may yet change or be taken back: half a character, white space, the beginning of a stop."""
    held = len(text) - len(text.rstrip().rstrip(UNKNOWN).rstrip())
    for stop in stops:
        for size in range(min(len(stop) - 1, len(text)), held, -1):
            if text.endswith(stop[:size]):
                held = size
                break
    return held
