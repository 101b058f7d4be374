"""The bundle as an MLflow model, for `mlflow models serve` and `mlflow.pyfunc.load_model("models:/anymal@champion").predict(request)`.

A request and its answer are those of `anymal serve`. MLflow imports this module by its name and calls `_load_pyfunc` with the bundle's folder, so
nothing is pickled.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anymal.errors import AnymalError, ConfigError
from anymal.serving.checks import load_checks
from anymal.serving.completions import Chunks, Completion
from anymal.serving.defaults import MAX_NEW_TOKENS, ROWS, SECONDS, WAITING
from anymal.serving.desk import Desk, Event
from anymal.serving.engine import Engine
from anymal.serving.host import Served, load_served, load_with
from anymal.serving.intake import turns_of
from anymal.serving.openai import BadRequest, ChatRequest, parse
from anymal.serving.threads import set_aside

if TYPE_CHECKING:
    import pandas as pd

GUARD = "ANYMAL_GUARD"
"""Environment variable: the guard's folder or its address in the registry."""
ADDRESS = "registered_model_meta"
"""File that MLflow writes beside a model that it fetched from a registry: name and version."""


@dataclass(frozen=True)
class Loaded:
    """One version of the model, which is not followed."""

    served: Served
    problem: None = None


class ChatPredictor:
    """Answers requests of OpenAI's chat completions, as `POST /v1/chat/completions` of `anymal serve` does, behind the same guard."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def predict(self, model_input: Mapping[str, Any] | Sequence[Mapping[str, Any]] | pd.DataFrame) -> dict[str, Any] | list[dict[str, Any]]:
        """The completion that a request is answered with; for several, a list or a table with a row each, theirs in the same order.

        A refusal of the guard is a completion as well: its `finish_reason` is `content_filter`.

        Raises:
            BadRequest: naming the parameter, or the part of a message, that is wrong.
            DataError: if the conversation cannot be asked, or a file cannot be read.
            Busy: if too many wait.
            TooSlow: if an answer was not complete in time.
        """
        if isinstance(model_input, Mapping):
            return self._whole(_plain(model_input))
        with ThreadPoolExecutor(ROWS) as pool:
            return list(pool.map(self._whole, _rows(model_input)))

    def predict_stream(self, model_input: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The chunks of the answer to one request, each sentence after it was checked.

        Raises:
            AnymalError: as `predict`.
        """
        request = parse(_plain(model_input))
        chunks = Chunks(self._named(request).label, with_usage=request.stream_options is not None and request.stream_options.include_usage)
        with self._events(request) as events:
            for event in events:
                yield from chunks.of(event)

    def _whole(self, document: Any) -> dict[str, Any]:
        request = parse(document)
        if request.stream:
            raise BadRequest("stream: MLflow's predict gives whole answers; leave it out, or call predict_stream", "stream")
        completion = Completion(self._named(request).label)
        with self._events(request) as events:
            for event in events:
                body = completion.add(event)
                if body is not None:
                    return body
        raise AssertionError("the desk ends every answer with Refused or Ended")

    def _named(self, request: ChatRequest) -> Served:
        served = self._desk.host.served
        assert served is not None
        if not served.goes_by(request.model):
            raise BadRequest(f"model {str(request.model)[:100]!r} is not loaded here, but {served.label!r}; name that or leave it out", "model")
        return served

    @contextmanager
    def _events(self, request: ChatRequest) -> Iterator[Generator[Event]]:
        events = self._desk.answer(turns_of(request.messages, remote_bytes=None), sampling=request.sampling(), limit=request.limit,
                                   stops=request.stops, gone=lambda: False)
        try:
            yield events
        finally:
            events.close()


def _load_pyfunc(path: str) -> ChatPredictor:
    """Called by MLflow with the folder of the bundle. Threads that begin later compute with one thread each (`anymal.serving.threads`).

    Raises:
        ConfigError: if no guard is named: nothing is answered without one.
        AnymalError: if the guard or the bundle is damaged.
    """
    import torch

    reference = os.environ.get(GUARD)
    if not reference:
        raise ConfigError(f"{GUARD} is not set: this model answers behind its guard only; set it to the guard's folder or address, such as "
                          f"{GUARD}=models:/anymal-guard@champion")
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1, initializer=set_aside) as aside:  # ends with what it computed with; the caller's thread goes on as it was
        desk, engine = aside.submit(_desk, Path(path), reference, threads).result()
    predictor = ChatPredictor(desk)
    weakref.finalize(predictor, engine.close, drain=False)
    return predictor


def _desk(folder: Path, guard: str, threads: int) -> tuple[Desk, Engine]:
    checks = load_checks(guard, text_in_pictures=True)
    name, version = _address(folder)
    served = load_served(folder, name=name, version=version, rows=ROWS, waiting=WAITING, load=load_with(None, None), threads=threads)
    return Desk(Loaded(served), checks, seconds=SECONDS, limit=MAX_NEW_TOKENS), served.engine


def _address(folder: Path) -> tuple[str, str | None]:
    """Name and version in the registry that the model was fetched from; for one that was not, the folder's name."""
    from ruamel.yaml import YAML

    file = folder.parent.parent / ADDRESS
    if not file.is_file():
        return folder.name, None
    found = YAML(typ="safe").load(file)
    try:
        return str(found["model_name"]), str(found["model_version"])
    except (KeyError, TypeError) as error:
        raise AnymalError(f"{file}: holds no model_name and model_version, which MLflow writes there; remove it") from error


def _rows(table: Sequence[Mapping[str, Any]] | pd.DataFrame) -> list[Any]:
    """Requests as they came; in a table every row has every column, and what it was not given is null or NaN."""
    if isinstance(table, Sequence):
        return [_plain(row) for row in table]
    return [{str(name): _plain(value) for name, value in row.items() if not (value is None or (isinstance(value, float) and math.isnan(value)))}
            for row in table.to_dict("records")]


def _plain(value: Any) -> Any:
    """Lists and numbers where MLflow made arrays of them, as it does of `{"inputs": …}`."""
    import numpy as np

    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
