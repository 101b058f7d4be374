"""Refusals of the language model itself, told by their wording; the wordings are data (`refusals.yaml`)."""

from __future__ import annotations

import functools
import re
from importlib.resources import files

from anymal.errors import ConfigError


@functools.cache
def _known() -> tuple[int, tuple[re.Pattern[str], ...]]:
    from ruamel.yaml import YAML

    document = YAML(typ="safe", pure=True).load(files("anymal.safety").joinpath("refusals.yaml").read_text(encoding="utf-8"))
    try:
        return int(document["characters"]), tuple(re.compile(pattern) for pattern in document["patterns"])
    except re.error as error:
        raise ConfigError(f"refusals.yaml: {error.pattern!r} is no regular expression ({error})") from error


def is_refusal(answer: str) -> bool:
    """Whether an answer begins as a refusal does. An empty answer is none: nothing was refused, nothing was said."""
    characters, patterns = _known()
    begun = " ".join(answer.lower().replace("\u2019", "'").split())[:characters]
    return any(pattern.search(begun) for pattern in patterns)
