"""The stage train_safety on tiny random networks: what it writes, that it goes on to the same bytes, and what loading refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anymal.data.manifest import write_manifest
from anymal.errors import DataError
from anymal.safety import fitting
from anymal.safety.figures import recall_at
from anymal.safety.models import USES, load_guard
from anymal.safety.taxonomy import CODES
from anymal.stages.train_safety import TrainSafetyConfig, train_safety
from tests.safety.tiny import make_text_encoder
from tests.safety.tiny_pictures import tiny_clip, tiny_regnet, write_safety

HEAD = {"hidden": 8, "dropout": 0.1, "epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "weight_decay": 0.01, "patience": 2}
CONFIG: dict[str, Any] = {
    "seed": 1, "floor": 0.01, "least": 3, "words": "words", "resamples": 100, "rates": dict.fromkeys(USES, 0.1),
    "text": {"encoder": "roberta", "layers": 1, "max_tokens": 24, "epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "head_learning_rate": 1e-2,
             "warmup": 0.1, "weight_decay": 0.01, "dropout": 0.1, "patience": 1},
    "image": {**HEAD, "backbone": "regnet", "kind": "hf", "whole": True, "views": 1},
    "pair": {**HEAD, "backbone": "clip", "kind": "hf", "encoder": "roberta", "max_tokens": 24}}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    safety = write_safety(root / "safety", pictures=6)
    (safety / "texts").mkdir()
    for split in ("train", "val", "test", "unseen"):
        rows = []
        for number in range(24):
            label = ["cyber", "violence", None][number % 3]
            kind = "answer" if number >= 18 else "hard_negative" if label is None and number % 2 else "request"
            said = {"cyber": "please hack it", "violence": "please kill it", None: "please bake it"}[label]
            rows.append({"id": f"{split}-{number}", "text": f"{said} {number}", "labels": [label] if label else [], "source": "made-up",
                         "group": f"{split}-{number}", "kind": kind})
        (safety / f"texts/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_manifest(safety)
    words = root / "assets/words/words"
    words.mkdir(parents=True)
    (words / "profanity_en.csv").write_text("text,category_1,severity_rating\ndarn,other / general insult,1.0\n")
    (words / "ldnoobw-en.txt").write_text("darn\n")
    tiny_regnet(root / "assets/regnet")
    tiny_clip(root / "assets/clip")
    make_text_encoder(root / "assets/roberta")
    return {"safety": safety, "assets": root / "assets"}


def run(inputs: dict[str, Path], folder: Path, **changed: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    train_safety(TrainSafetyConfig(**{**CONFIG, **changed}), **inputs, guard=folder / "guard", plots=folder / "plots", metrics=folder / "safety.json")
    return json.loads((folder / "safety.json").read_text())


@pytest.mark.slow
def test_a_guard_is_trained_measured_and_loaded(inputs, tmp_path, monkeypatch):
    metrics = run(inputs, tmp_path / "one")
    for branch in ("text", "image", "image_text"):
        for figure in ("auroc", "recall_at_fpr", "recall", "false_positive_rate"):
            assert set(metrics[branch][figure]) == {"value", "low", "high", "n"}, (branch, figure)
    assert set(metrics["image_text"]["controls"]) == {"image_alone", "text_alone"}
    assert {"auroc", "recall_at_fpr"} <= set(metrics["text"]["unseen_sources"])
    assert "trained_sources" in metrics["text"]["baseline"]
    assert sorted(path.name for path in (tmp_path / "one/plots").iterdir()) == ["image.png", "pair.png", "text.png"]
    models = load_guard(tmp_path / "one/guard")
    assert set(models.thresholds) == set(USES)
    image = Image.fromarray(np.full((40, 30, 3), 90, dtype=np.uint8))
    assert models.text.probabilities(["please hack it"]).shape == models.image.probabilities([image]).shape == (1, len(CODES))
    assert models.pair.probabilities([image, image], ["give it", "lock it"]).shape == (2, len(CODES))
    assert "What it does not cover" in (tmp_path / "one/guard/README.md").read_text()

    # Killed after the first epoch of the pairs' training, and run again.
    written = fitting.write_state

    def dies(folder: Path, state: fitting.State) -> None:
        written(folder, state)
        if folder.parent.name == "pair":
            raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "write_state", dies)
    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path / "two")
    assert not (tmp_path / "two/guard/guard.json").exists()
    monkeypatch.setattr(fitting, "write_state", written)
    assert run(inputs, tmp_path / "two") == metrics
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*") if path.is_file())
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file

    head = tmp_path / "two/guard/image/head.safetensors"
    head.write_bytes(head.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"changed image/head\.safetensors"):
        load_guard(tmp_path / "two/guard")
    with pytest.raises(DataError, match="no such guard"):
        load_guard(tmp_path / "none")


def test_data_that_was_changed_is_refused(inputs, tmp_path):
    path = inputs["safety"] / "texts/test.jsonl"
    kept = path.read_text()
    path.write_text(kept + "\n")
    try:
        with pytest.raises(DataError, match=r"changed texts/test\.jsonl"):
            run(inputs, tmp_path / "run")
    finally:
        path.write_text(kept)


def test_recall_at_a_rate_counts_what_passes_above_it():
    labels = [True] * 4 + [False] * 10
    scores = [9.0, 8.0, 3.0, 1.0, 8.5, 7.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    units = [str(number) for number in range(14)]
    for rate, expected in ((0.0, 0.25), (0.1, 0.5), (0.2, 0.75), (0.5, 1.0)):
        assert recall_at(labels, scores, units, rate).close(np.ones(14, dtype=int)) == pytest.approx(expected)
