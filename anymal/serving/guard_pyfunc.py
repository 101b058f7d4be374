"""The guard as an MLflow model: `mlflow.pyfunc.load_model("models:/anymal-guard@candidate").predict(rows)`.

MLflow imports this module by its name and calls `_load_pyfunc` with the guard's folder, so nothing is pickled.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anymal.errors import DataError
from anymal.serving.base64_media import decode_medium

if TYPE_CHECKING:
    import pandas as pd

    from anymal.safety.models import GuardModels


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
