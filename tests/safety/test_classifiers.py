"""Classifiers of pictures and pairs: what they learn, that they go on to the same bytes after an interruption, and what they refuse to load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anymal.errors import DataError
from anymal.evaluation.binary import auc
from anymal.media.image import open_image
from anymal.safety.backbones import cropped
from anymal.safety.fitting import Fit
from anymal.safety.image_classifier import ImageClassifier
from anymal.safety.image_training import changed, train_images
from anymal.safety.lists import read_pairs, read_pictures, truth_of
from anymal.safety.pair_classifier import PairClassifier
from anymal.safety.pair_training import train_pairs
from anymal.safety.taxonomy import CODES
from tests.safety.tiny import make_text_encoder
from tests.safety.tiny_pictures import tiny_clip, tiny_regnet, write_safety

HOW = Fit(epochs=6, batch_size=8, learning_rate=3e-3, weight_decay=0.01, patience=6, seed=1)


@pytest.fixture(scope="module")
def safety(tmp_path_factory) -> Path:
    return write_safety(tmp_path_factory.mktemp("data") / "safety")


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("networks")
    return {"regnet": tiny_regnet(folder / "regnet"), "clip": tiny_clip(folder / "clip"), "text": make_text_encoder(folder / "text")}


def image_training(safety: Path, network: Path, output: Path, *, whole: bool = False, how: Fit = HOW, stop_after: int | None = None) -> dict:
    train, val = (read_pictures(safety, split) for split in ("train", "val"))
    return train_images(backbone=network, kind="hf", whole=whole, safety=safety, train=train, val=val, output=output, views=3, hidden=16, dropout=0.1,
                        work=output.with_name(f"{output.name}-work"), how=how, stop_after=stop_after)


def pair_training(safety: Path, networks: dict[str, Path], output: Path, *, how: Fit = HOW, stop_after: int | None = None) -> dict:
    train, val = (read_pairs(safety, split) for split in ("train", "val"))
    return train_pairs(backbone=networks["clip"], kind="hf", encoder=networks["text"], max_tokens=32, safety=safety, train=train, val=val,
                       output=output, work=output.with_name(f"{output.name}-work"), hidden=16, dropout=0.1, how=how, stop_after=stop_after)


def same_bytes(one: Path, two: Path) -> None:
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len(files) >= 5
    assert files == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes(), file


def test_pictures_are_told_apart(safety, networks, tmp_path):
    how = Fit(epochs=40, batch_size=8, learning_rate=1e-2, weight_decay=0.0, patience=40, seed=1)
    made = image_training(safety, networks["clip"], tmp_path / "image", how=how)
    assert made["trained"] == ["violence", "weapons"]
    assert made["history"][made["best"] - 1]["val"] < made["history"][0]["val"]
    test = read_pictures(safety, "test")
    images = [open_image(safety / record.file, record.file) for record in test]
    probabilities = ImageClassifier.load(tmp_path / "image").probabilities(images)
    assert probabilities.shape == (len(test), len(CODES))
    trained = [CODES.index("violence"), CODES.index("weapons")]
    assert (np.delete(probabilities, trained, axis=1) == 0).all()
    truth = truth_of(test)
    for column in trained:
        assert probabilities[truth[:, column], column].mean() > probabilities[~truth[:, column], column].mean() + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True])
def test_pictures_go_on_after_an_interruption(safety, networks, tmp_path, whole):
    image_training(safety, networks["regnet"], tmp_path / "one", whole=whole)
    for _ in range(3):
        image_training(safety, networks["regnet"], tmp_path / "two", whole=whole, stop_after=2)
    assert not (tmp_path / "two").exists()
    image_training(safety, networks["regnet"], tmp_path / "two", whole=whole)
    same_bytes(tmp_path / "one", tmp_path / "two")


def test_pairs_go_on_after_an_interruption(safety, networks, tmp_path):
    pair_training(safety, networks, tmp_path / "one")
    pair_training(safety, networks, tmp_path / "two", stop_after=3)
    pair_training(safety, networks, tmp_path / "two")
    same_bytes(tmp_path / "one", tmp_path / "two")


def test_pairs_are_judged_together(safety, networks, tmp_path):
    how = Fit(epochs=60, batch_size=8, learning_rate=3e-3, weight_decay=0.0, patience=60, seed=1)
    pair_training(safety, networks, tmp_path / "pair", how=how)
    classifier = PairClassifier.load(tmp_path / "pair")
    records = [record for record in read_pairs(safety, "train") if record.kind == "composed"]
    images = {record.image: open_image(safety / record.image, record.image) for record in records}
    probabilities = classifier.probabilities([images[record.image] for record in records], [record.text for record in records])
    assert probabilities.shape == (len(records), len(CODES))
    first, texts = list(images.values())[:2], [record.text for record in records[:3]]
    judged = classifier.judge(list(classifier.features(first)), texts)
    assert np.allclose(judged, classifier.probabilities([image for image in first for _ in texts], texts * 2), atol=1e-6)
    harmful = truth_of(records).any(axis=1)
    said = probabilities[:, CODES.index("illegal")]
    assert auc(harmful.tolist(), said.tolist()) > 0.6


def test_it_stops_early(safety, networks, tmp_path):
    how = Fit(epochs=200, batch_size=8, learning_rate=3e-2, weight_decay=0.0, patience=2, seed=1)
    made = pair_training(safety, networks, tmp_path / "pair", how=how)
    assert len(made["history"]) == made["best"] + 2 < 200


def test_damaged_classifiers_are_refused(safety, networks, tmp_path):
    image_training(safety, networks["regnet"], tmp_path / "image", how=Fit(1, 8, 1e-3, 0.0, 1, 0))
    (tmp_path / "image" / "head.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match="is no picture classifier"):
        ImageClassifier.load(tmp_path / "image")
    (tmp_path / "image" / "backbone" / "backbone.json").unlink()
    with pytest.raises(DataError, match="holds no image network of ours"):
        ImageClassifier.load(tmp_path / "image")
    with pytest.raises(DataError, match="is no classifier of pairs"):
        PairClassifier.load(tmp_path / "nothing")


def test_lists_of_something_else_are_refused(safety, tmp_path):
    with pytest.raises(DataError, match="no such list"):
        read_pictures(tmp_path, "train")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/train.jsonl").write_text('{"id": "a", "file": "b", "labels": ["kindness"], "source": "s", "group": "g", "kind": "other"}\n')
    with pytest.raises(DataError, match="'kindness' is no category"):
        read_pictures(tmp_path, "train")


def test_a_plain_border_is_cut_and_views_repeat():
    image = Image.new("RGB", (200, 100), "white")
    image.paste((10, 200, 10), (90, 40, 110, 60))
    assert max(cropped(image).size) == 23
    full = Image.effect_noise((40, 30), 80).convert("RGB")
    assert cropped(full) is full
    views = [changed(full, 3, "name", view) for view in (1, 1, 2)]
    assert views[0].tobytes() == views[1].tobytes() != views[2].tobytes()
