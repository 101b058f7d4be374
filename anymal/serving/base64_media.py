"""Files that come in a request: their content in base64, never a path, for whoever can ask a server must not read the server's files."""

from __future__ import annotations

import base64
import binascii

from anymal.errors import DataError

MAX_MEDIUM_BYTES = 64 * 2**20
"""Of one file."""


def decode_medium(text: str, name: str) -> bytes:
    """The content of a data URI or of plain base64.

    Raises:
        DataError: if it is neither, or larger than `MAX_MEDIUM_BYTES`.
    """
    head, comma, tail = text.partition(",")
    body = tail if comma and head.startswith("data:") and head.endswith(";base64") else text
    if len(body) > MAX_MEDIUM_BYTES * 4 // 3 + 4:
        raise DataError(f"{name}: more than {MAX_MEDIUM_BYTES // 2**20} MiB; send a smaller file")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{name}: {text[:40]!r}… is neither base64 nor a data URI with base64; send the file's content in one of these") from error
