"""A file wherever it is, told by how its address begins."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from anymal.data.sources.local import open_file
from anymal.data.sources.s3 import open_s3
from anymal.data.sources.tools import pip_certificates
from anymal.data.sources.transfer import Opened
from anymal.data.sources.web import open_http


def open_any(name: str, place: str, at: int) -> Opened:
    """Open an s3:// object, an http(s) address or a local file at an offset in bytes."""
    if place.startswith("s3://"):
        return open_s3(name, place, at)
    if place.startswith(("https://", "http://")):
        return open_http(name, place, pip_certificates() if place.startswith("https") else None, at)
    return open_file(name, Path(unquote(urlsplit(place).path) if place.startswith("file:") else place), at)
