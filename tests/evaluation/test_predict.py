"""Prediction, the predictions folder, scoring and the report, with a stand-in for the model that reads the colour from the features."""

import base64
import io
import json
import math
import re

import pytest
import torch
from PIL import Image

from anymal.data.features import FeatureStore
from anymal.data.shards import read_shard
from anymal.errors import DataError, NumericalError
from anymal.evaluation.predict import Predictor, predict_answers, predict_captions
from anymal.evaluation.predictions import read_predictions, write_predictions
from anymal.evaluation.report import Examples, choose_examples, render, thumbnails, verdicts
from anymal.evaluation.score import dump, headline, score_predictions
from anymal.model.prompt import Template
from tests.tiny import make_features, make_shards

COUNTS = {"train": 4, "test": 21}
COLOURS = ("red", "green", "blue")


class ColourReader:
    """Answers with the colour whose features it is shown; counts what it was asked for."""

    def __init__(self, store):
        self.templates = {"caption": Template(None, "describe : <image>"), "question": Template("look", "<image> {question}")}
        self._codes = {colour: store.features([row])[0].float() for row, colour in enumerate(COLOURS)}
        self.generated, self.scored = [], []

    def colour(self, prompt):
        (medium,) = prompt.media
        near = min(COLOURS, key=lambda c: float((self._codes[c] - medium.features.float()).norm()))
        return near if medium.features.any() else None

    def generate(self, prompts, *, max_new_tokens, batch_size):
        self.generated += prompts
        said = [(self.colour(p), "what" in p.messages[-1]["content"]) for p in prompts]
        return [(colour or "") if asked else f"a {colour or 'grey'} picture ." for colour, asked in said]

    def score(self, prompts, targets, *, batch_size):
        self.scored += prompts
        return [(4.0 if f" {self.colour(p)} " in f" {t} " else 8.0, 4) for p, t in zip(prompts, targets, strict=True)]


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return make_features(tmp_path_factory.mktemp("f") / "features", COUNTS)


@pytest.fixture
def store(features):
    return FeatureStore(features, "test")


@pytest.fixture
def model(store):
    return ColourReader(store)


def predictor(model, store, **changes):
    trained_on = {**store.info["encoder"], "tokens": store.tokens, "dim": store.dim, **changes}
    return Predictor(model, store, modality="image", trained_on=trained_on, batch_size=2)


@pytest.fixture(scope="module")
def folder(features, tmp_path_factory):
    target = tmp_path_factory.mktemp("p") / "predictions"
    store = FeatureStore(features, "test")
    asked = predictor(ColourReader(store), store)
    captions, _ = predict_captions(asked, kinds=("scene",), limit=None, scored_references=1, max_new_tokens=5, seed=0)
    answers, _ = predict_answers(asked, limit=None, max_new_tokens=2, seed=0)
    notes = {task: {"prompt": "<image>", "protocol": "<b>as said</b>"} for task in ("caption", "vqa")}
    write_predictions(target, "image", {"caption": captions, "vqa": answers}, {"resamples": 200, "seed": 0, "tasks": notes})
    return target


@pytest.fixture(scope="module")
def scores(folder):
    return score_predictions(folder)


def test_each_distinct_input_is_generated_once(model, store):
    records, available = predict_captions(predictor(model, store), kinds=("scene",), limit=None, scored_references=3, max_new_tokens=5, seed=0)
    assert available == len(records) == 21
    assert len(model.generated) == 21 + 1
    assert len(model.scored) == 3 * 21
    by_key = {record["key"]: record for record in records}
    for record in records:
        assert record["shuffled_key"] != record["key"]
        assert record["prediction"]["shuffled"] == by_key[record["shuffled_key"]]["prediction"]["right"]
        assert record["prediction"]["right"] == record["references"][0]
        assert record["prediction"]["blank"] == "a grey picture ."
        assert record["nll"]["right"] == {"nats": 4.0, "tokens": 4}


def test_questions_are_capped_and_blank_is_generated_once_a_question(model, store):
    records, available = predict_answers(predictor(model, store), limit=9, max_new_tokens=2, seed=0)
    assert (len(records), available) == (9, 21)
    assert len(model.generated) == 9 + 1, "all ask the same question, so a shuffled pair is some other sample's right pair"
    assert all(record["prediction"]["right"] == record["references"][0] for record in records)
    assert {record["shuffled_key"] for record in records} == {record["key"] for record in records}


