"""Streaming: over a thousand planted answers, nothing that the classifier flags is released, whatever goes wrong around it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

import pytest

from anymal.safety.guard import Guard
from anymal.safety.sentences import sentences
from anymal.safety.streaming import REFUSAL, UNCHECKED, Refusal, aguarded_stream, guarded_stream
from anymal.safety.verdicts import Code, GuardLimits, Reason, Verdict
from tests.safety.planted_guard import GREEN, PlantedModels, WordModel, hang, hits
from tests.safety.test_guard import picture

ANSWERS = 1000
HARMLESS = (
    "Dr. Smith arrived at 3.15 p.m. with a box.", "The answer is 42!", "Is it? Yes.", "- a point\n- another point\n", "我觉得很好。",
    "Well... e.g. This one.",
    "a line without any mark\n",
    "\"Stop!\" she said.", "हाँ। ठीक है।", "```\nx = 1. + y\n```\n", "(See https://example.org/a.b.)",
    "words " * 90, "Ja.", "The U.S. has 50 states.", "1. First\n2. Second\n",
)
BAD = ("kaboomery", "stabwort", "grumblefolk", "sneerling")


def plant(rng: random.Random) -> tuple[str, int | None]:
    """An answer of random sentences; where the first planted word starts, if there is one."""
    parts = [rng.choice(HARMLESS) for _ in range(rng.randint(1, 12))]
    at = None
    if rng.random() < 0.7:
        place = rng.randrange(len(parts) + 1)
        parts.insert(place, f"Here is the {rng.choice(BAD)} of it.")
        at = len(" ".join(parts[:place])) + (place > 0) + len("Here is the ")
    return " ".join(parts), at


def pieces_of(text: str, rng: random.Random) -> list[str]:
    """The text in pieces of random sizes, from letters to all at once."""
    size, at, pieces = rng.choice((1, 3, 8, 40, 10_000)), 0, []
    while at < len(text):
        end = at + rng.randint(1, size)
        pieces.append(text[at:end])
        at = end
    return pieces


def clean(released: list[str]) -> bool:
    """Whether nothing that was released holds a planted word, alone or together."""
    return not any(hits("".join(piece for piece in released if not isinstance(piece, Refusal))))


def stream(pieces: Iterator[str], model: WordModel | None = None, limits: GuardLimits | None = None, **options: Any) -> Generator[Any, None, None]:
    return guarded_stream(Guard(PlantedModels(text=model or WordModel()), reader=None, limits=limits), pieces, **options)


class Source:
    """Pieces that know how many were asked for and whether they were closed."""

    def __init__(self, pieces: list[str], fault: int | None = None) -> None:
        self.given, self.closed = 0, False
        self._pieces, self._fault = pieces, fault

    def __iter__(self) -> Iterator[str]:
        try:
            for piece in self._pieces:
                if self.given == self._fault:
                    raise ConnectionError("the model is gone")
                self.given += 1
                yield piece
        finally:
            self.closed = True

    async def stream(self) -> AsyncIterator[str]:
        try:
            for piece in self._pieces:
                await asyncio.sleep(0)
                self.given += 1
                yield piece
        finally:
            self.closed = True


@pytest.mark.slow
def test_a_thousand_answers_release_nothing_that_is_flagged() -> None:
    stopped = 0
    for seed in range(ANSWERS):
        rng = random.Random(seed)
        text, at = plant(rng)
        source = Source(pieces_of(text, rng))
        released = list(stream(iter(source)))
        assert clean(released), seed
        assert source.closed
        if at is None:
            assert "".join(released) == text, seed
        else:
            stopped += 1
            refusal = released.pop()
            assert isinstance(refusal, Refusal), seed
            assert refusal == REFUSAL
            assert refusal.verdict.reasons[0].code is Code.ANSWER
            whole = "".join(released)
            assert text.startswith(whole), seed
            assert released == sentences(text)[: len(released)], "all sentences before it"
            assert at - 450 < len(whole) <= at, "no more than its own sentence is held back"
    assert stopped > 600


@pytest.mark.slow
def test_a_thousand_answers_with_faults_all_around() -> None:
    """Crashes and odd values of the classifier, readers that leave, models that break off."""
    seen: set[str] = set()
    for seed in range(ANSWERS):
        rng = random.Random(f"faults {seed}")
        text, _ = plant(rng)

        def fault(call: int, rng: random.Random = rng) -> None:
            if rng.random() < 0.2:
                raise MemoryError("kaboomery")

        kind = rng.choice(("crash", "leave", "break"))
        pieces = pieces_of(text, rng)
        source = Source(pieces, fault=rng.randrange(len(pieces)) if kind == "break" else None)
        released: list[str] = []
        answer = stream(iter(source), WordModel(fault=fault if kind == "crash" else None))
        try:
            for count, sentence in enumerate(answer):
                released.append(sentence)
                if kind == "leave" and count >= rng.randrange(4):
                    answer.close()
                    break
        except ConnectionError:
            seen.add("broke off")
        assert clean(released), seed
        assert source.closed, seed
        assert not any(isinstance(piece, Refusal) for piece in released[:-1])
        if released and isinstance(released[-1], Refusal):
            seen.add(released[-1])
    assert seen == {REFUSAL, UNCHECKED, "broke off"}


@pytest.mark.slow
def test_a_thousand_answers_on_an_event_loop() -> None:
    """Slow readers, cancelled readers, and ten at once."""

    async def read(seed: int) -> tuple[list[str], Source, str, int | None, bool]:
        rng = random.Random(f"loop {seed}")
        text, at = plant(rng)
        source = Source(pieces_of(text, rng))
        released: list[str] = []
        guard = Guard(PlantedModels(), reader=None)

        async def take() -> None:
            async for sentence in aguarded_stream(guard, source.stream()):
                released.append(sentence)
                if rng.random() < 0.2:
                    await asyncio.sleep(0.002)

        task = asyncio.create_task(take())
        cancelled = rng.random() < 0.3
        if cancelled:
            await asyncio.sleep(rng.random() * 0.01)
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return released, source, text, at, cancelled

    async def run() -> list[Any]:
        found: list[Any] = []
        for start in range(0, ANSWERS, 10):
            found += await asyncio.gather(*(read(seed) for seed in range(start, start + 10)))
        for _ in range(3):
            await asyncio.sleep(0)
        return found

    complete = 0
    for released, source, text, at, cancelled in asyncio.run(run()):
        assert clean(released)
        assert source.closed or source.given == 0
        if not cancelled:
            complete += 1
            assert "".join(released) == text if at is None else isinstance(released[-1], Refusal)
    assert complete > 500


def test_pieces_are_pulled_no_faster_than_they_are_read() -> None:
    source = Source([f"Sentence number {place}. " for place in range(100)])
    answer = stream(iter(source))
    for count in range(5):
        assert next(answer) == f"{' ' if count else ''}Sentence number {count}."
        assert source.given == count + 2, "the next piece shows that the sentence is over"
    answer.close()
    assert source.closed
    assert source.given == 6


def test_a_cancelled_reader_closes_the_source_while_a_check_runs() -> None:
    async def run() -> tuple[bool, list[str]]:
        source = Source(["One. Two. kaboomery. ", "Three."])
        released: list[str] = []

        async def take() -> None:
            async for sentence in aguarded_stream(Guard(PlantedModels(text=WordModel(fault=hang(0.3))), reader=None), source.stream()):
                released.append(sentence)

        task = asyncio.create_task(take())
        await asyncio.sleep(0.4)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return source.closed, released

    closed, released = asyncio.run(run())
    assert closed
    assert released == ["One."]


def test_a_slow_classifier_ends_the_stream() -> None:
    model = WordModel(fault=lambda call: time.sleep(1.0 if call == 2 else 0))
    released = list(stream(iter(["One. Two. Three. kaboomery."]), model, GuardLimits(seconds=0.2)))
    assert released == ["One.", UNCHECKED]
    assert released[-1].verdict == Verdict((Reason(Code.UNAVAILABLE),))


def test_a_guard_that_breaks_itself_ends_the_stream() -> None:
    class Broken(Guard):
        def check_output(self, *_: Any, **__: Any) -> Verdict:
            raise KeyError("kaboomery")

    assert list(guarded_stream(Broken(PlantedModels(), reader=None), iter(["One. Two."]))) == [UNCHECKED]


def test_what_is_spread_over_sentences_is_seen() -> None:
    text = "First comes the quuxalph. " + "Nothing is said here. " * 5 + "Now the quuxbeth. Done."
    released = list(stream(iter([text])))
    assert released[-1] == REFUSAL
    assert "quuxbeth" not in "".join(released)
    assert "".join(stream(iter([text]), reach=0)) == text
    assert "".join(stream(iter([text]), reach=40)) == text, "beyond its reach it is not"


def test_sentences_are_looked_at_with_the_pictures() -> None:
    text = "One. All harmless. Two."
    assert list(stream(iter([text]), images=[picture(GREEN)])) == ["One.", REFUSAL]
    assert "".join(stream(iter([text]), images=[picture()])) == text
    broken = list(stream(iter([text]), images=[b"none"]))
    assert broken == [REFUSAL]
    assert broken[0].verdict.reasons == (Reason(Code.UNREADABLE),)


def test_disguised_answers_are_read_as_prompts_are() -> None:
    for said in ("Here: k\u200bab\u200boom\u200bery.",
                 "It is the \uff4b\uff41\uff42\uff4f\uff4f\uff4d\uff45\uff52\uff59.", "See a2Fib29tZXJ5IGlzIGl0."):
        assert list(stream(iter([said]))) == [REFUSAL], said
