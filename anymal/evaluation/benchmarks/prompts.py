"""From a sample and a protocol to chat messages with a place for the medium, and from a reply to the answer in it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from anymal.errors import ConfigError
from anymal.evaluation.benchmarks.declaration import Wording
from anymal.evaluation.benchmarks.items import Item
from anymal.model.modalities import placeholder
from anymal.model.prompt import Template

FIELD = re.compile(r"\{(question|options|context|text|ocr)\}")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
OBJECT = re.compile(r"\{[^{}]*\}")


def messages(wording: Wording, item: Item, templates: Mapping[str, Template], name: str) -> list[dict[str, str]]:
    """The chat messages for a sample, its medium introduced as the checkpoint was trained to (decision 6).

    Args:
        templates: the checkpoint's own, of the medium's modality.
        name: the benchmark, for errors.

    Raises:
        ConfigError: if the protocol is the checkpoint's own prompt and it has none of that name.
    """
    filled = {"question": item.question.capitalize() if wording.capitalize else item.question, "context": item.context, "text": item.text,
              "ocr": ", ".join(item.ocr),
              "options": "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, item.options, strict=False))}  # fmt: skip
    user = None if wording.user is None else _fill(wording.user, filled)
    if wording.template is not None:
        if wording.template not in templates:
            raise ConfigError(f"benchmarks.{name}.protocol = model: the checkpoint of {item.medium.modality} was trained without a template "
                              f"'{wording.template}'; take the protocol paper")
        return templates[wording.template].messages([item.medium.modality], user)
    introductions = next(iter(templates.values())).introductions if templates else {}
    system = None if wording.system is None else _fill(wording.system, filled)
    return Template(system, user or "", introductions).messages([item.medium.modality])


def _fill(wording: str, fields: Mapping[str, str]) -> str:
    """The fields in their places; lines whose field is empty are left out."""
    lines = []
    for line in wording.split("\n"):
        named = FIELD.findall(line)
        if not named or all(fields[field].strip() for field in named):
            lines.append(FIELD.sub(lambda found: plain(fields[found[1]]), line))
    return "\n".join(lines)


def plain(text: str) -> str:
    """A benchmark's text that cannot be taken for a place of a medium or a question: `<image>` and `{media}` lose their brackets."""
    return re.sub(r"\{(media|medium|question)\}", r"\1", placeholder().sub(r"\1", text))


def extract(how: str, said: str) -> str | None:
    """The answer in a reply; None if there is none, which counts as wrong.

    Args:
        how: `json_caption` takes the member `caption` of the first JSON object that has one; all else the reply as it is, for letters and yes and
            no are found when it is scored.
    """
    if how != "json_caption":
        return said
    for found in OBJECT.finditer(said):
        try:
            document = json.loads(found[0])
        except ValueError:
            continue
        if isinstance(document, dict) and isinstance(document.get("caption"), str) and document["caption"].strip():
            caption: str = document["caption"].strip()
            return caption
    return None


def candidates(item: Item, metric: str) -> list[str]:
    """What the likelihood of each option is measured of: the letter that is asked for, or yes and no."""
    return list(item.options) if metric in ("roc", "pope") else list(LETTERS[: len(item.options)])
