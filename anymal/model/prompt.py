"""Prompts: chat messages with media placeholders, and their one way into token pieces, for training and generation alike."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anymal.errors import DataError

if TYPE_CHECKING:
    import torch

PLACEHOLDER = re.compile(r"<(image|video|audio|imu)>")


@dataclass(frozen=True)
class Medium:
    """One encoded medium: its modality and its encoder features, shape (tokens, dim)."""

    modality: str
    features: torch.Tensor


@dataclass(frozen=True)
class Template:
    """A prompt as data: an optional system message and a user message, with placeholders such as `<image>` and `{question}`.

    The paper knows two orders: the medium in the system message (appendix B) and `[instruction, medium]` (section 3.2).
    """

    system: str | None
    user: str

    def messages(self, question: str | None = None) -> list[dict[str, str]]:
        """The chat messages, with `{question}` filled in where the template has it."""
        turns = [] if self.system is None else [{"role": "system", "content": self.system}]
        turns.append({"role": "user", "content": self.user})
        if question is None:
            return turns
        return [{**turn, "content": turn["content"].replace("{question}", question)} for turn in turns]


@dataclass(frozen=True)
class Prompt:
    """Chat messages whose placeholders stand for `media`, in order."""

    messages: Sequence[Mapping[str, str]]
    media: Sequence[Medium] = ()


@dataclass(frozen=True)
class Pieces:
    """A prompt after tokenisation: text pieces around the media, `len(texts) == len(media) + 1`."""

    texts: tuple[tuple[int, ...], ...]
    media: tuple[Medium, ...]


def tokenize(prompt: Prompt, tokenizer: Any) -> Pieces:
    """Render with the tokenizer's chat template, split at the placeholders and tokenise each piece.

    Raises:
        DataError: if the placeholders and the media do not match one to one, in order.
    """
    text = tokenizer.apply_chat_template([dict(m) for m in prompt.messages], tokenize=False, add_generation_prompt=True)
    parts = PLACEHOLDER.split(text)
    wanted, given = parts[1::2], [medium.modality for medium in prompt.media]
    if wanted != given:
        raise DataError(f"the prompt's placeholders are {wanted or 'none'} but the inputs given are {given or 'none'}; "
                        "give one input per placeholder, in order")
    texts = tuple(tuple(tokenizer(part, add_special_tokens=False)["input_ids"]) if part else () for part in parts[0::2])
    return Pieces(texts, tuple(prompt.media))
