"""HTTP clients of a server: many at once that compare every answer, and one that reads a stream."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from benchmarks.serving_offline import Expected, Said
from benchmarks.serving_process import ServerProcess
from benchmarks.serving_requests import Asked

TIMEOUT = httpx.Timeout(300.0)


@dataclass
class Tally:
    """What came of the requests of one run."""

    clients: int
    tie: float
    """Greatest gap of logits that is a near tie."""
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    tokens: int = 0
    right: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    """Reasons; a refusal that the offline run has too is right."""
    errors: Counter[str] = field(default_factory=Counter)
    different: list[dict[str, Any]] = field(default_factory=list)

    @property
    def answers(self) -> int:
        """Requests that got an answer or a refusal."""
        return len(self.latencies)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answers / self.seconds

    def take(self, asked: Asked, expected: Expected, response: httpx.Response, seconds: float) -> None:
        """Count one response."""
        if response.status_code != httpx.codes.OK:
            self.errors[f"{response.status_code} {response.json()['error']['code'] or ''}".strip()] += 1
            return
        self.latencies.append(seconds)
        document = response.json()
        self.tokens += document["usage"]["completion_tokens"]
        choice = document["choices"][0]
        said = Said(choice["message"]["content"] or "", choice["finish_reason"])
        if said.finish == "content_filter":
            self.refusals.update(response.headers["x-anymal-reasons"].split(", "))
        if said == expected.said:
            self.right += 1
            return
        guards = "content_filter" in (said.finish, expected.said.finish)
        gap = None if guards else expected.gap_at(said.text)
        self.different.append({
            "request": asked.name, "kind": asked.kind, "got": [said.text, said.finish], "wanted": [expected.said.text, expected.said.finish],
            "gap": gap, "near_tie": gap is not None and gap <= self.tie, "reasons": response.headers.get("x-anymal-reasons")})

    def document(self) -> dict[str, Any]:
        """For the JSON."""
        p50, p95 = (float(np.quantile(self.latencies, share)) if self.latencies else None for share in (0.5, 0.95))
        ties = sum(entry["near_tie"] for entry in self.different)
        return {"clients": self.clients, "seconds": self.seconds, "answers": self.answers, "requests_per_second": self.rate,
                "tokens_per_second": self.tokens / self.seconds, "p50": p50, "p95": p95, "right": self.right, "near_ties": ties,
                "wrong": len(self.different) - ties, "refusals": dict(self.refusals), "errors": dict(self.errors), "different": self.different}


def load(server: ServerProcess, asked: Sequence[Asked], expected: Mapping[str, Expected], *, clients: int, tokens: int, tie: float,
         seconds: float | None = None, count: int | None = None) -> Tally:
    """Let clients ask without a pause, for so many seconds, or so many requests; those under way at the end are waited for and counted."""
    tally, lock = Tally(clients, tie), threading.Lock()
    started, left = time.perf_counter(), [count]

    def next_place() -> bool:
        with lock:
            if left[0] is not None:
                left[0] -= 1
                return left[0] >= 0
        return seconds is not None and time.perf_counter() - started < seconds

    def ask(number: int) -> None:
        order = list(asked)
        random.Random(number).shuffle(order)  # noqa: S311
        place = 0
        with httpx.Client(base_url=server.url, timeout=TIMEOUT) as client:
            while next_place():
                request = order[place % len(order)]
                place += 1
                sent = time.perf_counter()
                try:
                    response = client.post("/v1/chat/completions", json=request.body(server.model, tokens=tokens))
                except httpx.TransportError as error:
                    with lock:
                        tally.errors[type(error).__name__] += 1
                    continue
                took = time.perf_counter() - sent
                with lock:
                    tally.take(request, expected[request.name], response, took)

    with ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(ask, number) for number in range(clients)]:
            done.result()
    tally.seconds = time.perf_counter() - started
    return tally


@dataclass(frozen=True)
class Streamed:
    """Times of a stream as its reader has them, and what the server noted of it; in seconds since the request was sent, or had arrived."""

    sentence: float | None
    whole: float
    noted: Mapping[str, Any]


def stream(server: ServerProcess, asked: Asked, *, tokens: int) -> Streamed:
    """Ask one request and read the answer as it comes."""
    sentence, identifier, body = None, None, asked.body(server.model, tokens=tokens, stream=True)
    with httpx.Client(base_url=server.url, timeout=TIMEOUT) as client:
        sent = time.perf_counter()
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != httpx.codes.OK:
                raise SystemExit(f"{asked.name}: the stream was answered with {response.status_code}: {response.read().decode()}")
            for line in response.iter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise SystemExit(f"{asked.name}: the stream broke off: {chunk['error']['message']}")
                identifier = chunk["id"]
                if sentence is None and any(choice["delta"].get("content") for choice in chunk["choices"]):
                    sentence = time.perf_counter() - sent
            whole = time.perf_counter() - sent
    assert identifier is not None
    return Streamed(sentence, whole, server.journal(identifier))
