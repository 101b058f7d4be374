"""Errors as clients of OpenAI's API read them, each with its HTTP status."""

from __future__ import annotations

from http import HTTPStatus

from fastapi.responses import JSONResponse

from anymal.errors import AnymalError
from anymal.serving.desk import NotReady, TooSlow
from anymal.serving.engine import Busy, Stopped
from anymal.serving.openai import BadRequest, error_body

RETRY_SECONDS = 2
"""After which a client that was told to wait may come again."""


class Problem(Exception):
    """An answer that is an error.

    Args:
        wait: whether the same request may succeed a little later.
        close: whether the connection is closed, for what is left of the request will not be read.
    """

    def __init__(self, status: HTTPStatus, message: str, *, code: str | None = None, param: str | None = None, wait: bool = False,
                 close: bool = False) -> None:
        super().__init__(message)
        kind = "rate_limit_error" if status == HTTPStatus.TOO_MANY_REQUESTS else "server_error" if status >= 500 else "invalid_request_error"
        headers = {"retry-after": str(RETRY_SECONDS)} if wait else {}
        if status == HTTPStatus.UNAUTHORIZED:
            headers["www-authenticate"] = "Bearer"
        if close:
            headers["connection"] = "close"
        self.response = JSONResponse(error_body(message, kind=kind, code=code, param=param), status_code=status, headers=headers)


def problem_of(error: BaseException) -> Problem | None:
    """An error that was foreseen, as the caller is told of it; None for any other."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, Stopped) and error.__cause__ is not None and not isinstance(error.__cause__, Stopped):
        return None  # the engine's own failure
    known: tuple[tuple[type[AnymalError], HTTPStatus, str | None, bool], ...] = (
        (Busy, HTTPStatus.TOO_MANY_REQUESTS, "busy", True),
        (NotReady, HTTPStatus.SERVICE_UNAVAILABLE, "not_ready", True),
        (Stopped, HTTPStatus.SERVICE_UNAVAILABLE, "stopping", True),
        (TooSlow, HTTPStatus.GATEWAY_TIMEOUT, "timeout", False),
        (AnymalError, HTTPStatus.BAD_REQUEST, None, False),
    )
    for kind, status, code, wait in known:
        if isinstance(error, kind):
            return Problem(status, str(error), code=code, param=error.param if isinstance(error, BadRequest) else None, wait=wait)
    return None
