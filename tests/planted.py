"""Evidence of models whose answers are planted: samples of which a given share is right, and the figures that follow from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from anymal.evaluation.bootstrap import figures, mean_of

SAMPLES = 400
RULES: dict[str, Any] = {
    "seed": 0, "resamples": 500, "modalities": ["image"], "grounding": ["shuffled", "blank"],
    "floors": [{"figure": "evaluation.image.vqa.accuracy", "part": "low", "limit": 0.4}],
    "ceilings": [{"figure": "evaluation.image.vqa.rates.right.max_length", "part": "value", "limit": 0.1}],
    "regressions": [{"figure": "evaluation.image.vqa.accuracy", "better": "higher", "margin": 0.02}],
    "common": 0.9, "revision": "any"}


def answers(share: float, *, salt: int = 0) -> np.ndarray:
    """Scores of 0 and 1, shape (samples,): of two shares with the same salt the better model is right wherever the worse one is."""
    return (np.random.default_rng(salt).permutation(SAMPLES) < share * SAMPLES).astype(float)


def evaluation(right: np.ndarray, *, blind: bool = False) -> dict[str, Any]:
    """The content of evaluate.json.

    Args:
        blind: the model answers as well whatever its input is.
    """
    controls = {name: right[::-1] if blind else answers(0.2, salt=salt) for salt, name in enumerate(("shuffled", "blank", "similar"), 5)}
    measures = {"right": mean_of(right)} | {name: mean_of(scores) for name, scores in controls.items()}
    found = figures(measures, {f"gap_{name}": ("right", name) for name in controls}, n=SAMPLES, resamples=500, seed=0)
    return {"image": {"vqa": {
        "accuracy": found["right"], "controls": {name: {"accuracy": found[name]} for name in controls},
        **{f"gap_{name}": {"accuracy": found[f"gap_{name}"]} for name in controls}, "groups": {"image": SAMPLES // 2},
        "rates": {"right": {"eos": 0.99, "max_length": 0.01, "empty": 0.0, "prefix": 0.25, "prefix_words": "it is a"}}}}}


def rows(right: np.ndarray) -> list[dict[str, Any]]:
    """The lines of samples.jsonl: two questions about each picture."""
    return [{"branch": "image.vqa", "id": f"q{number:04d}", "group": f"g{number // 2:03d}", "scores": {"accuracy": float(score)}}
            for number, score in enumerate(right)]


def write(folder: Path, right: np.ndarray, *, blind: bool = False, safety: Mapping[str, Any] | None = None) -> dict[str, Path]:
    """The files of a model's evidence by name."""
    folder.mkdir(parents=True)
    texts = {"evaluation.json": json.dumps(evaluation(right, blind=blind)), "samples.jsonl": "".join(f"{json.dumps(row)}\n" for row in rows(right)),
             "leakage.json": json.dumps({"passed": True, "pairs": 0})}
    if safety is not None:
        texts["safety.json"] = json.dumps(safety)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return {name: folder / name for name in texts}
