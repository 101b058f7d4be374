"""Prompts: chat messages with media placeholders, and their one way into token pieces, for training and generation alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from anymal.errors import DataError
from anymal.model.modalities import placeholder

if TYPE_CHECKING:
    import torch

MEDIA = "{media}"
MEDIUM = "{medium}"
QUESTION = "{question}"


@dataclass(frozen=True)
class Medium:
    """One encoded medium: its modality and its encoder features, shape (tokens, dim)."""

    modality: str
    features: torch.Tensor


@dataclass(frozen=True)
class Template:
    """A prompt as data: an optional system message and a user message, with `{question}` and a place for the media.

    The place is `{media}` (any number of any modality, in the order given) or placeholders such as `<image>` (exactly these). The paper
    knows two orders: the medium in the system message (appendix B) and `[instruction, medium]` (section 3.2).

    Attributes:
        introductions: modality -> the words around a medium of it at `{media}`, such as `The sound is {medium}.`; a bare placeholder if
            it has none. A sentence about the medium is what a frozen LLM understands soonest (docs/decisions/0006).
    """

    system: str | None
    user: str
    introductions: Mapping[str, str] = field(default_factory=dict)

    def messages(self, modalities: Sequence[str], question: str | None = None) -> list[dict[str, str]]:
        """The chat messages for media of these modalities, in order.

        A question that holds placeholders itself (`What is in <image> that makes <audio>?`) places the media, and `{media}` becomes empty.
        """
        placed = question is not None and placeholder().search(question) is not None
        media = "" if placed else "\n".join(self.introductions.get(name, MEDIUM).replace(MEDIUM, f"<{name}>") for name in modalities)

        def fill(text: str) -> str:
            filled = text.replace(MEDIA, media)
            return (filled if question is None else filled.replace(QUESTION, question)).strip("\n")

        turns = [] if self.system is None else [{"role": "system", "content": fill(self.system)}]
        return [*turns, {"role": "user", "content": fill(self.user)}]


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


@dataclass(frozen=True)
class Exchange:
    """One turn of a conversation after tokenisation: what stands before the answer, and the answer with its end of turn."""

    prompt: Pieces
    answer: tuple[int, ...]


def tokenize(prompt: Prompt, tokenizer: Any) -> Pieces:
    """Render with the tokenizer's chat template, split at the placeholders and tokenise each piece.

    Raises:
        DataError: if the placeholders and the media do not match one to one, in order.
    """
    return _pieces(_render(prompt.messages, tokenizer), prompt.media, tokenizer)


def tokenize_dialogue(prompt: Prompt, tokenizer: Any) -> tuple[Exchange, ...]:
    """A conversation whose last message is an answer; each turn is tokenised exactly as `tokenize` would have it answered.

    Raises:
        DataError: if the placeholders and the media do not match one to one, in order, or if the chat template changes what was said
            before when a turn is added, so that no turn could be trained as it will be asked.
    """
    exchanges: list[Exchange] = []
    rendered, used = "", 0
    for end, message in enumerate(prompt.messages):
        if message["role"] != "assistant":
            continue
        before = _render(prompt.messages[:end], tokenizer)
        if not before.startswith(rendered):
            raise DataError("the tokenizer's chat template rewrites earlier turns when one is added; fine-tune it on single turns")
        text = before[len(rendered) :]
        count = len(placeholder().findall(text))
        pieces = _pieces(text, prompt.media[used : used + count], tokenizer)
        exchanges.append(Exchange(pieces, answer_ids(message["content"], tokenizer)))
        rendered, used = f"{before}{message['content']}{tokenizer.eos_token}", used + count
    if used != len(prompt.media):
        raise DataError(f"the conversation has {used} placeholders but {len(prompt.media)} inputs are given; give one input per placeholder")
    return tuple(exchanges)


def answer_ids(answer: str, tokenizer: Any) -> tuple[int, ...]:
    """Token ids of an answer, the end of turn included."""
    return (*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)


def _render(messages: Sequence[Mapping[str, str]], tokenizer: Any) -> str:
    text: str = tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False, add_generation_prompt=True)
    return text


def _pieces(text: str, media: Sequence[Medium], tokenizer: Any) -> Pieces:
    parts = placeholder().split(text)
    wanted, given = parts[1::2], [medium.modality for medium in media]
    if wanted != given:
        raise DataError(f"the prompt's placeholders are {wanted or 'none'} but the inputs given are {given or 'none'}; "
                        "give one input per placeholder, in order")
    texts = tuple(tuple(tokenizer(part, add_special_tokens=False)["input_ids"]) if part else () for part in parts[0::2])
    return Pieces(texts, tuple(media))
