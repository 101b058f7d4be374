"""What the guard says: whether something may pass, and why not, in codes that repeat nothing of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Code(StrEnum):
    """Why the guard rejects. The first five come with a category of the taxonomy, the others without."""

    TEXT = "text"
    """The prompt's text, however it was written."""
    IMAGE = "image"
    """A picture."""
    IMAGE_TEXT = "image_text"
    """A picture and a text together."""
    HIDDEN_TEXT = "hidden_text"
    """Text in a picture, in its file, or put together from those and the prompt."""
    ANSWER = "answer"
    """What the model said."""
    TOO_LONG = "too_long"
    """More characters than the limit, in the prompt or in the metadata of a picture."""
    TOO_MANY_IMAGES = "too_many_images"
    TOO_LARGE = "too_large"
    """A picture of more bytes or pixels than the limit."""
    UNREADABLE = "unreadable"
    """No picture, or one whose file is damaged."""
    UNAVAILABLE = "unavailable"
    """A classifier is missing, failed, or took too long: what cannot be checked does not pass."""


@dataclass(frozen=True)
class Reason:
    """Why something was rejected: a code and, where a classifier decided, the category."""

    code: Code
    category: str | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether something may pass, and all reasons why not."""

    reasons: tuple[Reason, ...] = ()

    @property
    def allowed(self) -> bool:
        """True if there is no reason against it."""
        return not self.reasons


ALLOWED = Verdict()
NOT_CHECKED = Verdict((Reason(Code.UNAVAILABLE),))


def rejected(reasons: Iterable[Reason]) -> Verdict:
    """A verdict of reasons, each once, in the order in which they were found."""
    return Verdict(tuple(dict.fromkeys(reasons)))


@dataclass(frozen=True)
class GuardLimits:
    """What the guard looks at before anything is decoded, and how long it may take.

    Args:
        characters: of a prompt.
        images: in a prompt.
        image_bytes: of one picture's file.
        image_pixels: of one picture.
        metadata_characters: of text in one picture's file.
        seconds: for one check, waiting for its turn included.
        window: characters that a classifier is shown at once.
    """

    characters: int = 20_000
    images: int = 8
    image_bytes: int = 20_000_000
    image_pixels: int = 50_000_000
    metadata_characters: int = 20_000
    seconds: float = 30.0
    window: int = 400
