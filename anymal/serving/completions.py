"""Answers as clients of OpenAI's chat completions read them, made of what the desk says: one object, or chunk by chunk."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

from anymal.serving.desk import Begun, Event, Piece, Refused

CHUNK = "chat.completion.chunk"


class _Answer:
    """What every part of an answer begins with, and how long the prompt was."""

    def __init__(self, label: str) -> None:
        self.head: dict[str, Any] = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": label,
                                     "system_fingerprint": None}
        self._prompt = 0

    def _begin(self, event: Begun) -> None:
        self.head |= {"model": event.label, "system_fingerprint": event.sha256[:16]}
        self._prompt = event.prompt_tokens

    def _usage(self, tokens: int) -> dict[str, int]:
        return {"prompt_tokens": self._prompt, "completion_tokens": tokens, "total_tokens": self._prompt + tokens}


class Completion(_Answer):
    """A whole answer: give it the events in their order.

    Args:
        label: of the model that is asked; the answer names the one that began to answer.
    """

    def __init__(self, label: str) -> None:
        super().__init__(label)
        self._text = ""

    def add(self, event: Event) -> dict[str, Any] | None:
        """The answer, with its last event; None before."""
        if isinstance(event, Begun):
            self._begin(event)
            return None
        if isinstance(event, Piece):
            self._text += event.text
            return None
        if isinstance(event, Refused):
            return self._body(self._text or None, event.text, "content_filter", event.tokens)
        return self._body(self._text, None, event.finish, event.tokens)

    def _body(self, content: str | None, refusal: str | None, finish: str, tokens: int) -> dict[str, Any]:
        message = {"role": "assistant", "content": content, "refusal": refusal}
        return {**self.head, "object": "chat.completion", "usage": self._usage(tokens),
                "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}]}


class Chunks(_Answer):
    """A streamed answer: each event gives the chunks that tell of it.

    Args:
        label: as for `Completion`.
        with_usage: whether the last chunk says how many tokens were used.
    """

    def __init__(self, label: str, *, with_usage: bool) -> None:
        super().__init__(label)
        self._with_usage = with_usage
        self._role = {"role": "assistant"}

    def of(self, event: Event) -> Iterator[dict[str, Any]]:
        """The chunks of an event, those of the last one included."""
        if isinstance(event, Begun):
            self._begin(event)
            yield self._chunk({"content": ""})
        elif isinstance(event, Piece):
            yield self._chunk({"content": event.text})
        else:
            if isinstance(event, Refused):
                yield self._chunk({"refusal": event.text})
            yield self._chunk({}, "content_filter" if isinstance(event, Refused) else event.finish)
            if self._with_usage:
                yield {**self.head, "object": CHUNK, "choices": [], "usage": self._usage(event.tokens)}

    def _chunk(self, delta: Mapping[str, str], finish: str | None = None) -> dict[str, Any]:
        role, self._role = self._role, {}
        return {**self.head, "object": CHUNK, "choices": [{"index": 0, "delta": {**role, **delta}, "logprobs": None, "finish_reason": finish}]}
