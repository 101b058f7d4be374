"""The page about what the guard's classifiers learn from: counts, what was left out and why, and examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anymal.evaluation.formats.documents import write_text
from anymal.safety.taxonomy import taxonomy
from anymal.safety.text_sources import KINDS
from anymal.safety.texts import TextRecord

TEMPLATE = "curated.html"
SHOWN = 160
"""Characters of an example."""
REASONS = {
    "no_category": "harmful by its source, and in none of our categories",
    "not_picked": "of a model's score only; most of these are innocent",
    "duplicate": "the same text stands in another place",
    "near_unseen": "a paraphrase of a text that is to be unseen",
    "not_drawn": "more than the profile wants of a source",
    "too_long": "longer than a text may be",
    "empty": "without a letter or digit",
}


def write_page(path: Path, figures: Mapping[str, Any], splits: Mapping[str, Sequence[TextRecord]], examples: int) -> None:
    """Write the page.

    Args:
        figures: `texts`, `images` and `pairs` as curation counted them.
        examples: texts shown of each kind and of each category, of the test split.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    records = splits["test"]
    sources = figures["texts"]["sources"].values()
    reasons = {reason: meaning for reason, meaning in REASONS.items() if any(reason in source["dropped"] for source in sources)}
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(["html"]), undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    write_text(path, environment.get_template(TEMPLATE).render(
        **{name: figures[name] for name in ("texts", "images", "pairs")}, reasons=reasons, categories=list(taxonomy().categories),
        seen=sum(source["seen"] for source in sources), kept=sum(source["kept"] for source in sources),
        harmless={kind: [record.text[:SHOWN] for record in records if record.kind == kind and not record.labels][:examples] for kind in KINDS},
        harmful=[{"name": category.name, "covers": category.covers,
                  "examples": [record.text[:SHOWN] for record in records if code in record.labels][:examples]}
                 for code, category in taxonomy().categories.items() if "text" in category.modalities]))
