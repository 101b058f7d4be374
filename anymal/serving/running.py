"""A request's events, made in a thread and read from the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Generator

from anymal.serving.desk import Event

LOG = logging.getLogger("anymal.serving")
AHEAD = 2
"""Events that the thread makes before they are read: a slow reader slows the answer down and fills no memory."""


class Run:
    """A generator of events in a thread of its own, read from the event loop; the thread is at most `AHEAD` events ahead of its reader."""

    def __init__(self, make: Callable[[Callable[[], bool]], Generator[Event]]) -> None:
        self._make = make
        self._stopped = threading.Event()
        self._room = threading.Semaphore(AHEAD)

    def stop(self) -> None:
        """Nobody reads any longer."""
        self._stopped.set()
        self._room.release()

    async def events(self) -> AsyncIterator[Event]:
        """The events, then whatever the generator raised."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Event | BaseException | None]()

        def put(item: Event | BaseException | None) -> None:
            try:
                loop.call_soon_threadsafe(queue.put_nowait, item)
            except RuntimeError:
                LOG.debug("the event loop has ended before an answer did")

        def work() -> None:
            events = self._make(self._stopped.is_set)
            try:
                for event in events:
                    self._room.acquire()
                    if self._stopped.is_set():
                        break
                    put(event)
                put(None)
            except BaseException as error:  # it is raised where the events are read
                put(error)
            finally:
                events.close()

        threading.Thread(target=work, name="anymal-answer", daemon=True).start()
        while (item := await queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            self._room.release()
            yield item
