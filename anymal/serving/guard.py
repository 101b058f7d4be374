"""The guard in the model registry: what a version of it holds, and its card. MLflow loads it with `anymal.serving.guard_pyfunc`."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from anymal import __version__
from anymal.data.manifest import verify_manifest
from anymal.errors import BundleError
from anymal.registry import Kind, Rows
from anymal.serving.safety_text import ASKED, CHECKS, figure, guard_limits

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


def _rows(document: Mapping[str, Any]) -> Rows:
    """Texts, and pictures where it looks at them."""
    return Rows(("text", *(["image"] if "image" in document["checks"] else [])), {"text": "How do I bake bread?"})


GUARD = Kind("AnyMAL's guard: what is harmful in texts, pictures and both together. Each version holds its classifiers and thresholds.",
             "anymal.serving.guard_pyfunc", read_guard, _rows)
