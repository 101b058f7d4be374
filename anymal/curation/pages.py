"""Pages and cards that curation writes, filled in from the templates of this folder."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FRAME = "frame.html"
"""What the reports of all modalities share; they extend it as `frame`."""


def page(name: str, **content: Any) -> str:
    """Fill a template of this folder (`NAME.html` escapes what is put in, `NAME.md` does not); a name that it lacks is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(loader=FileSystemLoader(HERE), autoescape=select_autoescape(["html"]), undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True, keep_trailing_newline=True)
    return environment.get_template(name).render(frame=FRAME, **content)


def data_uri(data: bytes, kind: str = "png") -> str:
    """The bytes of a picture as they stand in a page."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