def test_features_of_another_encoder_are_refused(model, store):
    with pytest.raises(DataError, match=r"tokens = 5, but the checkpoint's projector was trained on tokens = 7"):
        predictor(model, store, tokens=7)
    with pytest.raises(DataError, match=r"layer = None.*layer = -2"):
        predictor(model, store, layer=-2)


def test_bad_inputs_are_one_sentence(model, store, tmp_path):
    lonely = FeatureStore(make_features(tmp_path / "one", {"test": 1}), "test")
    with pytest.raises(DataError, match="at least 2 held-out samples, found 1"):
        predict_captions(predictor(model, lonely), kinds=("scene",), limit=None, scored_references=1, max_new_tokens=5, seed=0)
    with pytest.raises(DataError, match="at least 2 held-out samples, found 1"):
        predict_answers(predictor(model, lonely), limit=None, max_new_tokens=5, seed=0)
    model.templates.pop("question")
    with pytest.raises(DataError, match="no prompt template 'question', only caption"):
        predict_answers(predictor(model, store), limit=None, max_new_tokens=5, seed=0)
    model.score = lambda prompts, targets, *, batch_size: [(math.nan, 4)] * len(prompts)
    with pytest.raises(NumericalError, match="loss of sample test-0000 is nan"):
        predict_captions(predictor(model, store), kinds=("scene",), limit=None, scored_references=1, max_new_tokens=5, seed=0)


