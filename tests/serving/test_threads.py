"""With how many threads torch computes in a server's own threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from anymal.model.anymal import AnyMAL
from anymal.model.decoding import Sampling
from anymal.model.llm import load_llm
from anymal.model.prompt import Prompt
from anymal.serving.engine import Engine
from anymal.serving.threads import compute_with, set_aside
from tests.tiny import make_llm

Found = TypeVar("Found")


def in_thread(call: Callable[[], Found]) -> Found:
    """What it gives in a thread that begins now."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def computed() -> int:
    """Threads after a multiplication that is worth dividing: the first of a thread sets it up."""
    torch.ones(300, 300) @ torch.ones(300, 300)
    return torch.get_num_threads()


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    """What threads begin with, put back afterwards; this thread's own number does not change."""
    mine, others = torch.get_num_threads(), in_thread(torch.get_num_threads)
    yield
    in_thread(lambda: torch.set_num_threads(others))
    assert torch.get_num_threads() == mine


def test_one_thread_computes_with_more_than_the_others():
    mine = computed()

    def both() -> tuple[int, int]:
        compute_with(mine + 2)
        return computed(), in_thread(computed)

    assert in_thread(set_aside) == mine
    assert in_thread(both) == (mine + 2, 1)
    assert in_thread(computed) == 1
    assert computed() == mine


def test_the_engine_computes_with_what_it_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    llm, tokenizer = load_llm(make_llm(tmp_path / "llm"), dtype="float32", quantization="none", attention="eager")
    model = AnyMAL(llm, tokenizer, {}, metadata={}, encoder_folders={}, templates={})
    seen: dict[str, int] = {}
    forward = llm.base_model.forward

    def watched(*arguments: object, **options: object) -> object:
        seen[threading.current_thread().name] = torch.get_num_threads()
        return forward(*arguments, **options)

    monkeypatch.setattr(llm.base_model, "forward", watched)
    engine = Engine(model, rows=1, waiting=1, threads=3)
    try:
        list(engine.ask(Prompt([{"role": "user", "content": "who"}]), max_new_tokens=2, sampling=Sampling()))
    finally:
        engine.close(drain=False)
    assert seen == {"anymal-engine": 3}
