"""Answers as they come, on disk at once, so that a run that was killed asks nothing twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from anymal.data.journal import Journal
from anymal.progress import track
from anymal.synthesis.backends import Answer, Backend, Request
from anymal.synthesis.checks import Pair


def ask(backend: Backend, requests: Sequence[Request], path: Path, *, report: Callable[[dict[str, float]], None]) -> dict[str, Answer]:
    """Have every request answered: from the journal at `path` where it holds the answer to the same messages, else by the backend.

    Args:
        report: is told the `answers_per_minute` of what was asked now, once.

    Returns:
        id -> answer, sorted by id.

    Raises:
        AnymalError: if the backend gives up; what it answered is in the journal.
    """
    journal = Journal(path)
    digests = {request.id: request.digest for request in requests}
    known = {(entry["id"], entry["digest"]): entry for group in journal.groups for entry in group}
    answers = {name: _answer(known[name, digest]) for name, digest in digests.items() if (name, digest) in known}
    left = [request for request in requests if request.id not in answers]
    started = time.monotonic()
    with track(total=len(digests), label="synthesize", unit="answers") as bar:
        bar.update(len(answers))
        for group in backend.complete(left) if left else ():
            journal.append([{**asdict(answer), "digest": digests[answer.id]} for answer in group])
            answers |= {answer.id: answer for answer in group}
            bar.update(len(group))
    assert answers.keys() == digests.keys(), "a backend answers each request or raises"
    if left:
        report({"answers_per_minute": 60 * len(left) / (time.monotonic() - started)})
    return dict(sorted(answers.items()))


def _answer(entry: dict[str, Any]) -> Answer:
    return Answer(**{name: value for name, value in entry.items() if name != "digest"})


def score(model: tuple[Any, Any], pairs: Sequence[Pair], path: Path, batch_size: int) -> dict[Pair, float]:
    """The blind likelihood of each pair: from the journal at `path`, else by the LLM and its tokenizer (see `anymal.synthesis.blind`)."""
    from anymal.synthesis.blind import blind_likelihoods

    journal = Journal(path)
    scores = {Pair(entry["question"], entry["answer"]): float(entry["likelihood"]) for group in journal.groups for entry in group}
    left = [pair for pair in pairs if pair not in scores]
    with track(total=len(pairs), label="blind", unit="pairs") as bar:
        bar.update(len(pairs) - len(left))
        for group in blind_likelihoods(*model, left, batch_size=batch_size):
            journal.append([{**asdict(pair), "likelihood": value} for pair, value in group])
            scores |= dict(group)
            bar.update(len(group))
    return scores
