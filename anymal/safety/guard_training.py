"""All of a guard out of the safety data: three classifiers, thresholds, card and figures."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anymal.data.manifest import MANIFEST, sha256_of, verify_manifest
from anymal.errors import DataError
from anymal.media.image import open_image
from anymal.safety import card
from anymal.safety.figures import ANSWERS, image_figures, pair_figures, text_figures
from anymal.safety.fitting import Fit, Loss, calibrated_loss, fit
from anymal.safety.image_classifier import Head, ImageClassifier
from anymal.safety.image_training import train_images
from anymal.safety.lists import PairRecord, PictureRecord, read_pairs, read_pictures, truth_of
from anymal.safety.models import IMAGE, PAIR, TEXT, GuardModels, write_guard
from anymal.safety.pair_classifier import PairClassifier
from anymal.safety.pair_training import Halves, halves, train_pairs
from anymal.safety.taxonomy import CODES
from anymal.safety.text_classifier import TextClassifier
from anymal.safety.text_training import train_text
from anymal.safety.texts import TextRecord, read_texts
from anymal.safety.thresholds import choose_thresholds
from anymal.safety.wordlist import WordList


@dataclass(frozen=True)
class Data:
    """Everything that is read, by split."""

    texts: Mapping[str, Sequence[TextRecord]]
    pictures: Mapping[str, Sequence[PictureRecord]]
    pairs: Mapping[str, Sequence[PairRecord]]


def read_data(safety: Path) -> Data:
    """Read the folder that curate_safety wrote, after comparing it with its manifest.

    Raises:
        DataError: if anything is missing or changed.
    """
    verify_manifest(safety)
    splits = ("train", "val", "test")
    return Data({split: read_texts(safety / "texts" / f"{split}.jsonl") for split in (*splits, "unseen")},
                {split: read_pictures(safety, split) for split in splits}, {split: read_pairs(safety, split) for split in splits})


def thresholds(
    models: tuple[TextClassifier, ImageClassifier, PairClassifier], data: Data, safety: Path, pairs: Halves, *, rates: Mapping[str, float],
    floor: float, least: int,
) -> dict[str, dict[str, float]]:
    """Thresholds of each use on validation data, for the false-positive rate asked for it (see `choose_thresholds`)."""
    text, image, pair = models
    found = {}
    said = text.probabilities([record.text for record in data.texts["val"]])
    for use in ("request", "answer"):
        rows = [row for row, record in enumerate(data.texts["val"]) if (record.kind in ANSWERS) == (use == "answer")]
        if not rows:
            raise DataError(f"texts/val.jsonl: holds no text of the use {use}; run curate_safety with sources of that kind")
        truth = truth_of([data.texts["val"][row] for row in rows])
        found[use] = choose_thresholds(said[rows], truth, CODES, rate=rates[use], floor=floor, least=least)
    seen = image.probabilities([open_image(safety / record.file, record.file) for record in data.pictures["val"]])
    with torch.inference_mode():
        both = pair.of_features(*pairs.of(slice(None)))
    for use, probabilities, truth, trained in (("image", seen, truth_of(data.pictures["val"]), image.trained),
                                               ("pair", both, truth_of(data.pairs["val"]), pair.trained),
                                               ("pair_answer", both, truth_of(data.pairs["val"]), pair.trained)):
        columns = [CODES.index(code) for code in trained]
        found[use] = choose_thresholds(probabilities[:, columns], truth[:, columns], trained, rate=rates[use], floor=floor, least=least)
    return found


def half_alone(
    train: tuple[torch.Tensor, torch.Tensor], val: tuple[torch.Tensor, torch.Tensor], test: torch.Tensor, *, hidden: int, dropout: float, how: Fit,
    folder: Path, label: str,
) -> np.ndarray:
    """Scores of the test by a classifier that is given one half of each pair, (pairs,): higher is more harmful.

    Args:
        train, val: features of the half, (pairs, dim), and truth, (pairs, categories).
        test: features of the half.
        folder: of the training state.
    """
    torch.manual_seed(how.seed)
    head, loss = Head(train[0].shape[1], hidden, train[1].shape[1], dropout=dropout), Loss(train[1].numpy())
    fit(head, len(train[0]), loss=lambda rows, _: loss(head(train[0][rows]), train[1][rows]), measure=lambda: calibrated_loss(head(val[0]), val[1]),
        how=how, folder=folder, label=label)
    with torch.inference_mode():
        scores: np.ndarray = head(test).logsumexp(1).double().numpy()
    return scores


def train_guard(
    *, data: Data, safety: Path, guard: Path, text: Mapping[str, Any], image: Mapping[str, Any], pair: Mapping[str, Any], rates: Mapping[str, float],
    floor: float, least: int, words: Path, resamples: int, seed: int, backbones: Mapping[str, str],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train the three classifiers, choose thresholds, measure, and write the guard's folder.

    Called again after an interruption it goes on after the last whole epoch and ends with the same bytes.

    Args:
        safety: the folder that `data` was read from.
        guard: the folder to write; holds the training state in `state/` until all is done.
        text, image, pair: arguments of `train_text`, `train_images` and `train_pairs` but for data, seeds and folders; the latter two with `how`.
        rates: use -> greatest share of harmless samples that may be hit.
        floor, least: see `choose_thresholds`.
        words: folder of the word lists of the baseline.
        backbones: classifier -> name of what it was made from, for the document.

    Returns:
        Figures for `results/safety.json`, and the histories of the classifiers.

    Raises:
        DataError: if an input cannot be read or lacks what a classifier needs.
    """
    state = guard / "state"
    made = {TEXT: train_text(**text, train=data.texts["train"], val=data.texts["val"], output=guard / TEXT, work=state / TEXT, seed=seed)}
    pictures, pairs = data.pictures, data.pairs
    made[IMAGE] = train_images(**image, safety=safety, train=pictures["train"], val=pictures["val"], output=guard / IMAGE, work=state / IMAGE)
    made[PAIR] = train_pairs(**pair, safety=safety, train=pairs["train"], val=pairs["val"], output=guard / PAIR, work=state / PAIR)
    models = TextClassifier.load(guard / TEXT), ImageClassifier.load(guard / IMAGE), PairClassifier.load(guard / PAIR)
    seen = {split: halves(data.pairs[split], safety, models[2].backbone, models[2].sentences, state / PAIR / f"{split}.safetensors")
            for split in ("train", "val", "test")}
    chosen = thresholds(models, data, safety, seen["val"], rates=rates, floor=floor, least=least)
    loaded = GuardModels(*models, chosen, {})
    truth = {split: torch.from_numpy(truth_of(data.pairs[split], models[2].trained)).float() for split in ("train", "val")}
    controls = {}
    for place, name in enumerate(("image_alone", "text_alone")):
        features = {split: found.of(slice(None))[place] for split, found in seen.items()}
        controls[name] = half_alone((features["train"], truth["train"]), (features["val"], truth["val"]), features["test"], hidden=pair["hidden"],
                                    dropout=pair["dropout"], how=pair["how"], folder=state / name, label=name)
    again = {"resamples": resamples, "seed": seed}
    figures = {
        "text": text_figures(loaded, data.texts["test"], data.texts["unseen"], baseline=WordList.read(words).probabilities, rates=rates, **again),
        "image": image_figures(loaded, safety, data.pictures["test"], rate=rates["image"], **again),
        "image_text": pair_figures(loaded, safety, data.pairs["test"], controls, rates=rates, **again)}
    facts = {"rates": dict(rates), "floor": floor, "least": least, "backbones": dict(backbones), "data": sha256_of(safety / MANIFEST), "seed": seed,
             "trained": {IMAGE: made[IMAGE]["trained"], PAIR: made[PAIR]["trained"]}}
    shutil.rmtree(state)
    write_guard(guard, thresholds=chosen, facts=facts, card=card.text(figures, facts))
    return figures, made
