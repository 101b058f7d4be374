"""A request's messages as the conversation that is answered: its files decoded, or fetched from where they lie."""

from __future__ import annotations

from collections.abc import Sequence

from anymal.errors import DataError
from anymal.serving.answer import Content
from anymal.serving.conversation import MediumPart, Turn
from anymal.serving.openai import BadRequest, Message, Remote, to_turns
from anymal.serving.remote_media import fetch


def turns_of(messages: Sequence[Message], *, remote_bytes: int | None) -> list[Turn]:
    """The conversation, once all its files are there.

    Args:
        remote_bytes: the most that is read of a file at an address; None fetches none.

    Raises:
        BadRequest: naming the part that cannot be decoded or fetched.
    """
    return [Turn(role, tuple(_fetched(part, remote_bytes) if isinstance(part, Remote) else part for part in parts))
            for role, parts in to_turns(messages)]


def _fetched(part: Remote, most: int | None) -> MediumPart:
    if most is None:
        raise BadRequest(f"{part.name}: this server fetches no media from addresses; send a data URI", part.name)
    try:
        return MediumPart(part.modality, Content(part.name, fetch(part.url, part.name, most=most)))
    except DataError as error:
        raise BadRequest(str(error), part.name) from None
