"""Predictions of a model that sees, for an image set, a motion set with labels, and questions about both."""

from __future__ import annotations

from pathlib import Path

import pytest

from anymal.data.features import FeatureStore
from anymal.evaluation.controls import CONDITIONS
from anymal.evaluation.mixed import predict_mixed
from anymal.evaluation.predict import Predictor, label_vocabulary, predict_answers, predict_captions
from anymal.evaluation.predictions import write_predictions
from anymal.evaluation.previews import FOLDER, choose, draw_previews
from anymal.evaluation.score import Scores, score_all
from tests.evaluation.toys import KIND, Seer, ToyEncoder, make_inputs

COUNTS = {"image": 21, "imu": 12}
NOTE = {"prompt": "user: {media}", "protocol": "<b>as said</b>"}


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """Modality -> port -> folder."""
    root = tmp_path_factory.mktemp("toys")
    return {modality: make_inputs(root, modality, count) for modality, count in COUNTS.items()}


@pytest.fixture
def stores(toys: dict[str, dict[str, Path]]) -> dict[str, FeatureStore]:
    return {modality: FeatureStore(folders["features"], "test") for modality, folders in toys.items()}


def ask(stores: dict[str, FeatureStore], *modalities: str, **changes: object) -> Predictor:
    """A predictor over a model that sees."""
    some = {modality: stores[modality] for modality in modalities}
    return Predictor(Seer(some, **changes), some, batch_size=2)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def folders(toys: dict[str, dict[str, Path]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Modality or "mixed" -> its predictions folder."""
    stores = {modality: FeatureStore(paths["features"], "test") for modality, paths in toys.items()}
    root, options = tmp_path_factory.mktemp("predictions"), {"max_new_tokens": 5, "conditions": CONDITIONS, "seed": 0}
    written = {}
    for name in ("image", "imu", "mixed"):
        if name == "mixed":
            records, vocabulary, _ = predict_mixed(ask(stores, "image", "imu"), kinds=KIND, question="which both ?", samples=30, **options)
            tasks, known = {"qa": records}, {"qa": vocabulary}
        else:
            one = ask(stores, name)
            tasks = {"caption": predict_captions(one, kinds=None, limit=None, scored_references=1, **options)[0],
                     "vqa" if name == "image" else "qa": predict_answers(one, limit=None, **options)[0]}
            known = {"caption": label_vocabulary(stores[name]) or None}
        for modality, keys in choose(tasks, known, modality=name, limit=16, seed=0).items():
            draw_previews(ToyEncoder(root), stores[modality], toys[modality]["shards"], keys, root / name / FOLDER / modality, split="test")
        notes = {task: {**NOTE, "vocabulary": known.get(task)} for task in tasks}
        write_predictions(root / name, name, tasks, {"seed": 0, "tasks": notes})
        written[name] = root / name
    return written


@pytest.fixture(scope="session")
def scored(folders: dict[str, Path]) -> tuple[Scores, dict[str, Path]]:
    return score_all(list(folders.values()), resamples=200, seed=0)
