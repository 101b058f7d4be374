"""What Kubeflow's launcher expects of a container that ends well, and what its UI shows of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MOST_SHOWN = 150
"""Numbers of an output that become metadata. The next tasks get them all as one argument, of which Linux takes 128 KiB; and they are for people."""
FURTHER = "further_numbers"


def write_executor_output(executor_input: Mapping[str, Any], outputs: Mapping[str, Path]) -> None:
    """Tell Kubeflow's launcher which artifacts exist; numbers of JSON outputs become their metadata, which its UI shows as metrics."""
    declared = executor_input.get("outputs", {})
    artifacts = {}
    for name, entry in declared.get("artifacts", {}).items():
        first = entry["artifacts"][0]
        metadata = dict(first.get("metadata", {})) | shown(outputs.get(name))
        artifacts[name] = {"artifacts": [{"name": first.get("name", name), "uri": first["uri"], "metadata": metadata}]}
    target = Path(declared["outputFile"])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"artifacts": artifacts}, allow_nan=False))


def shown(path: Path | None) -> dict[str, float]:
    """The numbers of a JSON file by dotted name, at most `MOST_SHOWN`: of a figure its value, and where there are too many, those that lie highest.

    How many were left out is the entry `FURTHER`. {} for any other output; numbers that JSON cannot hold (NaN, infinity) are left out: the
    launcher cannot read them.
    """
    numbers = flatten(_values(_document(path)))
    depths = sorted(name.count(".") for name in numbers)
    if len(numbers) <= MOST_SHOWN:
        return numbers
    kept = {name: number for name, number in numbers.items() if name.count(".") < depths[MOST_SHOWN]}
    return kept | {FURTHER: float(len(numbers) - len(kept))}


def scalars(path: Path | None) -> dict[str, float]:
    """Flatten the finite numbers of a JSON file to dotted names; {} for any other output (JSON lines begin alike)."""
    return flatten(_document(path))


def _document(path: Path | None) -> object:
    """What a file with a JSON object holds; None for anything else."""
    if path is None or not path.is_file():
        return None
    with path.open("rb") as stream:
        if stream.read(1) != b"{":
            return None
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def _values(tree: object) -> object:
    """A tree whose figures with their intervals are their values."""
    if not isinstance(tree, dict):
        return tree
    return tree["value"] if tree.keys() == {"value", "low", "high", "n"} else {name: _values(child) for name, child in tree.items()}


def flatten(tree: object, prefix: str = "") -> dict[str, float]:
    """The finite numbers of nested dictionaries, by dotted name."""
    if isinstance(tree, dict):
        return {k: v for name, child in tree.items() for k, v in flatten(child, f"{prefix}.{name}" if prefix else str(name)).items()}
    if isinstance(tree, int | float) and not isinstance(tree, bool) and abs(tree) < float("inf"):
        return {prefix: float(tree)}
    return {}
