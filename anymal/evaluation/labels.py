"""What figures and conditions are called where people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CLASS = "class_accuracy"
PART = "accuracy_"
SHARE = "0 to 1"
METRICS = {
    "nll": ("Loss", "nats per token, lower is better"),
    "cider_d": ("CIDEr-D", "0 to 10"),
    "bleu_1": ("BLEU-1", SHARE),
    "bleu_2": ("BLEU-2", SHARE),
    "bleu_3": ("BLEU-3", SHARE),
    "bleu_4": ("BLEU-4", SHARE),
    "rouge_l": ("ROUGE-L", SHARE),
    "meteor": ("METEOR", SHARE),
    "spice": ("SPICE", SHARE),
    "spider": ("SPIDEr", "mean of CIDEr-D and SPICE"),
    CLASS: ("Class accuracy", SHARE),
    "accuracy": ("Accuracy", SHARE),
    "accuracy_likelihood": ("Accuracy by likelihood", SHARE),
    "auroc": ("AUC", SHARE),
    "precision": ("Precision", SHARE),
    "recall": ("Recall", SHARE),
    "f1": ("F1", SHARE),
    "yes_ratio": ("Share of yes", "0 to 1, neither end is better"),
}
"""Figure -> its name and unit, in the order in which they are shown."""
NEUTRAL = frozenset({"yes_ratio"})
"""Figures of which neither more nor less is better."""
CONDITIONS = {
    "right": ("Right", "the sample's own input"),
    "shuffled": ("Shuffled", "another sample's input"),
    "similar": ("Similar", "the input most like it among samples with another answer or other references"),
    "blank": ("Blank", "an empty input: a grey picture, silence, rest"),
    "majority": ("Majority", "no model: always the most frequent true answer"),
    "baseline": ("Baseline", "another model with the right input: the one before fine-tuning"),
}
SECTIONS = {"imu": "Motion (IMU)", "mixed": "Several media in one question"}
"""Of modalities whose name alone would not do."""
TASKS = {"caption": "Captions", "vqa": "Questions", "qa": "Questions"}


def is_figure(entry: object) -> bool:
    """Whether an entry of the results is a measured figure, `{value, low, high, n}`."""
    return isinstance(entry, Mapping) and {"value", "low", "high", "n"} <= entry.keys()


def metrics_of(branch: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Figures of a branch of the results -> their names and units, in the order in which they are shown; those without a name go last."""
    found = {name: METRICS[name] for name in METRICS if is_figure(branch.get(name))}
    others = sorted(name for name in branch if is_figure(branch[name]) and name not in found)
    return found | {name: _unnamed(name) for name in others}


def _unnamed(name: str) -> tuple[str, str]:
    return (f"Accuracy, {name.removeprefix(PART)} part", SHARE) if name.startswith(PART) else (name.replace("_", " ").capitalize(), "")


def condition_title(name: str) -> str:
    """Of the known ones their name, and `shuffled_image` as "Shuffled image"."""
    return CONDITIONS[name][0] if name in CONDITIONS else name.replace("_", " ").capitalize()


def in_order(conditions: Mapping[str, Any]) -> list[str]:
    """The known conditions first, as they are listed here, then the others by name."""
    return [*(name for name in CONDITIONS if name in conditions), *sorted(set(conditions) - set(CONDITIONS))]
