"""CAT: the caption's complexity and action by a parser, and text-spotting by OCR (LAION-CAT; facts in the paper's section on data).

Complexity counts the relations that a parse finds on an object; action counts verbs that say what happens. Their published thresholds are at
least one of each. Text-spotting drops a pair whose caption merely repeats text that can be read in the picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from anymal.curation.drops import Drop

RELATIONS = frozenset({
    "amod", "compound", "nummod", "poss", "prep", "acl", "relcl", "appos", "nsubj", "nsubjpass", "dobj", "obj", "attr", "agent", "conj",
})
"""Dependency labels that say something of an object: its kind, count, owner, place, what it does and what is done to it."""
_NOT_ACTIONS = frozenset({"be", "have", "show", "depict", "picture", "contain", "call", "name"})
"""Verbs that state that something exists or is shown, and so describe no event or posture."""


def complexity(document: Any) -> int:
    """Most relations on any one object of a parsed caption: "A cat." has 0, "A black cat on a mat." has 2.

    Args:
        document: a spaCy parse (POS tags and dependencies).
    """
    most = 0
    for token in document:
        if token.pos_ not in ("NOUN", "PROPN"):
            continue
        relations = sum(child.dep_ in RELATIONS for child in token.children)
        most = max(most, relations + (token.dep_ in ("nsubj", "nsubjpass", "dobj", "obj", "pobj")))
    return most


def actions(document: Any) -> int:
    """Number of actions in a parsed caption: verbs, not auxiliaries, not "is", "has" or "shows"; "A sleeping cat." has 1."""
    return sum(
        (token.pos_ == "VERB" or (token.tag_ == "VBG" and token.dep_ == "amod")) and token.lemma_.lower() not in _NOT_ACTIONS for token in document
    )


def check(document: Any, *, min_complexity: int, min_actions: int) -> Drop | None:
    """Drop a caption that says too little of an object, or in which nothing happens."""
    found = complexity(document)
    if found < min_complexity:
        return Drop("too_few_relations", f"{found}")
    found = actions(document)
    return Drop("too_few_actions", f"{found}") if found < min_actions else None


def plain(text: str) -> str:
    """Lower-case letters and digits only, words divided by one blank."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def could_repeat(caption: str, min_characters: int) -> bool:
    """Whether a caption is long enough to hold a recognised string at all; if not, no OCR is needed."""
    return len(plain(caption)) >= min_characters


def repeated_text(recognised: Iterable[str], caption: str, min_characters: int) -> str | None:
    """The first recognised string of at least `min_characters` that occurs in the caption, both brought to `plain` form; None if none does."""
    target = plain(caption)
    return next((text for text in map(plain, recognised) if len(text) >= min_characters and text in target), None)
