"""Questions about media of several modalities."""

from collections import Counter

import pytest

from anymal.data.features import FeatureStore
from anymal.errors import DataError
from anymal.evaluation.controls import CONDITIONS
from anymal.evaluation.mixed import mixed_messages, predict_mixed
from anymal.evaluation.score import score_predictions
from tests.evaluation.conftest import ask
from tests.evaluation.toys import ANSWERS, KIND

OPTIONS = {"kinds": KIND, "question": "which both ?", "samples": 30, "max_new_tokens": 5, "conditions": CONDITIONS, "seed": 0}


def score(records, vocabulary):
    described = {"prompt": "", "protocol": "said", "vocabulary": vocabulary}
    return score_predictions({"modality": "mixed", "tasks": {"qa": described}}, {"qa": records}, meteor=None, resamples=200, seed=0)["qa"]


def test_media_are_paired_evenly_and_replaced_by_ones_with_other_answers(stores):
    records, vocabulary, available = predict_mixed(ask(stores, "image", "imu"), **OPTIONS)
    assert vocabulary == {m: sorted(ANSWERS[m]) for m in KIND} and available == {"image": 21, "imu": 12}
    assert records[0]["prediction"].keys() == {"right", "shuffled", "blank", "similar", "shuffled_image", "shuffled_imu"}
    assert all((len(r["prediction"]["right"].split()) > 5) == (r["finish"]["right"] == "length") for r in records)
    assert records[0]["prompt"][-1]["content"] == "<image>\n<imu> which both ?"
    for modality in KIND:
        assert set(Counter(record["references"][modality] for record in records).values()) == {10}
        index = {record["shuffled_keys"][modality]: None for record in records}
        answer_of = {meta["key"]: meta["questions"][0]["answer"] for meta in map(stores[modality].meta, range(len(stores[modality])))}
        assert len(index) > 3
        for name in ("shuffled_keys", "similar_keys"):
            assert all(answer_of[r[name][modality]] != r["references"][modality] == answer_of[r["keys"][modality]] for r in records)
    pairs = Counter(tuple(record["references"].values()) for record in records)
    assert len(pairs) >= 7, "the answer of one part must not tell the other"
    first = records[0]
    for name in KIND:
        said = first["prediction"][f"shuffled_{name}"]
        assert all((answer in said) == (modality != name) for modality, answer in first["references"].items())
    assert predict_mixed(ask(stores, "image", "imu"), **OPTIONS)[0] == records


def test_a_model_that_sees_both_is_told_from_one_that_sees_one(stores):
    whole = score(*predict_mixed(ask(stores, "image", "imu"), **OPTIONS)[:2])
    assert whole["accuracy"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 30}
    assert whole["controls"]["shuffled"]["accuracy"]["value"] == whole["controls"]["blank"]["accuracy_imu"]["value"] == 0.0
    for name, other in (("image", "imu"), ("imu", "image")):
        alone = whole["controls"][f"shuffled_{name}"]
        assert alone["accuracy"]["value"] == alone[f"accuracy_{name}"]["value"] == 0.0 and alone[f"accuracy_{other}"]["value"] == 1.0
        assert whole[f"gap_shuffled_{name}"][f"accuracy_{name}"]["low"] == 1.0
    assert whole["controls"]["majority"]["accuracy_image"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert whole["groups"] == {"image": len({r["keys"]["image"] for r in predict_mixed(ask(stores, "image", "imu"), **OPTIONS)[0]}), "imu": 2}
    assert "2 groups of imu" in whole["protocol"]
    half = score(*predict_mixed(ask(stores, "image", "imu", blind_to=["imu"]), **OPTIONS)[:2])
    assert half["accuracy_image"]["value"] == 1.0 and half["accuracy_imu"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert half["gap_shuffled_imu"]["accuracy_imu"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 30}


def test_every_part_must_be_named_and_no_other_answer(stores):
    records, vocabulary, _ = predict_mixed(ask(stores, "image", "imu"), **OPTIONS)
    for number, record in enumerate(records):
        one, two = record["references"].values()
        record["prediction"]["right"] = [f"{one.upper()} background, {two[:-1]}", one, f"red green blue {two}"][number % 3]
    found = score(records, vocabulary)
    assert found["accuracy"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["accuracy_image"]["value"] == found["accuracy_imu"]["value"] == pytest.approx(2 / 3, abs=1e-6)


def test_the_question_may_hold_the_samples_own_and_the_media(stores):
    records, _, _ = predict_mixed(ask(stores, "image", "imu"), **{**OPTIONS, "question": "{imu} {image} <image> then <imu>", "samples": 2})
    assert records[0]["prompt"][-1]["content"].endswith("which label ? which color ? <image> then <imu>")
    assert mixed_messages(ask(stores, "image", "imu"), "{imu} ?")[-1]["content"] == "<image>\n<imu> {imu} ?"


def test_a_pair_template_comes_before_the_question_template(stores):
    one = ask(stores, "image", "imu")
    one._model.templates["image"]["pair"] = type(one.template("question"))(None, "pair {media} {question}")
    records, _, _ = predict_mixed(one, **{**OPTIONS, "samples": 2})
    assert records[0]["prompt"] == [{"role": "user", "content": "pair <image>\n<imu> which both ?"}]


def test_bad_inputs_are_one_sentence(stores, monkeypatch):
    with pytest.raises(DataError, match=r"mixed\.parts: no held-out imu sample has a question of kind side"):
        predict_mixed(ask(stores, "image", "imu"), **{**OPTIONS, "kinds": {"image": "color", "imu": "side"}})
    with pytest.raises(DataError, match="prompt places the media imu, but the question is about image, imu"):
        predict_mixed(ask(stores, "image", "imu"), **{**OPTIONS, "question": "only <imu> ?"})
    meta = FeatureStore.meta

    def answered(answer):
        return lambda store, row: {**(known := meta(store, row)), "questions": [{**known["questions"][0], "answer": answer(row)}]}

    monkeypatch.setattr(FeatureStore, "meta", answered(lambda _: "red"))
    with pytest.raises(DataError, match="all held-out image samples have the answer 'red'"):
        predict_mixed(ask(stores, "image", "imu"), **OPTIONS)
    monkeypatch.setattr(FeatureStore, "meta", answered(lambda row: ("red", "blue")[row % 2]))
    with pytest.raises(DataError, match="image and imu share the answer 'blue'"):
        predict_mixed(ask(stores, "image", "imu"), **OPTIONS)
