"""Answers from a loaded model: the one way from questions and media files to text, for the command line and for serving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from anymal.errors import DataError

if TYPE_CHECKING:
    from anymal.model.anymal import AnyMAL
    from anymal.model.prompt import Prompt


@dataclass(frozen=True)
class Request:
    """A question (None asks for a caption) about media files, by modality."""

    question: str | None
    media: Mapping[str, Sequence[Path]]


def answer(model: AnyMAL, requests: Sequence[Request], *, max_new_tokens: int, batch_size: int) -> list[str]:
    """Greedy answers, one per request.

    Raises:
        DataError: if a file is missing, no picture or too large, or the files do not match the prompt's placeholders.
    """
    prompts = [_prompt(model, request) for request in requests]
    return model.generate(prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)


def _prompt(model: AnyMAL, request: Request) -> Prompt:
    from anymal.model.prompt import PLACEHOLDER, Medium, Prompt

    name = "caption" if request.question is None else "question"
    if name not in model.templates:
        raise DataError(f"this model was trained without a template '{name}'; it has {', '.join(model.templates)}")
    if request.question is not None and (found := PLACEHOLDER.search(request.question)):
        raise DataError(f"the question holds {found[0]}, which stands for a file in the model's own prompt; leave it out of the question")
    template = model.templates[name]
    wanted = PLACEHOLDER.findall(f"{template.system or ''}{template.user}")
    given = {modality: list(paths) for modality, paths in request.media.items() if paths}
    if {modality: wanted.count(modality) for modality in wanted} != {modality: len(paths) for modality, paths in given.items()}:
        listed = ", ".join(f"{len(paths)} {modality}" for modality, paths in given.items())
        needed = ", ".join(f"{wanted.count(modality)} {modality}" for modality in dict.fromkeys(wanted))
        raise DataError(f"the model's prompt for a {name} takes {needed or 'no file'}, but {listed or 'no file'} was given; give exactly that many")
    features = {modality: iter(model.encode(modality, paths)) for modality, paths in given.items()}
    return Prompt(template.messages(request.question), [Medium(modality, next(features[modality])) for modality in wanted])
