"""The bundle as an MLflow model: `mlflow.pyfunc.load_model("models:/anymal@candidate").predict(rows)`.

MLflow imports this module by its name and calls `_load_pyfunc` with the bundle's folder, so nothing is pickled.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anymal.errors import DataError
from anymal.serving.answer import Content, Request, answer

if TYPE_CHECKING:
    import pandas as pd

    from anymal.model.anymal import AnyMAL

MAX_MEDIUM_BYTES = 64 * 2**20
"""Of one medium, and of the column `media` as a whole."""
BATCH_SIZE = 8
MAX_MEDIA = 32
"""In one row."""


class AnyMALPredictor:
    """Answers rows of a table.

    Columns, all optional: `question` (missing or null asks for a description); one per modality of the bundle, e.g. `image`: the content
    of one file in base64 or as a data URI; or `media`, for any number of files in any order: a JSON list of
    `{"modality": "image", "data": "…base64…"}`. A question may place the media itself: `What is in <image> that makes <audio>?`. Media of
    single columns come in the order of the bundle's modalities. Paths are not taken: whoever can send rows to a server must not read the
    server's files.
    """

    def __init__(self, model: AnyMAL, max_new_tokens: int) -> None:
        self._model, self._max_new_tokens = model, max_new_tokens

    def predict(self, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None) -> list[str]:
        """One answer per row; `params` may hold `max_new_tokens`.

        Raises:
            DataError: naming the row, if a medium cannot be read or the media do not match the question.
        """
        limit = int((params or {}).get("max_new_tokens") or self._max_new_tokens)
        requests = [_request(row, f"row {i}", list(self._model.metadata)) for i, row in enumerate(model_input.to_dict("records"))]
        return answer(self._model, requests, max_new_tokens=limit, batch_size=BATCH_SIZE)


def _load_pyfunc(path: str) -> AnyMALPredictor:
    """Called by MLflow with the folder of the bundle."""
    from anymal.model.bundle import read_bundle
    from anymal.model.loading import load_bundle

    folder = Path(path)
    return AnyMALPredictor(load_bundle(folder), read_bundle(folder)["inference"]["max_new_tokens"])


def _request(row: Mapping[Any, Any], name: str, modalities: Sequence[str]) -> Request:
    question, listed = row.get("question"), row.get("media")
    media = [(modality, _content(row[modality], f"{name}, column {modality}")) for modality in modalities if isinstance(row.get(modality), str)]
    if isinstance(listed, str) and listed.strip():
        if media:
            raise DataError(f"{name}: has both the column media and the column {media[0][0]}; use one of the two ways")
        media = _listed(listed, f"{name}, column media")
    return Request(question if isinstance(question, str) and question.strip() else None, media, name)


def _listed(text: str, name: str) -> list[tuple[str, Content]]:
    """The media of the column `media`."""
    if len(text) > _characters(MAX_MEDIUM_BYTES):
        raise DataError(f"{name}: more than {MAX_MEDIUM_BYTES // 2**20} MiB; send smaller files")
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f'{name}: is no JSON ({error}); send a list of {{"modality": …, "data": …}}') from error
    if not isinstance(items, list) or len(items) > MAX_MEDIA:
        found = f"{len(items)} items" if isinstance(items, list) else type(items).__name__
        raise DataError(f'{name}: holds {found}; send a list of at most {MAX_MEDIA} {{"modality": …, "data": …}}')
    media = []
    for number, item in enumerate(items):
        if not isinstance(item, dict) or set(item) != {"modality", "data"} or not all(isinstance(value, str) for value in item.values()):
            raise DataError(f"{name}, item {number}: must be an object with the texts 'modality' and 'data', and nothing else")
        media.append((item["modality"], _content(item["data"], f"{name}, item {number}")))
    return media


def _content(text: str, name: str) -> Content:
    return Content(name, decode_medium(text, name))


def _characters(size: int) -> int:
    """Characters of base64 for so many bytes."""
    return size * 4 // 3 + 4


def decode_medium(text: str, name: str) -> bytes:
    """The content of a data URI or of plain base64.

    Raises:
        DataError: if it is neither, or larger than `MAX_MEDIUM_BYTES`.
    """
    head, comma, tail = text.partition(",")
    body = tail if comma and head.startswith("data:") and head.endswith(";base64") else text
    if len(body) > _characters(MAX_MEDIUM_BYTES):
        raise DataError(f"{name}: more than {MAX_MEDIUM_BYTES // 2**20} MiB; send a smaller file")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError(f"{name}: {text[:40]!r}… is neither base64 nor a data URI with base64; send the file's content in one of these") from error
