"""The trained guard on held-out prompts in every disguise, where `dvc repro` left one."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from anymal.safety.disguises import DISGUISES
from anymal.safety.guard import Guard
from anymal.safety.streaming import guarded_stream
from anymal.safety.views import views

ROOT = Path(__file__).parent.parent.parent
GUARD, SAFETY = ROOT / "models" / "guard", ROOT / "data" / "safety"
PROMPTS = 40
LOSS = 0.05
"""Greatest loss of recall that a disguise may cause once it is undone."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not GUARD.is_dir() or not SAFETY.is_dir(), reason="needs models/guard and data/safety: dvc repro train_safety"),
]


def test_no_disguise_costs_much_recall() -> None:
    from anymal.safety.models import load_guard
    from anymal.safety.texts import read_texts

    models = load_guard(GUARD)
    least = np.array([models.thresholds["request"].get(category, np.inf) for category in models.categories])
    rows = [row.text for row in read_texts(SAFETY / "texts" / "test.jsonl") if row.kind == "request" and row.labels]
    random.Random(0).shuffle(rows)
    prompts = rows[:PROMPTS]

    def recall(shown: list[tuple[str, ...]]) -> float:
        every = [text for texts in shown for text in texts]
        hit = dict(zip(every, (models.text.probabilities(every) >= least).any(axis=1), strict=True))
        return float(np.mean([any(hit[text] for text in texts) for texts in shown]))

    untouched = recall([(text,) for text in prompts])
    losses = {}
    for name, trick in DISGUISES.items():
        asked = prompts if "padding" not in name else prompts[:10]
        base = untouched if len(asked) == len(prompts) else recall([(text,) for text in asked])
        losses[name] = base - recall([views(trick(text, random.Random(f"{name}:{place}"))) for place, text in enumerate(asked)])
    assert untouched > 0.8
    assert {name: loss for name, loss in losses.items() if loss > LOSS + 1e-9} == {}


def test_harmless_answers_are_streamed_whole() -> None:
    from anymal.safety.texts import read_texts

    guard = Guard.load(GUARD, reader=None)
    answers = [row.text for row in read_texts(SAFETY / "texts" / "test.jsonl") if row.kind == "answer" and not row.labels][:PROMPTS]
    whole = sum("".join(guarded_stream(guard, iter([answer]))) == answer for answer in answers)
    assert len(answers) > 10
    assert whole >= 0.85 * len(answers)
