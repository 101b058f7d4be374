"""Conversations with media at any turn, as clients send them, into the prompt that the model was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from anymal.errors import DataError
from anymal.model.modalities import placeholder
from anymal.serving.answer import Content, Request, encoded, messages_of

if TYPE_CHECKING:
    from anymal.model.anymal import AnyMAL
    from anymal.model.prompt import Prompt

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class MediumPart:
    """A file within a message."""

    modality: str
    content: Content


@dataclass(frozen=True)
class Turn:
    """One message: texts and files, in order."""

    role: Role
    parts: tuple[str | MediumPart, ...]

    @property
    def text(self) -> str:
        """What it says, without its files."""
        return "\n".join(part for part in self.parts if isinstance(part, str))

    @property
    def media(self) -> tuple[MediumPart, ...]:
        """Its files."""
        return tuple(part for part in self.parts if isinstance(part, MediumPart))


def text_of(turns: Sequence[Turn]) -> str:
    """All that a conversation says, for the guard: a conversation can be forged, so what the model is said to have answered counts, too."""
    return "\n\n".join(turn.text for turn in turns if turn.text.strip())


def to_prompt(model: AnyMAL, turns: Sequence[Turn]) -> Prompt:
    """The prompt that asks for the answer to the last turn; a conversation of one turn is asked exactly as `anymal ask` does.

    Files before or after a turn's text stand where the model's prompt has its media; files between two texts stand there.

    Raises:
        DataError: naming the message, if the roles do not make a conversation, a text holds a placeholder, the model cannot read a file, or
            the prompt it was trained with has no place for files in a later turn.
    """
    from anymal.model.prompt import Prompt

    _check_roles(turns)
    messages: list[dict[str, str]] = []
    for number, turn in enumerate(turns):
        name = f"messages[{number}]"
        if placeholder().search(turn.text):
            raise DataError(f"{name}: its text holds a placeholder such as <image>; send the file as a part of its own, at that place")
        if turn.role != "user":
            if turn.media:
                raise DataError(f"{name}: has the role {turn.role} and a file; files are read in the user's messages")
            messages.append({"role": turn.role, "content": turn.text})
            continue
        new = messages_of(model, Request(_question(turn, name), _files(turn), name))
        if messages and new[0]["role"] == "system":
            if len(messages) > 1 or messages[0]["role"] != "system":
                raise DataError(f"{name}: this model was trained to read files in the first turn only; send them there")
            messages[0]["content"] += f"\n{new.pop(0)['content']}"
        messages += new
    return Prompt(messages, encoded(model, [file for turn in turns for file in _files(turn)]))


def _check_roles(turns: Sequence[Turn]) -> None:
    """Refuse what no chat template can render: an optional system message, then user and assistant by turns, the user last."""
    spoken = [turn.role for turn in turns]
    if spoken[:1] == ["system"]:
        del spoken[0]
    wanted = ["assistant" if place % 2 else "user" for place in range(len(spoken))]
    if not spoken or spoken != wanted or spoken[-1] != "user":
        found = ", ".join(turn.role for turn in turns) or "no message"
        raise DataError(f"messages: the roles are {found}; send an optional system message, then user and assistant by turns, the user last")


def _question(turn: Turn, name: str) -> str | None:
    """Its text; with placeholders where files stand between texts."""
    places = [place for place, part in enumerate(turn.parts) if isinstance(part, str)]
    if not turn.text.strip():
        if not turn.media:
            raise DataError(f"{name}: has neither text nor a file; give one of them")
        return None
    inner = turn.parts[places[0] : places[-1] + 1]
    if all(isinstance(part, str) for part in inner):
        return turn.text
    text = ""
    for part in turn.parts:
        piece = part if isinstance(part, str) else f"<{part.modality}>"
        gap = "" if not text or text[-1].isspace() or piece[:1].isspace() or piece[:1] in ".,;:!?" else " "
        text += gap + piece
    return text


def _files(turn: Turn) -> list[tuple[str, Content]]:
    return [(part.modality, part.content) for part in turn.media]
