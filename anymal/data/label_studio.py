"""What Label Studio stores of an annotation and how it names the files that it serves: shared by all that read its exports or write its tasks."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qs, quote, unquote, urlsplit

LOCAL_FILES = "/data/local-files/"


def skipped(annotation: Mapping[str, object]) -> bool:
    """Whether the annotator passed over the task."""
    return annotation.get("was_cancelled") is True


def form_fields(result: object) -> dict[str, list[object]] | None:
    """Control of the form -> the texts or choices (by alias where they have one) that were entered; None if it is no result of Label Studio."""
    if not isinstance(result, list):
        return None
    fields: dict[str, list[object]] = {}
    for region in result:
        value = region.get("value") if isinstance(region, dict) else None
        if not isinstance(value, dict):
            return None
        for values in (value.get("text"), value.get("choices")):
            if values is not None:
                fields.setdefault(str(region.get("from_name")), []).extend(values if isinstance(values, list) else [values])
    return fields


def local_address(path: str) -> str:
    """How a task names a file below the folder that the server serves (its setting LOCAL_FILES_DOCUMENT_ROOT)."""
    return f"{LOCAL_FILES}?d={quote(path)}"


def media_path(address: str) -> str:
    """The path of a medium below the folder of media, for what Label Studio serves itself (local files, uploads); others stay as they are."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return address
    if parts.path.endswith(LOCAL_FILES):
        return parse_qs(parts.query).get("d", [address])[0]
    _, served, rest = parts.path.partition("/data/upload/")
    return f"upload/{unquote(rest)}" if served else address
