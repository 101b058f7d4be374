"""The model that a server answers with: loaded in the background, and followed when its address in the registry comes to mean another version."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from anymal.errors import AnymalError, BundleError
from anymal.registry import SCHEME, find_version, resolve_bundle
from anymal.serving.engine import Engine

if TYPE_CHECKING:
    from anymal.model.anymal import AnyMAL

LOG = logging.getLogger("anymal.serving")


@dataclass(frozen=True)
class Served:
    """One version of the model, ready to answer."""

    name: str
    """`anymal`, or the folder's name."""
    version: str | None
    """Its number in the registry; None for a folder."""
    sha256: str
    """Of the bundle."""
    since: int
    """Unix time from which on it answered."""
    limit: int
    """New tokens of an answer if the caller does not say, as registered."""
    engine: Engine

    @property
    def label(self) -> str:
        """What an answer says that it came from: `anymal/3`."""
        return self.name if self.version is None else f"{self.name}/{self.version}"

    def goes_by(self, name: str | None) -> bool:
        """Whether a request for a model of this name is one for this version; one that names none is."""
        return name in (None, self.name, self.label)


class Hosting(Protocol):
    """Whoever has the model that answers now."""

    @property
    def served(self) -> Served | None:
        """None while nothing is loaded."""
        ...

    @property
    def problem(self) -> str | None:
        """Why not, or why no other version is followed."""
        ...


class Host:
    """Loads what an address names and keeps up with it. Requests go on while a new version is loaded; those under way end on the old one.

    Args:
        reference: a bundle's folder, or `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        rows: answers decoded together.
        waiting: requests that may wait.
        follow_seconds: how often the registry is asked. It may be down, at the start too: what is loaded goes on answering.
        load: how a folder becomes a model.
        threads: that a model computes with, see `Engine`.
    """

    def __init__(self, reference: str, *, rows: int, waiting: int, follow_seconds: float, load: Callable[[Path], AnyMAL],
                 threads: int | None = None) -> None:
        self.reference = reference
        self._rows, self._most, self._period, self._load, self._threads = rows, waiting, follow_seconds, load, threads
        self._served: Served | None = None
        self._tried: str | None = None
        """The version that could not be loaded: not tried again before the address names another one."""
        self.problem: str | None = None
        """Why the address could not be followed when it was last tried."""
        self._stop = threading.Event()
        self._old: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._follow, name="anymal-host", daemon=True)

    def start(self) -> None:
        """Begin to load; `served` gives the model once it is there."""
        self._thread.start()

    @property
    def served(self) -> Served | None:
        """What answers now; None while nothing is loaded."""
        return self._served

    def close(self, *, timeout: float) -> None:
        """End after the answers under way, at most `timeout` seconds from now."""
        until = time.monotonic() + timeout
        self._stop.set()
        served, self._served = self._served, None
        if served is not None:
            served.engine.close(drain=True, timeout=timeout)
            served.engine.close(drain=False, timeout=1)
        for thread in self._old:
            thread.join(max(0.0, until - time.monotonic()))

    def _follow(self) -> None:
        while True:
            try:
                self._keep_up()
                self.problem = None
            except AnymalError as error:
                self._complain(str(error))
            except Exception as error:  # a server that stops following without a word would answer with an old version for ever
                LOG.exception("loading %s failed", self.reference)
                self.problem = f"{type(error).__name__}: {error}"
            if self._stop.wait(self._period):
                return

    def _complain(self, problem: str) -> None:
        if problem != self.problem:
            LOG.warning("%s cannot be followed: %s", self.reference, problem)
        self.problem = problem

    def _keep_up(self) -> None:
        if not self.reference.startswith(SCHEME):
            if self._served is not None:
                return
            name, version, address = Path(self.reference).resolve().name, None, self.reference
        else:
            found = find_version(self.reference)
            name, version, address = found.name, str(found.number), found.uri
            if self._served is not None and version == self._served.version:
                self._tried = None
                return
            if version == self._tried:
                raise BundleError(self.problem or f"{address} could not be loaded")
        try:
            new = load_served(resolve_bundle(address), name=name, version=version, rows=self._rows, waiting=self._most, load=self._load,
                              threads=self._threads)
        except BundleError:
            self._tried = version
            raise
        self._tried = None
        if self._stop.is_set():
            new.engine.close(drain=False)
            return
        old, self._served = self._served, new
        LOG.info("answering with %s", new.label)
        if old is not None:
            thread = threading.Thread(target=old.engine.close, kwargs={"drain": True}, name=f"anymal-drain-{old.version}", daemon=True)
            thread.start()
            self._old = [*(t for t in self._old if t.is_alive()), thread]


def load_served(folder: Path, *, name: str, version: str | None, rows: int, waiting: int, load: Callable[[Path], AnyMAL],
                threads: int | None) -> Served:
    """A bundle, loaded with all its encoders and ready to answer.

    Args:
        name: as `version`, what answers say that they came from.
        rows: answers decoded together.
        waiting: requests that may wait.
        load: how a folder becomes a model.
        threads: that the model computes with, see `Engine`.

    Raises:
        BundleError: if it is damaged.
    """
    from anymal.model.bundle import bundle_sha256, read_bundle

    document = read_bundle(folder)
    model = load(folder)
    for modality in model.metadata:  # the first request should not wait for encoders
        model.encoder(modality)
    return Served(name, version, bundle_sha256(folder), int(time.time()), document["inference"]["max_new_tokens"],
                  Engine(model, rows=rows, waiting=waiting, threads=threads))


def load_with(dtype: str | None, quantization: str | None) -> Callable[[Path], Any]:
    """`load_bundle` with the LLM in another precision than the bundle was measured in, if one is given."""
    def load(folder: Path) -> AnyMAL:
        from anymal.model.loading import load_bundle

        return load_bundle(folder, dtype=dtype, quantization=quantization)

    return load
