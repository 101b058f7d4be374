"""The dataset card of sounds, clips and recordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anymal.curation.pages import page


def write_media_card(folder: Path, *, title: str, extension: str, tasks: Sequence[str], fields: Sequence[str], figures: Mapping[str, Any],
                     licences: Mapping[str, str], reasons: Mapping[str, str], examples: Sequence[tuple[str, str]], splitting: str,
                     limits: str) -> None:
    """Write the dataset card (README.md in the Hugging Face format) of sounds, clips or recordings.

    Args:
        tasks: task categories of the hub.
        fields: metadata fields beside those that all samples have.
        figures: the statistics: `seen`, `kept`, `dropped`, `splits` (split -> samples), `leaks`, `sources` (name -> `seen`, `kept`).
        licences: source -> licence.
        examples: keys and captions.
        splitting: what is kept together in one split, as a sentence.
        limits: what the data is not, as a paragraph.
    """
    text = page("media_card.md", title=title, extension=extension, tasks=tasks, fields=fields, figures=figures, licences=licences, reasons=reasons,
                examples=examples, splitting=splitting, limits=limits)
    (folder / "README.md").write_text(text, encoding="utf-8")
