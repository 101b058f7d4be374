"""A picture of a request: decoded once and looked at once, however many sentences of the answer are checked with it."""

from __future__ import annotations

from typing import Any

from PIL import Image


class Shown:
    """A picture as it came, and what one guard has made of it so far. All of it is gone with the request that holds it."""

    def __init__(self, source: bytes | Image.Image) -> None:
        """Nothing is read yet.

        Args:
            source: the content of a file, or a picture that was decoded.
        """
        self.source = source
        self.picture: Image.Image | None = None
        """Upright, RGB, within the guard's limits."""
        self.looked: dict[object, Any] = {}
        """Image network -> what it sees in it."""
