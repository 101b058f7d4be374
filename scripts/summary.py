"""The closing words of `make demo`: headline figures, where the reports are, how to open MLflow and how to ask the model."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path("results/evaluate.json")
REGISTRATION = Path("reports/registration.json")
BUNDLE = Path("models/bundle")
REPORTS = {
    "what was kept, what was dropped and why": Path("reports/curate.html"),
    "loss curves and grounding controls": Path("reports/align"),
    "pictures, references and predictions": Path("reports/evaluate.html"),
}


def is_figure(node: object) -> bool:
    """Whether a node of results/evaluate.json is a measured figure: `{value, low, high, n}`."""
    return isinstance(node, Mapping) and {"value", "low", "high", "n"} <= node.keys()


def rows(results: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """One row per figure: its name, the value with its 95% interval, and the same with shuffled and with blank inputs."""
    for modality, tasks in results.items():
        for task, figures in tasks.items():
            controls = figures.get("controls", {})
            for name, figure in figures.items():
                if is_figure(figure):
                    others = (controls.get(kind, {}).get(name) for kind in ("shuffled", "blank"))
                    yield f"{modality}.{task}.{name}", _interval(figure), *(_interval(o) if is_figure(o) else "–" for o in others)


def _interval(figure: Mapping[str, Any]) -> str:
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def table(results: Mapping[str, Any]) -> str:
    """The figures as aligned text columns."""
    lines = [("figure (95% interval)", "right input", "shuffled input", "blank input"), *rows(results)]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def main() -> None:
    """Print the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--started", type=float, metavar="SECONDS", help="when the run began, in seconds since 1970")
    started = parser.parse_args().started
    took = "" if started is None else f" in {(time.time() - started) / 60:.1f} minutes"
    print(f"\nDone{took}: an image-language model, measured on pictures it never saw.\n")
    print(table(json.loads(RESULTS.read_text())))
    print("\nReports")
    for label, path in REPORTS.items():
        print(f"  {path!s:<24}{label}")
    registration = json.loads(REGISTRATION.read_text())
    model = f"models:/{registration['name']}@{registration['alias']}"
    print(f"\nModel   {BUNDLE}, registered as version {registration['version']} of '{registration['name']}'")
    print("MLflow  make ui, then http://127.0.0.1:5000")
    print(f'Ask     source .venv/bin/activate && anymal ask {model} --image PICTURE.png\n')


if __name__ == "__main__":
    main()
