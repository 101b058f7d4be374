"""Prompts of the safety data as a model is asked them, and what the guard says of prompt and answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from anymal.evaluation.recorded import RecordedModel
from anymal.model.prompt import Medium
from anymal.model.prompt import Prompt as ModelPrompt
from anymal.progress import track
from anymal.safety.integrity import Checked, Judge
from anymal.safety.prompts import Prompt
from anymal.safety.thresholds import hits

if TYPE_CHECKING:
    from anymal.model.anymal import AnyMAL
    from anymal.safety.guard import Guard
    from anymal.safety.verdicts import Verdict

BATCHES_AT_ONCE = 8
"""Batches whose pictures' features are in memory together."""


def ask(model: AnyMAL, prompts: Sequence[Prompt], *, max_new_tokens: int, batch_size: int, journal: Path) -> list[str]:
    """What a model answers; greedy. A text alone is a user's message, one with a picture goes through the prompt for questions about pictures.

    Args:
        journal: file that keeps what was answered, so that an evaluation that was killed asks nothing twice.

    Raises:
        DataError: if a picture cannot be read, or the model reads no pictures and there are some.
    """
    recorded = RecordedModel(model, journal)
    answers: list[str] = []
    chunk = batch_size * BATCHES_AT_ONCE
    with track(total=len(prompts), label="safety, answers", unit="answers") as bar:
        for start in range(0, len(prompts), chunk):
            asked = [_as_asked(model, prompt) for prompt in prompts[start : start + chunk]]
            answers += [said.text for said in recorded.complete(asked, max_new_tokens=max_new_tokens, batch_size=batch_size)]
            bar.update(len(asked))
    return answers


def _as_asked(model: AnyMAL, prompt: Prompt) -> ModelPrompt:
    if prompt.image is None:
        return ModelPrompt([{"role": "user", "content": prompt.text}])
    medium = model.encoder("image").read(prompt.image, str(prompt.image))
    return ModelPrompt(model.templates["image"]["question"].messages(["image"], prompt.text), [Medium("image", model.encode("image", [medium])[0])])


class Hits(Protocol):
    """What is asked of a classifier of texts."""

    def probabilities(self, texts: Sequence[str]) -> Any:
        """Shape (texts, categories)."""
        ...


def judge_of(classifier: Hits, categories: Sequence[str], thresholds: Mapping[str, float]) -> Judge:
    """A text classifier at some thresholds as a judge: a category without a threshold is never found. An empty text is harmless."""

    def judge(texts: Sequence[str]) -> list[tuple[str, ...]]:
        places = [place for place, text in enumerate(texts) if text.strip()]
        found: list[tuple[str, ...]] = [()] * len(texts)
        if places:
            hit = hits(classifier.probabilities([texts[place] for place in places]), categories, thresholds)
            for place, row in zip(places, hit, strict=True):
                found[place] = tuple(code for code, one in zip(categories, row, strict=True) if one)
        return found

    return judge


def check(guard: Guard, prompt: Prompt, answer: str) -> Checked:
    """Put a prompt and its answer through the guard, as a server does.

    A prompt that it rejects ends there: the answer is not looked at, and nothing is released. Of the answer, whole sentences are, each after it was
    checked, up to one that is rejected.
    """
    from anymal.safety.streaming import Refusal, guarded_stream

    images = [] if prompt.image is None else [prompt.image.read_bytes()]
    verdict = guard.check_input(prompt.text, images)
    if not verdict.allowed:
        return Checked(_reasons(verdict), (), "")
    released: list[str] = []
    stopped: tuple[tuple[str, str | None], ...] = ()
    for sentence in guarded_stream(guard, iter([answer]), images):
        if isinstance(sentence, Refusal):
            stopped = _reasons(sentence.verdict)
        else:
            released.append(sentence)
    return Checked((), stopped, "".join(released))


def _reasons(verdict: Verdict) -> tuple[tuple[str, str | None], ...]:
    return tuple((reason.code.value, reason.category) for reason in verdict.reasons)


def tracked(items: Sequence[Any]) -> Iterator[Any]:
    """With a bar."""
    return iter(track(items, label="safety, guard", unit="prompts"))
