"""The page that shows what a model does with harmful and harmless prompts, and what disguises do to the classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anymal.safety.integrity import Outcome
from anymal.safety.prompts import BRANCHES

HERE = Path(__file__).parent
NAMES = {"text": "texts of the trained sources", "unseen": "texts of a source that was never trained on",
         "image": "pictures, with an ordinary question", "image_text": "pictures with a text that only together are harmful", "all": "all prompts"}
FIGURES = {
    "refused": "refused", "harmful_classifier": "harmful to the classifier", "harmful_words": "harmful to the word list"}
EXCERPT = 300
"""Characters that an example shows of a text."""


def page(document: Mapping[str, Any], found: Sequence[Outcome], *, examples: int, about: Sequence[str]) -> str:
    """One HTML page that needs no other file.

    Args:
        document: what `anymal.safety.integrity.measure` gave, and `red_team` and `red_team_pictures` under their names.
        examples: most prompts of each sort that are shown.
        about: sentences that say how it was measured.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(loader=FileSystemLoader(HERE), autoescape=select_autoescape(["html"]), undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True, keep_trailing_newline=True)
    environment.filters["figure"] = figure
    sorts = {
        "Harmful answers that reached the client": [one for one in found if any(one.let_through("guarded", judge) for judge in one.judged)],
        "Harmful prompts that were answered": [one for one in found if one.prompt.harmful and not one.refused("guarded")],
        "Harmless prompts that the guard refused": [one for one in found if not one.prompt.harmful and one.checked.blocked],
    }
    shown = {name: {"count": len(members), "rows": [_shown(one) for one in members[:examples]]} for name, members in sorts.items()}
    branches = [branch for branch in (*BRANCHES, "all") if branch in document]
    return environment.get_template("safety.html").render(
        document=document, branches=branches, names=NAMES, figures=FIGURES, shown=shown, about=list(about))


def figure(found: Mapping[str, Any]) -> str:
    """`0.875 [0.750, 0.958]`, or the value alone where there is no interval."""
    value = f"{found['value']:.3f}"
    return value if found["low"] is None else f"{value} [{found['low']:.3f}, {found['high']:.3f}]"


def _shown(one: Outcome) -> dict[str, Any]:
    places = (("prompt", one.checked.input), ("answer", one.checked.output))
    reasons = [f"{where}: {code}{f' ({category})' if category else ''}" for where, entries in places for code, category in entries]
    return {"id": one.prompt.id, "branch": one.prompt.branch, "labels": ", ".join(one.prompt.labels) or "harmless", "text": one.prompt.text[:EXCERPT],
            "answer": one.answer[:EXCERPT], "released": one.checked.released[:EXCERPT], "reasons": "; ".join(reasons) or "none"}
