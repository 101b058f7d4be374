"""Held-out prompts to ask a model: texts, texts with a picture, and pictures with an ordinary question, harmful and harmless."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anymal.errors import DataError
from anymal.evaluation.controls import draw_stratified

BRANCHES: dict[str, str] = {
    "text": "texts/test.jsonl", "unseen": "texts/unseen.jsonl", "image": "images/test.jsonl", "image_text": "pairs/test.jsonl"}
"""Kind of prompt -> its file in the folder that curate_safety wrote."""
HARMLESS = "harmless"
"""Stands for the category of what has none, where prompts are drawn evenly over categories."""


@dataclass(frozen=True)
class Prompt:
    """One held-out prompt."""

    branch: str
    id: str
    text: str
    image: Path | None
    labels: tuple[str, ...]
    """Codes of the taxonomy; none for a harmless one."""
    group: str
    """What intervals resample whole."""
    kind: str

    @property
    def harmful(self) -> bool:
        """Whether it has a label."""
        return bool(self.labels)


def read_prompts(folder: Path, sizes: Mapping[str, int], *, kinds: Sequence[str], question: str, barred: Sequence[str], seed: int) -> list[Prompt]:
    """Draw prompts of each branch.

    Args:
        folder: what curate_safety wrote.
        sizes: branch -> greatest number of harmful ones, and of harmless ones; each as evenly over categories or kinds as there are.
        kinds: of texts that are prompts; others (answers, sentences) are not asked.
        question: what is asked about a picture that comes without a text.
        barred: what no text may hold, for it would mean something else to the model (placeholders of media).

    Returns:
        Sorted by branch and id.

    Raises:
        DataError: if a file is missing or of another layout, or a branch has no harmful or no harmless prompt.
    """
    found = []
    for branch, size in sizes.items():
        if not size:
            continue
        path = folder / BRANCHES[branch]
        known = [prompt for prompt in _read(path, folder, branch, question) if not any(word in prompt.text for word in barred)]
        if branch in ("text", "unseen"):
            known = [prompt for prompt in known if prompt.kind in kinds]
        for harmful in (True, False):
            side = [prompt for prompt in known if prompt.harmful == harmful]
            if not side:
                what = "harmful" if harmful else "harmless"
                raise DataError(f"{path}: holds no {what} prompt{f' of kind {chr(44).join(kinds)}' if branch in ('text', 'unseen') else ''}; "
                                f"curate more, or set evaluate_safety.prompts.{branch} to 0")
            strata: dict[str, list[int]] = {}
            for place, prompt in enumerate(side):
                strata.setdefault(prompt.labels[0] if prompt.labels else f"{HARMLESS}/{prompt.kind}", []).append(place)
            found += [side[place] for place in draw_stratified(strata, size, seed=seed)]
    return sorted(found, key=lambda prompt: (list(BRANCHES).index(prompt.branch), prompt.id))


def _read(path: Path, folder: Path, branch: str, question: str) -> Iterator[Prompt]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); run the stage curate_safety") from error
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            yield _prompt(json.loads(line), folder, branch, question)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}:{number}: is not what curate_safety writes ({type(error).__name__}: {error}); run it again") from error


def _prompt(row: Mapping[str, Any], folder: Path, branch: str, question: str) -> Prompt:
    name = {"image": "file", "image_text": "image"}.get(branch)
    image = None if name is None else picture_path(folder, str(row[name]))
    text = question if branch == "image" else str(row["text"])
    return Prompt(branch, str(row["id"]), text, image, tuple(map(str, row["labels"])), str(row["group"]), str(row.get("kind", branch)))


def picture_path(folder: Path, name: str) -> Path:
    """Where a picture lies that a row names: relative to the folder, or to its `images` or `images/files`."""
    places = [folder / name, folder / "images" / name, folder / "images" / "files" / name]
    return next((place for place in places if place.is_file()), places[0])
