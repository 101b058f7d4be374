"""Register the guard as a candidate, with what was measured of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from anymal.data.manifest import fingerprint
from anymal.errors import DataError
from anymal.executor import flatten
from anymal.stage import Config, In, Out


class RegisterGuardConfig(Config):
    """Knobs of `register_guard`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")
    """Of the registered model."""
    alias: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_\-]*$")
    """Moved to the new version."""

    @field_validator("alias")
    @classmethod
    def _not_reserved(cls, alias: str) -> str:
        if re.fullmatch(r"latest|v\d+", alias, re.IGNORECASE) or alias == "champion":
            raise ValueError("MLflow keeps 'latest' and 'v1', 'v2', … for itself, and only `anymal promote` makes a champion; take another name, "
                             "such as 'candidate'")
        return alias

    @field_validator("name")
    @classmethod
    def _no_ledger(cls, name: str) -> str:
        if name.endswith("-decisions"):
            raise ValueError("names that end in -decisions are for what `anymal promote` records; take another one")
        return name


def register_guard(config: RegisterGuardConfig, *, guard: In, data: In, safety: In, integrity: In, registration: Out) -> None:
    """Register the guard as a candidate, with its card and the evidence that a promotion goes by.

    `data` is what it was trained on, `safety` what train_safety measured of its classifiers, `integrity` what evaluate_safety measured of it with
    the model behind it.
    """
    from anymal.registry import register_bundle
    from anymal.serving.guard import GUARD, guard_card, read_guard

    figures, asked = _read(safety), _read(integrity)
    inputs = {"guard": fingerprint(guard), "safety_data": fingerprint(data), "safety": fingerprint(safety), "integrity": fingerprint(integrity)}
    card = guard_card(name=config.name, alias=config.alias, document=read_guard(guard), safety=figures, integrity=asked, inputs=inputs,
                      seed=config.seed)
    values = {f"{prefix}.{name}": value for prefix, tree in (("safety", figures), ("integrity", asked)) for name, value in flatten(tree).items()
              if name.endswith(".value")}
    result = register_bundle(guard, name=config.name, alias=config.alias, metrics=values, kind=GUARD, card=card,
                             tags={f"input.{port}": digest for port, digest in inputs.items()},
                             evidence={"safety.json": safety, "integrity.json": integrity})
    document = {"name": result.name, "version": result.version, "alias": result.alias, "uri": result.uri, "bundle_sha256": result.bundle_sha256}
    registration.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: is not JSON ({error}); run the stage that writes it again") from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: must hold a JSON object, found {type(document).__name__}; run the stage that writes it again")
    return document
