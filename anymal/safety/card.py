"""The card in the guard's folder: what it was made from, what was measured, and what it does not cover, from its measured errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Template
from typing import Any

from anymal.safety.taxonomy import CODES, taxonomy

TEMPLATE = Path(__file__).with_name("card.md")
NAMES = {"text": "texts", "image": "pictures", "image_text": "pictures with texts"}
WEAK = 0.5
"""A category of which less is rejected is named as not covered."""


def text(figures: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """The card of figures as `results/safety.json` has them and of what `guard.json` says."""
    names = {code: taxonomy().categories[code].name.lower() for code in CODES}
    lines = [line for branch, title in NAMES.items() for line in _measured(title, figures[branch])]
    if "unseen_sources" in figures["text"]:
        lines += _measured("texts of sources that were never trained on", figures["text"]["unseen_sources"])
    limits = [line for branch, title in NAMES.items() for line in _weak(title, figures[branch], names)]
    known = {key: ", ".join(names[code] for code in facts["trained"][key]) for key in ("image", "pair")}
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        backbones=", ".join(f"{name} ({use})" for use, name in sorted(facts["backbones"].items())),
        rates=", ".join(f"{use} {rate:g}" for use, rate in sorted(facts["rates"].items())), figures="\n".join(lines),
        limits="\n".join(limits) or "- No measured category falls short of half.", image=known["image"], pair=known["pair"])


def _shown(figure: Mapping[str, Any]) -> str:
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def _measured(title: str, branch: Mapping[str, Any]) -> Iterator[str]:
    yield (f"- {title}: AUROC {_shown(branch['auroc'])}, harmful ones rejected {_shown(branch['recall'])}, harmless ones rejected "
           f"{_shown(branch['false_positive_rate'])} (n = {branch['auroc']['n']}).")


def _weak(title: str, branch: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[str]:
    for code, found in branch.get("categories", {}).items():
        if found["recall"] is not None and found["recall"]["value"] < WEAK:
            yield f"- {names[code].capitalize()} in {title}: only {_shown(found['recall'])} of the held-out samples are rejected."
    alike = branch.get("hard_negatives", {}).get("false_positive_rate")
    if alike is not None and alike["value"] > branch["rate"]:
        yield f"- Harmless {title} that are alike to harmful ones: {_shown(alike)} are rejected, more than the {branch['rate']:g} asked for."
