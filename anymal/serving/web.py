"""The HTTP server around the application: uvicorn, with a limit on how long a caller may take to say what it wants."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0
KEEP_ALIVE_SECONDS = 15
MAX_HEADER_BYTES = 32 * 1024


class TimedProtocol(H11Protocol):
    """Hangs up on a connection that sends no whole request line and headers in time: uvicorn waits for them for ever."""

    def connection_made(self, transport: Any) -> None:
        """A caller is there; its time runs."""
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = self.loop.call_later(HEADER_SECONDS, self._too_slow)

    def _too_slow(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()

    def handle_events(self) -> None:
        """Something came; once it is a request, the body has limits of its own (`api.Limits`)."""
        super().handle_events()
        if self.cycle is not None and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller is gone."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)


def server_of(app: Any, *, host: str, port: int, connections: int, grace: float) -> uvicorn.Server:
    """A server that is not started yet.

    Args:
        connections: that may be open at once; one more is answered with 503.
        grace: seconds for answers under way when the server is told to stop.
    """
    return uvicorn.Server(uvicorn.Config(
        app, host=host, port=port, http=TimedProtocol, ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
        limit_concurrency=connections, timeout_keep_alive=KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=math.ceil(grace),
        h11_max_incomplete_event_size=MAX_HEADER_BYTES))


def serve(app: Any, *, host: str, port: int, connections: int, grace: float) -> None:
    """Serve until SIGTERM or SIGINT, and then until the answers under way are complete, or for `grace` seconds."""
    server_of(app, host=host, port=port, connections=connections, grace=grace).run()
