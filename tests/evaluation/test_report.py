"""The report: what it shows, in which order, and that it needs nothing else."""

import base64
import io
import json
import re
from dataclasses import replace

import pytest
from PIL import Image

from anymal.evaluation import report
from anymal.evaluation.report import Pictures, Section, build_report, choose_examples, confusion, render, verdicts


@pytest.fixture(scope="module")
def page(scored):
    return build_report(*scored, per_group=3, seed=0)


def pictures_of(html):
    return [base64.b64decode(data) for data in re.findall(r"data:image/\w+;base64,([A-Za-z0-9+/=]+)", html)]


def test_the_page_is_self_contained_and_says_what_was_measured(page):
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page) and "@import" not in page and "<script" not in page
    assert len(page) < 3_000_000
    assert re.findall(r'<section id="(\w+)">', page) == ["image", "imu", "mixed"]
    assert page.count("Uses its input.") == 4 and page.count("Uses all its inputs.") == 1
    assert "&lt;b&gt;as said&lt;/b&gt;" in page and "<b>as said</b>" not in page
    for words in ("Class accuracy", "What the captions named", "By label", "By kind of question", "Accuracy, imu part", "Right − shuffled image"):
        assert words in page
    found = pictures_of(page)
    assert len(found) > 5 + 12
    for data in found:
        Image.open(io.BytesIO(data)).load()


def test_the_page_is_the_same_bytes_again(page, scored):
    assert build_report(*scored, per_group=3, seed=0) == page
    assert build_report(*scored, per_group=3, seed=1) != page


def test_pictures_stop_at_their_budget_and_the_page_says_so(scored, monkeypatch):
    monkeypatch.setattr(report, "MAX_PICTURE_BYTES", 600)
    html = build_report(*scored, per_group=3, seed=0)
    assert "pictures are left out" in html
    assert sum(len(data) for data in pictures_of(html) if Image.open(io.BytesIO(data)).width < 100) <= 600


def test_examples_are_of_drawn_samples_and_failures_come_first(scored):
    scores, folders = scored
    records = json.loads(json.dumps(scores.records["imu"]))
    for number, record in enumerate(records["caption"]):
        record["scores"]["right"]["class_accuracy"] = float(number % 2)
    for number, record in enumerate(records["qa"]):
        record["scores"]["right"]["accuracy"] = float(number % 2)
    groups = choose_examples(records, folders["imu"], modality="imu", per_group=3, seed=0)
    assert [heading for heading, _, _ in groups] == [
        "Captions that name another class, several or none", "Captions that name the right class", "Questions: label"]
    drawn = {path.stem for path in (folders["imu"] / "previews" / "imu").iterdir()}
    assert all(record["key"] in drawn for _, _, shown in groups for record in shown) and len(drawn) == 12
    assert [r["scores"]["right"]["class_accuracy"] for r in groups[0][2]] == [0.0] * 3
    assert len({record["label"] for record in groups[0][2]}) == 3
    assert [r["scores"]["right"]["accuracy"] for r in groups[2][2]] == [0.0, 0.0, 1.0]
    assert choose_examples(records, folders["imu"], modality="imu", per_group=0, seed=0) == []


def test_captions_without_labels_are_ranked(scored):
    scores, folders = scored
    records = [dict(r, scores={"right": {"cider_d": float(i % 5), "nll": 1.0}}) for i, r in enumerate(scores.records["image"]["caption"])]
    groups = choose_examples({"caption": records}, folders["image"], modality="image", per_group=4, seed=0)
    assert [heading for heading, _, _ in groups] == ["Captions: lowest CIDEr-D", "Captions: random", "Captions: highest CIDEr-D"]
    low, _, high = ([record["scores"]["right"]["cider_d"] for record in shown] for _, _, shown in groups)
    assert low == sorted(low) and high == sorted(high, reverse=True) and low[0] < high[0]


def test_model_output_cannot_inject_markup(scored):
    record = json.loads(json.dumps(scored[0].records["image"]["caption"][0])) | {"key": 'k" onerror="x', "references": ["<script>alert(1)</script>"]}
    record["prediction"] = dict.fromkeys(("right", "shuffled", "blank"), '<img src=x onerror="alert(1)">')
    section = Section("image", scored[0].results["image"], [("<i>", "caption", [record])], Pictures(0), {})
    html = render([section])
    assert "<script>" not in html and "<img src=x" not in html and "&lt;img src=x" in html and "<i>" not in html


def test_verdicts_follow_the_intervals(scored):
    for modality, task, path in (("image", "caption", ("gap_shuffled", "nll", "high")), ("image", "vqa", ("gap_blank", "accuracy", "low")),
                                 ("imu", "caption", ("gap_shuffled", "class_accuracy", "low")),
                                 ("mixed", "qa", ("gap_shuffled_imu", "accuracy_imu", "low"))):  # fmt: skip
        tasks = json.loads(json.dumps({task: scored[0].results[modality][task]}))
        assert [good for good, _ in verdicts(modality, tasks)] == [True]
        tasks[task][path[0]][path[1]][path[2]] = 0.01 if path[2] == "high" else -0.01
        assert [good for good, _ in verdicts(modality, tasks)] == [False], path
    said = verdicts("mixed", scored[0].results["mixed"])[0][1]
    assert "100.0% have every part right, 0.0% with all inputs replaced" in said and "with another imu its part falls from 100.0% to 0.0%" in said


def test_confusions_count_every_labelled_sample(scored):
    records = json.loads(json.dumps(scored[0].records["imu"]["caption"]))
    records[0]["named"]["right"] = []
    records[1]["named"]["right"] = ["bicep curl", "row"]
    columns, rows = confusion([*records, {**records[0], "label": None}])
    assert columns == ["bicep curl", "row", "side raise", "several", "none"]
    assert rows["bicep curl"] == {"bicep curl": 3, "none": 1} and rows["row"]["several"] == 1
    assert sum(sum(row.values()) for row in rows.values()) == 12


def test_a_section_without_examples_still_shows_its_figures(scored):
    sections = [replace(Section("imu", scored[0].results["imu"], [], Pictures(0), {}))]
    assert "The examples below" not in render(sections) and "Class accuracy" in render(sections)
