"""The engine: every caller gets the answer that the model gives it alone, whoever comes, goes, or fails beside it."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from anymal.errors import DataError
from anymal.model.decoding import Decoder, Sampling
from anymal.model.llm import load_llm
from anymal.model.prompt import Prompt
from anymal.serving.engine import Busy, Engine, Stopped, _unsettled
from tests.model.test_anymal import assemble, mixed, prompt
from tests.tiny import make_llm

GREEDY = Sampling()
LENGTH = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    llm, tokenizer = load_llm(make_llm(tmp_path_factory.mktemp("llm") / "tiny-llm"), dtype="float32", quantization="none", attention="eager")
    return assemble(llm, tokenizer)


@pytest.fixture(scope="module")
def offline(model):
    return [model.complete([asked], max_new_tokens=LENGTH, batch_size=1)[0] for asked in mixed(model)]


@pytest.fixture
def engine(model):
    made = Engine(model, rows=3, waiting=100)
    yield made
    assert made.close(drain=False, timeout=10)


class Slow(Decoder):
    """A decoder whose every token takes 30 ms, so that a test can act in between."""

    def step(self):
        time.sleep(0.03)
        return super().step()


def test_callers_get_what_they_get_alone(model, offline, engine):
    """A hundred requests from eight threads, three at a time in the batch."""
    prompts, order = mixed(model), [i % len(offline) for i in range(100)]
    random.Random(0).shuffle(order)

    def ask(i):
        answer = engine.ask(prompts[i], max_new_tokens=LENGTH, sampling=GREEDY)
        return "".join(answer), answer.finish

    with ThreadPoolExecutor(8) as pool:
        assert [tuple(offline[i]) for i in order] == list(pool.map(ask, order))
    assert engine.load == (0, 0)


def test_text_comes_piece_by_piece(model, offline, engine):
    answer = engine.ask(mixed(model)[0], max_new_tokens=LENGTH, sampling=GREEDY)
    pieces = list(answer)
    assert len(pieces) > 1 and "".join(pieces) == offline[0].text
    assert answer.prompt_tokens == model.length(model.tokenize(mixed(model)[0])) and answer.tokens <= LENGTH


def test_a_stop_ends_the_answer_before_it_even_if_tokens_part_it(model, offline, engine):
    text = offline[0].text
    stop = text[len(text) // 2 :][:3]
    answer = engine.ask(mixed(model)[0], max_new_tokens=LENGTH, sampling=GREEDY, stops=["never said", stop])
    assert ("".join(answer), answer.finish) == (text[: text.index(stop)].rstrip(), "stop")


@pytest.mark.parametrize(("text", "stops", "held"), [
    ("", (), 0), ("red", (), 0), ("red ", (), 1), ("red \N{REPLACEMENT CHARACTER}", (), 2), ("a\n\nUs", ("\n\nUser:",), 4),
    ("aab", ("abc", "bcd"), 2), ("ab ", ("x",), 1), ("abc", ("abcabd",), 3),
])
def test_what_may_be_taken_back_is_held(text, stops, held):
    assert _unsettled(text, stops) == held


def test_cancelled_answers_free_their_places(model, monkeypatch):
    monkeypatch.setattr("anymal.serving.engine.Decoder", Slow)
    engine = Engine(model, rows=1, waiting=2)
    prompts = mixed(model)
    running = engine.ask(prompts[0], max_new_tokens=400, sampling=GREEDY)
    next(iter(running))  # it has its place now, and leaves both of those that wait to others
    waits, also = (engine.ask(prompts[i], max_new_tokens=400, sampling=GREEDY) for i in (1, 2))
    with pytest.raises(Busy, match="1 requests are being answered and 2 wait"):
        engine.ask(prompts[0], max_new_tokens=1, sampling=GREEDY)
    waits.cancel()
    running.cancel()
    list(running)
    list(waits)
    assert (running.finish, waits.finish, running.cancelled) == ("cancelled", "cancelled", True)
    also.cancel()
    list(also)
    assert engine.load == (0, 0) and engine.close(drain=True, timeout=10)


def test_closing_lets_answers_be_completed_or_not(model, offline, monkeypatch):
    monkeypatch.setattr("anymal.serving.engine.Decoder", Slow)
    for drain in (True, False):
        engine = Engine(model, rows=1, waiting=9)
        answers = [engine.ask(asked, max_new_tokens=LENGTH, sampling=GREEDY) for asked in mixed(model)[:3]]
        closing = threading.Thread(target=engine.close, kwargs={"drain": drain})
        closing.start()
        with pytest.raises(Stopped, match="answers no longer"):
            for _ in range(100):
                engine.ask(mixed(model)[0], max_new_tokens=1, sampling=GREEDY).cancel()
                time.sleep(0.001)
        if drain:
            assert ["".join(answer) for answer in answers] == [said.text for said in offline[:3]]
        else:
            with pytest.raises(Stopped, match="could not be computed"):
                list(answers[2])
        closing.join(10)
        assert not closing.is_alive() and not engine.alive


def test_a_fault_reaches_those_it_concerns_and_nobody_after_them(model, offline, monkeypatch, engine):
    real, failing = Decoder.join, threading.Event()

    def join(self, prompts):
        if failing.is_set() and prompts:
            failing.clear()
            raise RuntimeError("out of memory")
        return real(self, prompts)

    monkeypatch.setattr(Decoder, "join", join)
    failing.set()
    with pytest.raises(Stopped) as caught:
        list(engine.ask(mixed(model)[0], max_new_tokens=LENGTH, sampling=GREEDY))
    assert str(caught.value.__cause__) == "out of memory"
    assert "".join(engine.ask(mixed(model)[1], max_new_tokens=LENGTH, sampling=GREEDY)) == offline[1].text and engine.alive


def test_a_wrong_prompt_is_refused_before_it_waits(model, engine):
    with pytest.raises(DataError, match="no projector for 'smell'"):
        engine.ask(prompt(model, "smell"), max_new_tokens=1, sampling=GREEDY)
    with pytest.raises(DataError, match="tokens"):
        engine.ask(Prompt([{"role": "user", "content": "red " * 5000}]), max_new_tokens=1, sampling=GREEDY)
    assert engine.load == (0, 0)
