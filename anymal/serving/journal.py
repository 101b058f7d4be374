"""What is counted and logged of requests: how long, how much, how it ended; never a word of it."""

from __future__ import annotations

import json
import logging
import time
from http import HTTPStatus
from typing import Any

from anymal.safety.verdicts import Reason
from anymal.serving.desk import Begun, Event, Piece, Refused
from anymal.serving.metrics import Metrics
from anymal.serving.problems import Problem, problem_of

LOG = logging.getLogger("anymal.serving")


def code_of(reason: Reason) -> str:
    """A reason in one word: `text:violence`."""
    return reason.code.value if reason.category is None else f"{reason.code.value}:{reason.category}"


class Note:
    """What is counted and logged of a request: never its content."""

    def __init__(self, metrics: Metrics, identifier: str, *, stream: bool, started: float) -> None:
        self._metrics, self._started = metrics, started
        self._fields: dict[str, Any] = {"id": identifier, "stream": stream, "outcome": "failed"}
        self._first: float | None = None
        self._token: float | None = None
        self._closed = False

    def event(self, event: Event) -> None:
        """Something happened."""
        if isinstance(event, Begun):
            self._fields |= {"model": event.label, "prompt_tokens": event.prompt_tokens}
        elif isinstance(event, Piece):
            if self._first is None:
                self._first = time.monotonic() - self._started
        else:
            self._fields |= {"outcome": "refused", "reasons": [code_of(reason) for reason in event.reasons]} if isinstance(event, Refused) else {
                "outcome": event.finish}
            self._fields["tokens"] = event.tokens
            self._token = None if event.began is None else event.began - self._started

    def gone(self) -> None:
        """The caller hung up."""
        self._fields["outcome"] = "disconnected"

    def problem(self, error: BaseException) -> Problem:
        """An error as the caller is told of it; one that nobody foresaw is in the log with its traceback, and the caller learns its number."""
        found = problem_of(error)
        if found is None:
            LOG.error("request %s failed", self._fields["id"], exc_info=error)
            found = Problem(HTTPStatus.INTERNAL_SERVER_ERROR, f"request {self._fields['id']} failed; the server's log says why")
        self._fields |= {"outcome": "failed", "status": found.response.status_code}
        self.close()
        return found

    def close(self) -> None:
        """The request is over; written down once."""
        if self._closed:
            return
        self._closed = True
        seconds = time.monotonic() - self._started
        self._metrics.answered(self._fields["outcome"], seconds, token=self._token, first=self._first,
                               prompt_tokens=self._fields.get("prompt_tokens", 0), tokens=self._fields.get("tokens", 0))
        for reason in self._fields.get("reasons", ()):
            self._metrics.refused(reason)
        times = {"seconds": seconds, "first_token": self._token, "first": self._first}
        LOG.info("%s", json.dumps(self._fields | {name: value and round(value, 3) for name, value in times.items()}, sort_keys=True))
