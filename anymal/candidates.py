"""What the stages that register a candidate share: its name and alias, the figures it comes with, and the note of where it went."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field

from anymal.errors import DataError

if TYPE_CHECKING:
    from anymal.registry import Registration


def _not_reserved(alias: str) -> str:
    if re.fullmatch(r"latest|v\d+", alias, re.IGNORECASE):
        raise ValueError("MLflow keeps 'latest' and 'v1', 'v2', … for itself; take another name, such as 'candidate'")
    if alias == "champion":
        raise ValueError("only `anymal promote` makes a champion; take another name, such as 'candidate'")
    return alias


def _no_ledger(name: str) -> str:
    if name.endswith("-decisions"):
        raise ValueError("names that end in -decisions are for what `anymal promote` records; take another one")
    return name


ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$", description="of the registered model"), AfterValidator(_no_ledger)]
CandidateAlias = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_\-]*$", description="moved to the new version"), AfterValidator(_not_reserved)]


def read_measured(path: Path) -> dict[str, Any]:
    """What another stage measured.

    Raises:
        DataError: if it is no JSON object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error}); run the stage that writes it again") from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: must hold a JSON object, found {type(document).__name__}; run the stage that writes it again")
    return document


def write_registration(path: Path, result: Registration) -> None:
    """Note which version of which model it is, for `anymal promote --registration`."""
    document = {"name": result.name, "version": result.version, "alias": result.alias, "uri": result.uri, "bundle_sha256": result.bundle_sha256}
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
