"""The guard in the model registry: what a version of it holds, how MLflow loads it, and its card."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anymal import __version__
from anymal.data.manifest import verify_manifest
from anymal.errors import BundleError
from anymal.registry import Kind, Rows
from anymal.serving.safety_text import ASKED, CHECKS, figure, guard_limits

if TYPE_CHECKING:
    import pandas as pd

    from anymal.safety.models import GuardModels

DOCUMENT = "guard.json"
FOLDERS = ("text", "image", "pair")
"""Of the classifiers."""
NAMES = {"text": "text", "image": "image", "image_text": "image + text"}


def read_guard(folder: Path) -> dict[str, Any]:
    """The content of `guard.json`, after every file of the guard was checked against the manifest; `checks` are the classifiers that it has.

    Raises:
        BundleError: naming each missing, extra and changed file, or what is wrong with `guard.json`.
    """
    if not folder.is_dir():
        raise BundleError(f"{folder}: no such folder of a guard; run the stage train_safety, or give models:/anymal-guard@candidate")
    verify_manifest(folder, error=BundleError)
    try:
        document = json.loads((folder / DOCUMENT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder / DOCUMENT}: cannot be read ({error}); this folder is no guard, give one that train_safety wrote") from error
    if not isinstance(document, dict) or not isinstance(document.get("thresholds"), dict):
        raise BundleError(f"{folder / DOCUMENT}: names no thresholds; train the guard again")
    return {**document, "checks": [name for name in FOLDERS if (folder / name).is_dir()]}


def guard_card(*, name: str, alias: str, document: Mapping[str, Any], safety: Mapping[str, Any], integrity: Mapping[str, Any],
               inputs: Mapping[str, str], seed: int) -> str:
    """Markdown with a YAML header, in the Hugging Face format; the same arguments give the same text.

    Args:
        document: what `read_guard` gave.
        safety: content of results/safety.json.
        integrity: content of results/safety_integrity.json.
        inputs: what it was made from and measured by -> SHA-256.
    """
    import jinja2
    from ruamel.yaml import YAML

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, keep_trailing_newline=True, trim_blocks=True)  # noqa: S701
    environment.filters["figure"] = figure
    header = io.StringIO()
    YAML().dump({"library_name": "anymal", "tags": ["anymal", "safety", "guard"], "language": ["en"], "license": "apache-2.0"}, header)
    rows = [{"name": NAMES[branch], "figure": key, "found": found} for branch in CHECKS if branch in safety
            for key, found in sorted(safety[branch].items()) if isinstance(found, Mapping) and isinstance(found.get("value"), int | float)]
    return environment.from_string(files("anymal.serving").joinpath("guard_card.md").read_text(encoding="utf-8")).render(
        header=header.getvalue(), name=name, alias=alias, document=document, rows=rows, asked=[
            {"name": words, **{side: integrity[branch][side] for side in ("harmful", "harmless")}} for branch, words in ASKED.items()
            if branch in integrity], limits=guard_limits(safety, integrity), inputs=dict(inputs), seed=seed, version=__version__)


class GuardPredictor:
    """Says what the classifiers find in the rows of a table.

    Columns: `text`, and `image`, the content of one picture in base64 or as a data URI; each may be missing or null, not both. A row is answered
    with JSON: category -> probability, of the check that fits it (text, picture, or both together).
    """

    def __init__(self, models: GuardModels) -> None:
        self._models = models

    def predict(self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> list[str]:
        """One JSON object a row.

        Raises:
            DataError: naming the row, if a picture cannot be read or a row holds nothing.
        """
        return [json.dumps(self._row(row, f"row {number}")) for number, row in enumerate(model_input.to_dict("records"))]

    def _row(self, row: Mapping[Any, Any], name: str) -> dict[str, float]:
        from PIL import Image

        from anymal.errors import DataError
        from anymal.serving.pyfunc import decode_medium

        text = row.get("text") if isinstance(row.get("text"), str) else None
        pictures = []
        if isinstance(row.get("image"), str):
            try:
                with Image.open(io.BytesIO(decode_medium(str(row["image"]), name)), formats=("PNG", "JPEG", "WEBP", "GIF", "BMP")) as picture:
                    pictures.append(picture.convert("RGB"))
            except (OSError, ValueError, Image.DecompressionBombError) as error:
                raise DataError(f"{name}: column image is no picture ({type(error).__name__}); send a PNG, JPEG, WebP, GIF or BMP") from error
        if text is not None and pictures:
            found = self._models.pair.probabilities(pictures, [text])
        elif pictures:
            found = self._models.image.probabilities(pictures)
        elif text is not None:
            found = self._models.text.probabilities([text])
        else:
            raise DataError(f"{name}: has neither text nor image; give one of the two columns or both")
        return {code: round(float(value), 6) for code, value in zip(self._models.categories, found[0], strict=True)}


def _load_pyfunc(path: str) -> GuardPredictor:
    """Called by MLflow with the folder of the guard."""
    from anymal.safety.models import load_guard

    return GuardPredictor(load_guard(Path(path)))


def _rows(document: Mapping[str, Any]) -> Rows:
    """Texts, and pictures where it looks at them."""
    return Rows(("text", *(["image"] if "image" in document["checks"] else [])), {"text": "How do I bake bread?"}, {})


GUARD = Kind("AnyMAL's guard: what is harmful in texts, pictures and both together. Each version holds its classifiers and thresholds.",
             "anymal.serving.guard", read_guard, _rows)
