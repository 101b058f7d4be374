"""The guard's folder: three classifiers, their thresholds, a card, and a manifest that says whether anything changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anymal.data.manifest import sha256_of, verify_manifest, write_manifest
from anymal.errors import DataError
from anymal.safety.image_classifier import BACKBONE, ImageClassifier
from anymal.safety.pair_classifier import IMAGE as SEEN
from anymal.safety.pair_classifier import PairClassifier
from anymal.safety.taxonomy import CODES
from anymal.safety.text_classifier import TextClassifier

DOCUMENT, CARD = "guard.json", "README.md"
TEXT, IMAGE, PAIR = "text", "image", "pair"
USES = ("request", "answer", "image", "pair", "pair_answer")
"""What thresholds are for: what is asked, a sentence of what is answered, a picture, a picture with what is asked, and with a sentence of what is
answered."""


@dataclass(frozen=True)
class GuardModels:
    """The classifiers and, for each use, from which probability on a category is hit."""

    text: TextClassifier
    image: ImageClassifier
    pair: PairClassifier
    thresholds: Mapping[str, Mapping[str, float]]
    document: Mapping[str, Any]
    """`guard.json`."""
    categories: tuple[str, ...] = CODES
    """The columns of all probabilities."""


def load_guard(folder: Path) -> GuardModels:
    """Load a guard after comparing every file with its manifest.

    Raises:
        DataError: if anything is missing, changed, or not what the classifiers need.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such guard; run train_safety, or give the folder that it wrote")
    verify_manifest(folder)
    try:
        document = json.loads((folder / DOCUMENT).read_text(encoding="utf-8"))
        thresholds = {str(use): {str(code): float(value) for code, value in table.items()} for use, table in document["thresholds"].items()}
        categories = tuple(document["categories"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / DOCUMENT}: is not the document of a guard ({error}); run train_safety again") from error
    if categories != CODES:
        raise DataError(f"{folder / DOCUMENT}: its categories ({', '.join(map(str, categories))}) are not this version's; run train_safety again")
    missing = [use for use in USES if not thresholds.get(use)]
    if missing:
        raise DataError(f"{folder / DOCUMENT}: has no thresholds for {', '.join(missing)}; run train_safety again")
    text, image, pair = TextClassifier.load(folder / TEXT), ImageClassifier.load(folder / IMAGE), PairClassifier.load(folder / PAIR)
    if _same(folder / IMAGE / BACKBONE, folder / PAIR / SEEN):
        pair.backbone = image.backbone  # so that a picture is looked at once for both
    return GuardModels(text, image, pair, thresholds, document)


def _same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files."""
    names = sorted(path.name for path in one.iterdir())
    return names == sorted(path.name for path in other.iterdir()) and all(sha256_of(one / name) == sha256_of(other / name) for name in names)


def write_guard(folder: Path, *, thresholds: Mapping[str, Mapping[str, float]], facts: Mapping[str, Any], card: str) -> None:
    """Write `guard.json`, the card and the manifest beside the classifiers that are in the folder.

    Args:
        facts: what else the document says: false-positive rates asked for, backbones, provenance.
    """
    document = {"categories": list(CODES), "thresholds": {use: dict(table) for use, table in thresholds.items()}, **facts}
    (folder / DOCUMENT).write_text(json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / CARD).write_text(card, encoding="utf-8")
    write_manifest(folder)
