"""The closing words of `make demo`: headline figures, where the reports are, how to open MLflow and how to ask the model."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path("results/evaluate.json")
LEAKAGE = Path("results/leakage.json")
REGISTRATION = Path("reports/registration.json")
DECISION = Path("reports/promotion.json")
INTEGRITY = Path("results/safety_integrity.json")
GUARD = Path("reports/promotion_guard.json")
BUNDLE = Path("models/bundle")
REPORTS = {
    "the paper's tables, figures with controls, examples, failures first": "reports/evaluate.html",
    "its figures as pictures": "reports/figures/",
    "what was kept, what was dropped and why": "reports/curate/",
    "harmful and harmless prompts, with and without the guard; disguises": "reports/safety.html",
    "loss curves and grounding controls": "reports/align/ and reports/finetune/",
}
HEADLINE = ("nll", "cider_d", "class_accuracy", "accuracy")
"""Figures worth a line; the report has all."""
CONTROLS = ("shuffled", "similar", "blank")
FILES = {"image": "PICTURE.png", "audio": "SOUND.wav", "video": "CLIP.mp4", "imu": "MOTION.csv"}
MIXED = "mixed"
BENCHMARKS = "benchmarks"


def is_figure(node: object) -> bool:
    """Whether a node of results/evaluate.json is a measured figure: `{value, low, high, n}`."""
    return isinstance(node, Mapping) and {"value", "low", "high", "n"} <= node.keys()


def rows(results: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """One row per headline figure: its name, the value with its 95% interval, and the same with each control's input.

    A figure of one part of a mixed question has, as its shuffled and similar input, that part's medium alone replaced.
    """
    for modality, tasks in sorted(results.items()):
        for task, figures in sorted(tasks.items()):
            controls = figures.get("controls", {})
            parts = sorted(name for name in figures if name.startswith("accuracy_") and modality == MIXED)
            for name in (*HEADLINE, *parts):
                if is_figure(figures.get(name)):
                    part = name.removeprefix("accuracy_") if name in parts else None
                    others = [controls.get(f"{kind}_{part}", controls.get(kind, {})).get(name) for kind in CONTROLS]
                    yield f"{modality}.{task}.{name}", _interval(figures[name]), *(f"{other['value']:.3f}" if other else "–" for other in others)


def _interval(figure: Mapping[str, Any]) -> str:
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def table(results: Mapping[str, Any]) -> str:
    """The figures as aligned text columns."""
    lines = [("figure (95% interval)", "right input", *CONTROLS), *rows(results)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def benchmarks(results: Mapping[str, Any]) -> str | None:
    """How many benchmarks ran, on what, and how many did not; None where none was declared."""
    measured: Mapping[str, Any] = results.get(BENCHMARKS, {})
    ran = [body for body in measured.values() if "skipped" not in body]
    real = sum(bool(body.get("data", {}).get("real")) for body in ran)
    if not measured:
        return None
    return f"{real} on their own data, {len(ran) - real} on sample data in their file layout, {len(measured) - len(ran)} skipped for lack of data"


def promotion(model: str, version: str) -> str:
    """What `anymal promote` decided about a version, with the first reason if it refused; how to ask it if it has not been asked."""
    decision = json.loads(DECISION.read_text(encoding="utf-8")) if DECISION.is_file() else None
    if decision is None or str(decision["candidate"]["version"]) != version:
        return f"Promote anymal promote {model} --config params.yaml"
    why = "it answers as models:/anymal@champion" if decision["decision"] == "promoted" else decision["reasons"][0]
    return f"        version {version} is {decision['decision']}: {why}"


def safety(integrity: Mapping[str, Any]) -> str:
    """What was refused of all harmful and of all harmless prompts, without and with the guard."""
    shares = {side: [f"{integrity['all'][side][who]['refused']['value']:.0%}" for who in ("model", "guarded")] for side in ("harmful", "harmless")}
    harmful, harmless = (" -> ".join(found) for found in shares.values())
    return f"without -> with the guard, refused of harmful prompts {harmful}, of harmless ones {harmless}"


def questions(results: Mapping[str, Any]) -> Iterator[str]:
    """Arguments of `anymal ask` to try: one for each modality, and one for the parts of the mixed questions."""
    for modality in sorted(set(results) - {MIXED, BENCHMARKS}):
        yield f"--{modality} {FILES.get(modality, 'FILE')}"
    for figures in results.get(MIXED, {}).values():
        parts = sorted(name.removeprefix("accuracy_") for name in figures if name.startswith("accuracy_"))
        options = " ".join(f"--{part} {FILES.get(part, 'FILE')}" for part in parts)
        yield f'{options} "QUESTION"'


def main() -> None:
    """Print the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--started", type=float, metavar="SECONDS", help="when the run began, in seconds since 1970")
    started = parser.parse_args().started
    took = "" if started is None else f" in {(time.time() - started) / 60:.1f} minutes"
    results = json.loads(RESULTS.read_text())
    modalities = sorted(set(results) - {MIXED, BENCHMARKS})
    print(f"\nDone{took}: a language model that reads {', '.join(modalities)}, measured on samples it never saw.\n")
    print(table({name: tasks for name, tasks in results.items() if name != BENCHMARKS}))
    if (ran := benchmarks(results)) is not None:
        print(f"\nBenchmarks  {ran}")
    if LEAKAGE.is_file() and json.loads(LEAKAGE.read_text())["passed"]:
        print(f"Leakage     none of test data into training data above the thresholds ({LEAKAGE})")
    if INTEGRITY.is_file():
        print(f"Safety      {safety(json.loads(INTEGRITY.read_text()))} ({INTEGRITY})")
    print("\nReports")
    width = max(map(len, REPORTS.values()))
    for label, path in REPORTS.items():
        print(f"  {path.ljust(width)}  {label}")
    registration = json.loads(REGISTRATION.read_text())
    model = f"models:/{registration['name']}@{registration['alias']}"
    print(f"\nModel   {BUNDLE}, registered as version {registration['version']} of '{registration['name']}'")
    print(promotion(model, str(registration["version"])))
    if GUARD.is_file():
        guard = json.loads(GUARD.read_text(encoding="utf-8"))
        print(f"Guard   models:/{guard['model']}, version {guard['candidate']['version']} is {guard['decision']}: {guard['reasons'][-1]}")
    print("MLflow  make ui, then http://127.0.0.1:5000")
    print("Ask     source .venv/bin/activate")
    for arguments in questions(results):
        print(f"        anymal ask {model} {arguments}")
    print()


if __name__ == "__main__":
    main()
