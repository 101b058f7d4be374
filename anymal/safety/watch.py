"""Runs what may hang or crash so that the caller is neither kept waiting nor told anything but that it failed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


class Failed(Exception):
    """A check did not end well: it crashed, hung, or its turn did not come. Holds nothing of what was checked."""


class Watched(Generic[Result]):
    """The outcome of one call in a thread."""

    def __init__(self, call: Callable[[], Result]) -> None:
        self._call = call
        self.outcome: list[Result] = []
        self.failure: str | None = None

    def run(self, done: Callable[[], None]) -> None:
        try:
            self.outcome.append(self._call())
        except BaseException as error:
            self.failure = type(error).__name__
        finally:
            done()


class Watch:
    """Lets one call at a time run, each in a thread of its own, for a limited time.

    A call that hangs keeps its turn: those after it fail when their time is over, and go on as soon as it ends. So nothing passes unchecked, and no
    threads pile up.

    Args:
        seconds: for a call, waiting for its turn included.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._turn = threading.Semaphore()

    def run(self, name: str, call: Callable[[], Result]) -> Result:
        """What the call gives.

        Args:
            name: of the check, for the log.

        Raises:
            Failed: whatever happened to the call; its own exception goes no further than its name in the log.
        """
        started = time.monotonic()
        if not self._turn.acquire(timeout=self._seconds):
            logger.warning("check %s: its turn did not come within %g s", name, self._seconds)
            raise Failed
        watched = Watched(call)
        thread = threading.Thread(target=watched.run, args=(self._turn.release,), name=f"guard-{name}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            self._turn.release()
            logger.warning("check %s: no thread could be started", name)
            raise Failed from None
        thread.join(max(0.0, self._seconds - (time.monotonic() - started)))
        if watched.outcome:
            return watched.outcome[0]
        logger.warning("check %s: %s", name, watched.failure or f"took longer than {self._seconds:g} s")
        raise Failed
