"""Prediction, with a stand-in for the model that reads the answer from the features."""

import math

import pytest
import torch

from anymal.data.features import FeatureStore
from anymal.errors import DataError, NumericalError
from anymal.evaluation.controls import CONDITIONS
from anymal.evaluation.predict import Predictor, label_vocabulary, predict_answers, predict_captions
from tests.evaluation.conftest import ask
from tests.evaluation.toys import Seer, make_inputs

CAPTIONS = {"kinds": ["scene"], "limit": None, "scored_references": 3, "max_new_tokens": 5, "conditions": CONDITIONS, "seed": 0}
ANSWERS = {"limit": None, "max_new_tokens": 2, "conditions": CONDITIONS, "seed": 0}


def model_of(predictor):
    return predictor._model


def test_each_distinct_input_is_generated_once(stores):
    one = ask(stores, "image")
    records, available = predict_captions(one, **CAPTIONS)
    assert available == len(records) == 21
    assert len(model_of(one).generated) == 21 + 1
    assert len(model_of(one).scored) == len(CONDITIONS) * 21
    by_key = {record["key"]: record for record in records}
    for record in records:
        assert record["shuffled_key"] != record["key"]
        assert record["prediction"]["shuffled"] == by_key[record["shuffled_key"]]["prediction"]["right"]
        similar = by_key[record["similar_key"]]
        assert not set(similar["references"]) & set(record["references"])
        assert record["prediction"]["similar"] == similar["prediction"]["right"] != record["prediction"]["right"] == record["references"][0]
        assert record["prediction"]["blank"] == "A grey picture."
        assert record["finish"] == dict.fromkeys(CONDITIONS, "stop")
        assert record["nll"]["right"] == {"nats": 4.0, "tokens": 4}
        assert record["label"] is None and record["group"] == record["key"]
        assert record["prompt"] == [{"role": "user", "content": "describe : <image>"}]


def test_labels_and_groups_are_recorded(stores):
    records, _ = predict_captions(ask(stores, "imu"), **{**CAPTIONS, "kinds": None})
    by_key = {record["key"]: record for record in records}
    assert {record["group"] for record in records} == {"subject 0", "subject 1"}
    assert all(record["label"] in record["references"][0] for record in records)
    assert all(record["shuffled_label"] == by_key[record["shuffled_key"]]["label"] for record in records)
    assert label_vocabulary(stores["imu"]) == ["bicep curls", "rows", "side raises"]
    assert label_vocabulary(stores["image"]) == []


def test_questions_are_capped_and_blank_is_generated_once_a_question(stores):
    one = ask(stores, "image")
    records, available = predict_answers(one, **{**ANSWERS, "limit": 9})
    assert (len(records), available) == (9, 21)
    assert len(model_of(one).generated) == 9 + 1, "all ask the same question, so a shuffled pair is some other sample's right pair"
    assert sum(not torch.any(prompt.media[0].features) for prompt in model_of(one).generated) == 1
    assert all(record["prediction"]["right"] == record["references"][0] for record in records)
    assert {record["shuffled_key"] for record in records} == {record["key"] for record in records}


def test_a_baseline_measures_the_right_input_alone(stores):
    one = ask(stores, "imu")
    records, _ = predict_captions(one, **{**CAPTIONS, "kinds": None, "conditions": ["right"]})
    assert len(model_of(one).generated) == len(model_of(one).scored) == len(records) == 12
    assert all(record["prediction"].keys() == record["finish"].keys() == record["nll"].keys() == {"right"} for record in records)
    assert not {"shuffled_key", "shuffled_label", "similar_key"} & records[0].keys()
    whole, _ = predict_captions(ask(stores, "imu"), **{**CAPTIONS, "kinds": None})
    assert [record["prediction"]["right"] for record in records] == [record["prediction"]["right"] for record in whole]


def test_similar_inputs_come_after_all_others_and_about_the_same_kind(stores, monkeypatch):
    meta = FeatureStore.meta

    def asked(store, row):
        known = meta(store, row)
        entry = {**known["questions"][0], "question": f"which color has {row} ?", "kind": ("odd", "even")[row % 2]}
        return {**known, "questions": [entry]}

    monkeypatch.setattr(FeatureStore, "meta", asked)
    with_all, without = ask(stores, "image"), ask(stores, "image")
    records, _ = predict_answers(with_all, **ANSWERS)
    predict_answers(without, **{**ANSWERS, "conditions": CONDITIONS[:-1]})
    first, second = ([(prompt.messages, prompt.media[0].features.tolist()) for prompt in model_of(one).generated] for one in (with_all, without))
    assert len(second) == 3 * 21 and first[: len(second)] == second and 3 * 21 < len(first) <= 4 * 21
    by_key = {record["key"]: record for record in records}
    for record in records:
        similar = by_key[record["similar_key"]]
        assert similar["kind"] == record["kind"] and similar["references"] != record["references"]
        assert record["prediction"]["similar"] == similar["references"][0]


@pytest.mark.parametrize(("field", "value"), [("tokens", 7), ("settings", {"layer": -2}), ("asset", None)])
def test_features_of_another_encoder_are_refused(stores, field, value):
    some = {"image": stores["image"]}
    model = Seer(some)
    model.metadata["image"]["encoder"][field] = value
    with pytest.raises(DataError, match=rf"features of image: made by an encoder with {field} = .*was trained on {field} = "):
        Predictor(model, some, batch_size=2)


def test_bad_inputs_are_one_sentence(stores, tmp_path):
    lonely = {"image": FeatureStore(make_inputs(tmp_path, "image", 1)["features"], "test")}
    with pytest.raises(DataError, match="at least 2 held-out samples, found 1"):
        predict_captions(ask(lonely, "image"), **CAPTIONS)
    with pytest.raises(DataError, match="at least 2 held-out samples, found 1"):
        predict_answers(ask(lonely, "image"), **ANSWERS)
    with pytest.raises(DataError, match="caption_kinds = photo, clip: no captioned sample is of these kinds; there are scene"):
        predict_captions(ask(stores, "image"), **{**CAPTIONS, "kinds": ["photo", "clip"]})
    one = ask(stores, "image")
    model_of(one).templates["image"].pop("question")
    with pytest.raises(DataError, match="checkpoint of image: has no prompt template 'question', only caption"):
        predict_answers(one, **ANSWERS)
    model_of(one).score = lambda prompts, targets, *, batch_size: [(math.nan, 4)] * len(prompts)
    with pytest.raises(NumericalError, match="loss of sample image-0000 is nan"):
        predict_captions(one, **CAPTIONS)


def test_a_split_without_questions_is_named(stores, monkeypatch):
    meta = FeatureStore.meta
    monkeypatch.setattr(FeatureStore, "meta", lambda store, row: {**meta(store, row), "questions": []})
    with pytest.raises(DataError, match="features of imu: the split holds no sample with questions"):
        predict_answers(ask(stores, "imu"), **ANSWERS)
