"""Training of the text classifier: it learns, goes on after a kill with the same bytes, and its windows see the end of a long text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anymal.data.manifest import fingerprint
from anymal.errors import ConfigError, DataError
from anymal.safety.taxonomy import CODES
from anymal.safety.text_classifier import HEAD, SETTINGS, TextClassifier, load_encoder
from anymal.safety.text_training import _schedule, _stopped, train_text, truth_of
from tests.safety.tiny import make_text_encoder, make_texts

TRAIN, VAL = make_texts(72), make_texts(24, start=72)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_text_encoder(tmp_path_factory.mktemp("encoder"))


def train(encoder: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    knobs: dict[str, Any] = {
        "encoder": encoder, "train": TRAIN, "val": VAL, "output": folder / "text", "work": folder / "work", "epochs": 8, "batch_size": 12,
        "learning_rate": 5e-3, "head_learning_rate": 1e-1, "warmup": 0.1, "weight_decay": 0.01, "layers": 2, "max_tokens": 16, "patience": 3,
        "dropout": 0.1, "seed": 0,
    }
    return train_text(**knobs | changes)


@pytest.fixture(scope="module")
def trained(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("trained")
    return folder, train(encoder, folder)


def test_it_learns_which_word_is_harmful(trained: tuple[Path, dict[str, Any]]):
    folder, report = trained
    assert min(epoch["val"] for epoch in report["history"]) < 0.9 * report["history"][0]["val"]
    classifier = TextClassifier.load(folder / "text")
    fresh = make_texts(30, start=200)
    probabilities, truth = classifier.probabilities([record.text for record in fresh]), truth_of(fresh)
    assert probabilities.shape == (30, len(CODES))
    assert ((probabilities > 0) & (probabilities < 1)).all()
    assert probabilities[truth.any(1)].max(1).min() > probabilities[~truth.any(1)].max(1).max()
    assert (probabilities[truth.any(1)].argmax(1) == truth[truth.any(1)].argmax(1)).all()


def test_the_lower_layers_and_embeddings_stay(encoder: Path, trained: tuple[Path, dict[str, Any]]):
    before = load_encoder(encoder)[1].state_dict()
    after = load_encoder(trained[0] / "text")[1].state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved
    assert all(".layer.1." in f".{name}" or ".layer.2." in f".{name}" for name in moved)
    assert trained[1]["trained"] < trained[1]["weights"]


def test_after_an_interruption_it_ends_with_the_same_bytes(encoder: Path, trained: tuple[Path, dict[str, Any]], tmp_path: Path):
    for _ in range(2):
        train(encoder, tmp_path, stop_after=1)
        assert not (tmp_path / "text").exists()
    report = train(encoder, tmp_path)
    assert report == trained[1]
    assert fingerprint(tmp_path / "text") == fingerprint(trained[0] / "text")


def test_another_seed_gives_other_weights(encoder: Path, trained: tuple[Path, dict[str, Any]], tmp_path: Path):
    train(encoder, tmp_path, seed=1, epochs=1)
    assert fingerprint(tmp_path / "text" / HEAD) != fingerprint(trained[0] / "text" / HEAD)


def test_all_of_it_or_the_head_alone(encoder: Path, tmp_path: Path):
    everything = train(encoder, tmp_path / "all", layers=None, epochs=1)
    head = train(encoder, tmp_path / "head", layers=0, epochs=1)
    assert everything["trained"] == everything["weights"]
    assert head["trained"] == 32 * len(CODES) + len(CODES)
    with pytest.raises(ConfigError, match="layers = 4: the encoder has 3"):
        train(encoder, tmp_path, layers=4)


def test_another_set_of_layers_does_not_go_on_from_the_state(encoder: Path, tmp_path: Path):
    train(encoder, tmp_path, stop_after=1)
    with pytest.raises(ConfigError, match="trained other parts"):
        train(encoder, tmp_path, layers=1)


def test_the_end_of_a_long_text_counts(trained: tuple[Path, dict[str, Any]]):
    classifier = TextClassifier.load(trained[0] / "text")
    long = "please bake it " * 400
    row = CODES.index("cyber")
    harmless, harmful = classifier.probabilities([long, long + " please hack it"])[:, row]
    assert harmful > 2 * harmless
    assert classifier.probabilities([]).shape == (0, len(CODES))
    assert np.isfinite(classifier.probabilities([""])).all()


def test_company_does_not_change_a_text(trained: tuple[Path, dict[str, Any]]):
    classifier = TextClassifier.load(trained[0] / "text")
    texts = [record.text for record in VAL] + ["please draw it " * 30]
    together = classifier.probabilities(texts)
    assert np.allclose(together, np.concatenate([classifier.probabilities([text]) for text in texts]), atol=1e-5)


def test_early_stop_and_schedule():
    assert not _stopped([], 2)
    assert not _stopped([{"val": 1.0}, {"val": 1.1}], 2)
    assert _stopped([{"val": 1.0}, {"val": 1.1}, {"val": 1.2}], 2)
    rates = [_schedule(step, 20, 0.2) for step in range(20)]
    assert rates[0] < rates[1] < rates[3] == 1.0
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] > 0


def test_what_is_broken_is_refused(trained: tuple[Path, dict[str, Any]], encoder: Path, tmp_path: Path):
    with pytest.raises(DataError, match="is no text classifier"):
        TextClassifier.load(tmp_path)
    train(encoder, tmp_path, epochs=1)
    settings = json.loads((tmp_path / "text" / SETTINGS).read_text())
    (tmp_path / "text" / SETTINGS).write_text(json.dumps(settings | {"categories": ["one"]}))
    with pytest.raises(DataError, match="does not fit the encoder and the 1 categories"):
        TextClassifier.load(tmp_path / "text")
    with pytest.raises(DataError, match="no such encoder"):
        load_encoder(tmp_path / "none")
    with pytest.raises(DataError, match="needs harmful and harmless texts"):
        train(encoder, tmp_path, val=[record for record in VAL if record.labels])
