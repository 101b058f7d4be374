"""One request from its parts to its last word: the guard before the model, the model, the guard behind it."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anymal.errors import AnymalError
from anymal.safety.streaming import Refusal, guarded_stream
from anymal.safety.verdicts import Code, Reason, Verdict
from anymal.serving.conversation import MediumPart, Turn, text_of, to_prompt
from anymal.serving.engine import Answer, Engine, Stopped

if TYPE_CHECKING:
    from anymal.model.decoding import Sampling
    from anymal.safety.guard import Guard, Picture
    from anymal.serving.host import Hosting, Served

FRAMES = 4
"""Of a clip, for the guard."""
REFUSED = "I'm sorry, I can't help with this."
NOT_CHECKED = "I'm sorry, this cannot be checked at the moment, so I can't answer it."
UNFIT = "I'm sorry, this is more than I can check; send a shorter text, or fewer or smaller files."
_LIMITS = {Code.TOO_LONG, Code.TOO_MANY_IMAGES, Code.TOO_LARGE, Code.UNREADABLE}


class NotReady(AnymalError):
    """No model is loaded."""


class TooSlow(AnymalError):
    """The answer was not complete in time."""


@dataclass(frozen=True)
class Begun:
    """The model reads: which one, and how many tokens it was given."""

    label: str
    sha256: str
    prompt_tokens: int


@dataclass(frozen=True)
class Piece:
    """A sentence that was checked."""

    text: str


@dataclass(frozen=True)
class Refused:
    """The guard says no, to the request or to how the answer goes on; nothing follows."""

    text: str
    reasons: tuple[Reason, ...]
    tokens: int
    began: float | None
    """When the first token was chosen (`time.monotonic`), if one was."""


@dataclass(frozen=True)
class Ended:
    """The whole answer was given."""

    finish: str
    tokens: int
    began: float | None
    """When the first token was chosen (`time.monotonic`), if one was."""


Event = Begun | Piece | Refused | Ended


class Desk:
    """Answers conversations. A generator of `answer` may run in any thread; whoever closes it frees its place in the batch.

    Args:
        seconds: for an answer, waiting and checks included.
        limit: new tokens that a caller may ask for.
    """

    def __init__(self, host: Hosting, guard: Guard, *, seconds: float, limit: int) -> None:
        self.host, self.guard = host, guard
        self._seconds, self.limit = seconds, limit

    def answer(self, turns: Sequence[Turn], *, sampling: Sampling, limit: int | None, stops: Sequence[str],
               gone: Callable[[], bool]) -> Generator[Event]:
        """What happens to a conversation, in order: `Begun`, `Piece`s, and `Refused` or `Ended`; or `Refused` alone.

        Args:
            limit: new tokens; as registered if not given, and never more than the server's.
            gone: says whether the caller is; asked between sentences and while waiting.

        Raises:
            NotReady: if no model is loaded.
            Busy: if too many wait.
            TooSlow: if the time is over.
            DataError: if the conversation cannot be asked, or a file cannot be read.
        """
        until = time.monotonic() + self._seconds
        pictures = self.guard.shown(pictures_of(turns))
        verdict = self.guard.check_input(text_of(turns), pictures)
        if not verdict.allowed:
            yield Refused(_words(verdict), verdict.reasons, 0, None)
            return
        served, answer = self._asked(turns, sampling, limit, stops)
        try:
            yield Begun(served.label, served.sha256, answer.prompt_tokens)
            for sentence in guarded_stream(self.guard, _watched(answer, until, gone), pictures):
                if isinstance(sentence, Refusal):
                    yield Refused(str(sentence), sentence.verdict.reasons, answer.tokens, answer.began)
                    return
                yield Piece(sentence)
            yield Ended(answer.finish or "stop", answer.tokens, answer.began)
        finally:
            answer.cancel()

    def _asked(self, turns: Sequence[Turn], sampling: Sampling, limit: int | None, stops: Sequence[str]) -> tuple[Served, Answer]:
        """The answer's beginning; of the next version if the one at hand was just replaced."""
        for _ in range(3):
            served = self.host.served
            if served is None:
                raise NotReady(f"no model is loaded yet{f' ({self.host.problem})' if self.host.problem else ''}; try again later")
            prompt = to_prompt(served.engine.model, turns)
            try:
                return served, served.engine.ask(prompt, max_new_tokens=min(limit or served.limit, self.limit), sampling=sampling, stops=stops)
            except Stopped:
                continue
        raise NotReady("the model is being replaced; try again later")


def _watched(answer: Answer, until: float, gone: Callable[[], bool]) -> Iterator[str]:
    """The answer's text; it ends where the caller has gone, and fails when the time is over."""
    while True:
        if gone():
            answer.cancel()
        left = until - time.monotonic()
        if left <= 0:
            answer.cancel()
            raise TooSlow("the answer was not complete in time; ask for fewer tokens, or try again later")
        try:
            piece = answer.next(min(left, 0.25))
        except TimeoutError:
            continue
        if piece is None:
            return
        yield piece


def pictures_of(turns: Sequence[Turn]) -> list[Picture]:
    """All pictures of a conversation as they came, and some frames of its clips."""
    from anymal.media.video import open_video

    found: list[Picture] = []
    for part in (part for turn in turns for part in turn.media):
        if part.modality == "image":
            found.append(part.content.data)
        elif part.modality == "video":
            found += open_video(io.BytesIO(part.content.data), part.content.name, frames=FRAMES)
    return found


def _words(verdict: Verdict) -> str:
    """A refusal of a request; what is wrong is said in general words only."""
    codes = {reason.code for reason in verdict.reasons}
    return NOT_CHECKED if Code.UNAVAILABLE in codes else UNFIT if codes & _LIMITS else REFUSED


def preview(engine: Engine, part: MediumPart) -> bytes:
    """What the model's encoder is fed of a file, as a PNG.

    Raises:
        DataError: if the model has no projector for its modality, or the file cannot be read.
    """
    encoder = engine.model.encoder(part.modality)
    return encoder.picture(encoder.read(io.BytesIO(part.content.data), part.content.name))
