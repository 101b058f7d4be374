"""The bundle as an MLflow model: `mlflow.pyfunc.load_model("models:/anymal@candidate").predict(rows)`.

MLflow imports this module by its name and calls `_load_pyfunc` with the bundle's folder, so nothing is pickled.
"""

from __future__ import annotations

import base64
import binascii
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anymal.errors import DataError
from anymal.serving.answer import Request, answer

if TYPE_CHECKING:
    import pandas as pd

    from anymal.model.anymal import AnyMAL

MAX_MEDIUM_BYTES = 64 * 2**20
BATCH_SIZE = 8


class AnyMALPredictor:
    """Answers rows of a table.

    Columns: `question` (missing or null asks for a caption), and one per modality of the bundle, e.g. `image`: the file's content
    in base64 or as a data URI. Paths are not taken: whoever can send rows to a server must not read the server's files.
    """

    def __init__(self, model: AnyMAL, max_new_tokens: int) -> None:
        self._model, self._max_new_tokens = model, max_new_tokens

    def predict(self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> list[str]:
        """One answer per row; `params` may hold `max_new_tokens`.

        Raises:
            DataError: naming the row, if a medium cannot be read.
        """
        limit = int((params or {}).get("max_new_tokens") or self._max_new_tokens)
        with tempfile.TemporaryDirectory(prefix="anymal-predict-") as folder:
            requests = [_request(row, i, Path(folder), list(self._model.metadata)) for i, row in enumerate(model_input.to_dict("records"))]
            return answer(self._model, requests, max_new_tokens=limit, batch_size=BATCH_SIZE)


def _load_pyfunc(path: str) -> AnyMALPredictor:
    """Called by MLflow with the folder of the bundle."""
    from anymal.model.bundle import load_bundle, read_bundle

    folder = Path(path)
    return AnyMALPredictor(load_bundle(folder), read_bundle(folder)["inference"]["max_new_tokens"])


def _request(row: Mapping[Any, Any], number: int, folder: Path, modalities: list[str]) -> Request:
    question = row.get("question")
    media: dict[str, list[Path]] = {}
    for modality in modalities:
        value = row.get(modality)
        if isinstance(value, str):
            path = folder / f"row {number} {modality}"
            path.write_bytes(decode_medium(value, f"row {number}, column {modality}"))
            media[modality] = [path]
    return Request(question if isinstance(question, str) and question.strip() else None, media)


def decode_medium(text: str, name: str) -> bytes:
    """The content of a data URI or of plain base64.

    Raises:
        DataError: if it is neither, or larger than `MAX_MEDIUM_BYTES`.
    """
    head, comma, tail = text.partition(",")
    body = tail if comma and head.startswith("data:") and head.endswith(";base64") else text
    if len(body) > MAX_MEDIUM_BYTES * 4 // 3 + 4:
        raise DataError(f"{name}: more than {MAX_MEDIUM_BYTES // 2**20} MiB; send a smaller file")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{name}: {text[:40]!r}… is neither base64 nor a data URI with base64; send the file's content in one of these") from error
