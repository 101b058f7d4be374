"""Whether figures show that a model uses its inputs: the one rule, which the report shows and the gates of promotion go by.

A model that answers as well when its input is another sample's, empty, or one that only looks alike, ignores it. So the gap of a task's
figures between the right input and each of these controls must lie wholly on the better side of zero, by its paired 95% interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CONTROLS = ("shuffled", "blank", "similar")
"""Another sample's input; an empty one; that of the sample most alike whose answer is another."""
BENCHMARKS = "benchmarks"
MAIN = "main"
"""Which figure of a benchmark is judged."""
LOWER = {"nll"}
"""Figures of which less is better."""
PART = "accuracy_"
"""Of a task with several media in one prompt: the accuracy of what is asked about one of them."""
NAMES = {"nll": "the loss", "cider_d": "CIDEr-D", "class_accuracy": "class accuracy"}


@dataclass(frozen=True)
class Verdict:
    """What the gaps of one task say."""

    branch: str
    """Where its figures are among the results: `image.vqa`, `benchmarks.vqav2`."""
    clear: bool
    """Whether every gap lies on the better side of zero."""
    sentence: str
    """Each gap with its interval, and what is missing or not clear."""


def clear(figure: str, gap: Mapping[str, float]) -> bool:
    """Whether a gap (right minus control) lies wholly on the better side of zero."""
    return gap["high"] < 0 if figure in LOWER else gap["low"] > 0


def verdicts(results: Mapping[str, Any], controls: Sequence[str] | None = None) -> list[Verdict]:
    """What each task and each benchmark that ran shows, in the order of their names.

    Args:
        results: what `results/evaluate.json` holds.
        controls: those of `CONTROLS` that every task must have; each task's own if not given.

    Raises:
        KeyError, TypeError, AttributeError: if the results are no tree of figures.
    """
    found = []
    for modality, tasks in sorted(results.items()):
        for task, body in sorted(tasks.items()):
            if modality == BENCHMARKS and "skipped" in body:
                continue
            figures = [body.get(MAIN, "its main figure")] if modality == BENCHMARKS else tested(task, body)
            found.append(_verdict(f"{modality}.{task}", body, figures, controls))
    return found


def tested(task: str, body: Mapping[str, Any]) -> list[str]:
    """The figures of a task that must fall without its input: of captions the loss, and class accuracy where they are labelled, else CIDEr-D; of
    questions the accuracy, part by part where a prompt holds several media."""
    if task == "caption":
        return ["nll", "class_accuracy" if "class_accuracy" in body else "cider_d"]
    return sorted(name for name in body if name.startswith(PART)) or ["accuracy"]


def _verdict(branch: str, body: Mapping[str, Any], figures: Sequence[str], controls: Sequence[str] | None) -> Verdict:
    asked = [name for name in CONTROLS if f"gap_{name}" in body] if controls is None else controls
    said, unclear, missing = [], [], [] if asked else [f"{name} input" for name in CONTROLS]
    for figure in figures:
        if figure not in body:
            missing.append(_name(figure))
            continue
        parts = []
        for control in asked:
            # Where a prompt holds several media, replacing one of them says more of its part than replacing all.
            alone = f"gap_{control}_{figure.removeprefix(PART)}"
            gap = body.get(alone, body.get(f"gap_{control}", {})).get(figure)
            if gap is None:
                missing.append(f"{_name(figure)} against {control} input")
                continue
            parts.append(f"{_interval(figure, gap)} against {control} input")
            if not clear(figure, gap):
                unclear.append(f"{_name(figure)} against {control} input")
        said.append(f"{_name(figure)} is {_value(figure, body[figure]['value'])}" + (f", a gap of {', '.join(parts)}" if parts else ""))
    said += [f"not on the better side of zero: {', '.join(unclear)}"] if unclear else []
    said += [f"not measured: {', '.join(missing)}"] if missing else []
    return Verdict(branch, not missing and not unclear, f"{branch}: {'; '.join(said)}.")


def _name(figure: str) -> str:
    if figure.startswith(PART):
        return f"accuracy of the {figure.removeprefix(PART)} part"
    return NAMES.get(figure, figure.replace("_", " "))


def _share(figure: str) -> bool:
    return "accuracy" in figure


def _value(figure: str, value: float) -> str:
    return f"{value:.1%}" if _share(figure) else f"{value:.3f}" + (" nats per token" if figure == "nll" else "")


def _interval(figure: str, gap: Mapping[str, float]) -> str:
    if _share(figure):
        return f"{100 * gap['value']:+.1f} points [{100 * gap['low']:.1f}, {100 * gap['high']:.1f}]"
    return f"{gap['value']:+.3f} [{gap['low']:.3f}, {gap['high']:.3f}]"