def test_figures_and_gaps_are_those_of_a_model_that_sees(scores):
    tree = scores.results["image"]
    caption, vqa = tree["caption"], tree["vqa"]
    assert caption["nll"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 21}
    assert caption["controls"]["blank"]["nll"]["value"] == 2.0
    assert 1.0 < caption["controls"]["shuffled"]["nll"]["value"] <= 2.0
    assert caption["gap_shuffled"]["nll"]["value"] == pytest.approx(1 - caption["controls"]["shuffled"]["nll"]["value"], abs=2e-6)
    assert caption["gap_shuffled"]["nll"]["high"] < 0 < caption["gap_shuffled"]["cider_d"]["low"]
    assert caption["cider_d"]["value"] > caption["controls"]["shuffled"]["cider_d"]["value"] > 0
    assert caption["rouge_l"]["value"] == caption["meteor"]["value"] == 1.0
    assert caption["by_source"]["tiny"]["cider_d"]["value"] == caption["cider_d"]["value"]
    assert vqa["accuracy"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 21}
    assert vqa["controls"]["blank"]["accuracy"]["value"] == 0.0
    assert vqa["controls"]["blank"]["empty_answers"] == 21
    assert vqa["controls"]["majority"]["accuracy"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert vqa["gap_blank"]["accuracy"]["value"] == 1.0
    assert vqa["by_kind"]["colour"]["accuracy"]["n"] == 21
    assert (vqa["empty_answers"], vqa["off_vocabulary_answers"]) == (0, 0)
    for task in (caption, vqa):
        assert task["normaliser"] and task["prompt"] and task["protocol"]
        assert {"shuffled", "blank"} <= task["controls"].keys()


def test_headline_names_figures_and_gaps(scores):
    found = headline(scores.results)
    assert found["image.caption.nll"] == 1.0
    assert found["image.vqa.gap_blank.accuracy"] == 1.0
    assert all(isinstance(value, float) for value in found.values())


def test_scoring_again_gives_the_same_bytes_and_no_nan(folder, scores):
    text = dump(score_predictions(folder).results)
    assert text == dump(scores.results)
    assert "NaN" not in text and "Infinity" not in text and "-0.0," not in text


def test_a_changed_folder_is_refused(folder, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    lines = (copy / "image" / "vqa.jsonl").read_text()
    (copy / "image" / "vqa.jsonl").write_text(lines.replace("red", "blue"))
    with pytest.raises(DataError, match=r"changed image/vqa.jsonl"):
        score_predictions(copy)
    with pytest.raises(DataError, match="manifest"):
        score_predictions(tmp_path)


def test_result_files_are_what_the_coco_and_vqa_tools_read(folder):
    from pycocotools.coco import COCO

    truth = COCO(folder / "image" / "caption.references.json")
    said = truth.loadRes(str(folder / "image" / "caption.right.json"))
    assert sorted(said.getImgIds()) == sorted(truth.getImgIds()) and len(truth.getImgIds()) == 21
    assert truth.imgToAnns["test-0001"][0]["caption"] == "a green picture ." == said.imgToAnns["test-0001"][0]["caption"]
    questions, annotations, results = (
        json.loads((folder / "image" / f"vqa.{name}.json").read_text()) for name in ("questions", "annotations", "right"))
    ids = [entry["question_id"] for entry in results]
    assert ids == [e["question_id"] for e in questions["questions"]] == [e["question_id"] for e in annotations["annotations"]]
    assert len(set(ids)) == 21
    _, records = read_predictions(folder)
    assert [record["prediction"]["right"] for record in records["vqa"]] == [entry["answer"] for entry in results]


@pytest.fixture(scope="module")
def page(scores, tmp_path_factory):
    shards = make_shards(tmp_path_factory.mktemp("s") / "shards", COUNTS)
    examples = choose_examples(scores.records, per_group=3, seed=0)
    return render(scores.results, examples, thumbnails(shards, examples.keys(), split="test"), modality="image"), examples, shards


def test_report_is_self_contained_and_says_what_was_measured(page):
    html, examples, _ = page
    assert not re.search(r"""(src|href)=["'](?!data:)""", html) and "@import" not in html and "<script" not in html
    assert len(html) < 3_000_000
    assert html.count("Uses its input.") == 2
    assert "&lt;b&gt;as said&lt;/b&gt;" in html and "<b>as said</b>" not in html
    assert set(examples.captions) == {"worst", "best", "random"} and set(examples.answers) == {"colour"}
    assert all(len(group) == 3 for group in examples.captions.values())
    pictures = [base64.b64decode(data) for data in re.findall(r"data:image/\w+;base64,([A-Za-z0-9+/=]+)", html)]
    assert len(pictures) == 4 * 3 + 2
    for data in pictures:
        Image.open(io.BytesIO(data)).load()


def test_report_is_the_same_bytes_again(page, scores):
    html, _, shards = page
    again = choose_examples(scores.records, per_group=3, seed=0)
    assert render(scores.results, again, thumbnails(shards, again.keys(), split="test"), modality="image") == html


def test_model_output_cannot_inject_markup(scores):
    record = dict(scores.records["caption"][0], key='k" onerror="x', references=["<script>alert(1)</script>"])
    record["prediction"] = dict.fromkeys(("right", "shuffled", "blank"), '<img src=x onerror="alert(1)">')
    html = render(scores.results, Examples({"worst": [record]}, {}), {record["key"]: "data:,"}, modality="image")
    assert "<script>" not in html and "<img src=x" not in html and "&lt;img src=x" in html


def test_worst_come_first_and_verdicts_follow_the_intervals(scores):
    records = [dict(r, scores={"right": {"cider_d": float(i % 5), "nll": 1.0}}) for i, r in enumerate(scores.records["caption"])]
    groups = choose_examples({"caption": records}, per_group=4, seed=0).captions
    assert [r["scores"]["right"]["cider_d"] for r in groups["worst"]] == [0.0] * 4
    assert [r["scores"]["right"]["cider_d"] for r in groups["best"]] == [4.0] * 4
    tasks = json.loads(json.dumps(scores.results["image"]))
    assert [good for good, _ in verdicts(tasks)] == [True, True]
    tasks["vqa"]["gap_blank"]["accuracy"]["low"] = -0.01
    tasks["caption"]["gap_shuffled"]["nll"]["high"] = 0.01
    assert [good for good, _ in verdicts(tasks)] == [False, False]


def test_pictures_of_other_shards_are_refused(page):
    _, _, shards = page
    with pytest.raises(DataError, match="holds no picture of sample nobody"):
        thumbnails(shards, ["nobody"], split="test")
    assert thumbnails(shards, [], split="test") == {}
    assert {sample.key for sample in read_shard(shards / "test-00000.tar")} >= {"test-0000"}


def test_blank_features_of_the_store_reach_the_model(model, store):
    predict_answers(predictor(model, store), limit=2, max_new_tokens=2, seed=0)
    assert sum(not torch.any(prompt.media[0].features) for prompt in model.generated) == 1
