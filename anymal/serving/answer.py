"""Answers from a loaded model: the one way from questions and media files to text, for the command line and for serving."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from anymal.errors import DataError
from anymal.model.modalities import placeholder

if TYPE_CHECKING:
    import numpy as np

    from anymal.model.anymal import AnyMAL
    from anymal.model.prompt import Medium, Template

BATCHES_AT_ONCE = 16
"""Batches whose media are in memory together; the model sorts them by length."""
NOUNS = {"image": "picture", "audio": "sound", "imu": "motion"}
"""What a modality is called in a sentence, where its name is no word for it."""


@dataclass(frozen=True)
class Content:
    """A file's content in memory, and what to call it in an error."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Request:
    """A question about media, in order, of any modalities; with a question of None the media are described.

    The question may place the media itself: `What do <image> and <audio> have in common?`
    """

    question: str | None
    media: Sequence[tuple[str, Path | Content]] = ()
    """(modality, file) pairs."""
    name: str = ""
    """What to call it in an error; a single request needs none."""


def answer(model: AnyMAL, requests: Sequence[Request], *, max_new_tokens: int, batch_size: int,
           watch: Callable[[str, np.ndarray], None] | None = None) -> list[str]:
    """Greedy answers, one per request.

    Args:
        watch: called with each medium's modality and what its encoder is fed, in order.

    Raises:
        DataError: if a file is missing or cannot be decoded, the model has no projector for its modality, the files do not match the
            placeholders of the question or the model's prompt, or the prompt is longer than the model can read.
    """
    from anymal.model.prompt import Prompt

    checked = [messages_of(model, request) for request in requests]
    answers: list[str] = []
    size = batch_size * BATCHES_AT_ONCE
    for start in range(0, len(requests), size):
        rows = range(start, min(start + size, len(requests)))
        prompts = [Prompt(checked[i], encoded(model, requests[i].media, watch)) for i in rows]
        answers += model.generate(prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
    return answers


def messages_of(model: AnyMAL, request: Request) -> list[dict[str, str]]:
    """The chat messages of a request, checked against its media before any file is read.

    Raises:
        DataError: as `answer` does, but for what only reading a file shows.
    """
    given = [modality for modality, _ in request.media]
    for modality in given:
        if modality not in model.templates:
            raise _wrong(request, f"this model has no projector for '{modality}'; it reads {', '.join(model.templates) or 'text only'}")
    if not given and request.question is None:
        raise _wrong(request, "there is neither a question nor a file; give one of them")
    if given:
        question = describe(given) if request.question is None and len(given) > 1 else request.question
        messages = _template(model, request, question).messages(given, question)
    else:
        messages = [{"role": "user", "content": request.question or ""}]
    wanted = [found[1] for message in messages for found in placeholder().finditer(message["content"])]
    if wanted != given:
        placed = request.question is not None and placeholder().search(request.question)
        raise _wrong(request, f"the {'question' if placed else 'prompt'} takes {_listed(wanted)}, but the files given are {_listed(given)}; "
                              "give one file per placeholder, in the same order")
    return messages


def _template(model: AnyMAL, request: Request, question: str | None) -> Template:
    """The first medium's prompt: of captions, of questions, or of questions about several media where it was trained with one."""
    modality = request.media[0][0]
    known = model.templates[modality]
    names = ["caption"] if question is None else ["pair", "question"] if len(request.media) > 1 else ["question"]
    for name in names:
        if name in known:
            return known[name]
    raise _wrong(request, f"the checkpoint of {modality} was trained without a template '{names[-1]}'; it has {', '.join(known) or 'none'}")


def describe(modalities: Sequence[str]) -> str:
    """The question that asks for a description of several media: `Describe the picture and the sounds.`"""
    counts = Counter(NOUNS.get(modality, modality) for modality in modalities)
    *first, last = [f"the {noun}{'s' if count > 1 else ''}" for noun, count in counts.items()]
    return f"Describe {' and '.join([*([', '.join(first)] if first else []), last])}."


def encoded(model: AnyMAL, media: Sequence[tuple[str, Path | Content]], watch: Callable[[str, np.ndarray], None] | None = None) -> list[Medium]:
    """Files read within their limits and encoded, in order.

    Raises:
        DataError: if one is missing, too large, or cannot be decoded.
    """
    from anymal.model.prompt import Medium

    found = []
    for modality, source in media:
        array = _read(model, modality, source)
        if watch is not None:
            watch(modality, array)
        found.append(Medium(modality, model.encode(modality, [array])[0]))
    return found


def _read(model: AnyMAL, modality: str, source: Path | Content) -> np.ndarray:
    encoder = model.encoder(modality)
    if isinstance(source, Content):
        return encoder.read(io.BytesIO(source.data), source.name)
    if not source.is_file():
        raise DataError(f"{source}: no such file; correct the path")
    return encoder.read(source, str(source))


def _listed(modalities: Sequence[str]) -> str:
    return ", ".join(f"<{modality}>" for modality in modalities) or "none"


def _wrong(request: Request, sentence: str) -> DataError:
    return DataError(f"{request.name}: {sentence}" if request.name else sentence)
