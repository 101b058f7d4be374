"""`anymal rescore`: a prediction file of every layout and official references are enough for figures with intervals."""

import json
import random
import re

import numpy as np
import pytest
from click.testing import CliRunner

from anymal.__main__ import cli
from anymal.errors import AnymalError
from anymal.evaluation import captions, vqa
from anymal.evaluation.bootstrap import read_samples

QUESTIONS = 40


def write(path, document):
    lines = "".join(json.dumps(line) + "\n" for line in document) if path.suffix == ".jsonl" else json.dumps(document)
    path.write_text(lines, encoding="utf-8")
    return path


@pytest.fixture
def asked(tmp_path):
    """40 questions about 20 pictures with ten answers each, and what was said."""
    generator = random.Random(3)
    answers = {number: [generator.choice(["red", "Red.", "two", "the cat"]) for _ in range(10)] for number in range(QUESTIONS)}
    said = {number: generator.choice(["red", "2", "cat", "The cat", ""]) for number in answers}
    write(tmp_path / "annotations.json", {"annotations": [
        {"question_id": number, "image_id": number // 2, "answers": [{"answer_id": n, "answer": text} for n, text in enumerate(texts)]}
        for number, texts in answers.items()]})
    return answers, said


def run(folder, *words, fails=False):
    """The figures that are written, or the error."""
    line = ["rescore", *map(str, words), "--resamples", "100"] + ([] if fails else ["--output", str(folder / "out.json")])
    if fails:
        with pytest.raises(AnymalError) as caught:
            CliRunner().invoke(cli, line, catch_exceptions=False, standalone_mode=False)
        return str(caught.value)
    done = CliRunner().invoke(cli, line, catch_exceptions=False, standalone_mode=False)
    assert done.exit_code == 0
    return json.loads((folder / "out.json").read_text())


LAYOUTS = {
    "vqa.json": lambda said: [{"question_id": n, "answer": text} for n, text in said.items()],
    "answers.jsonl": lambda said: [{"question_id": n, "prompt": "?", "text": text, "answer_id": "x", "model_id": "m", "metadata": {}}
                                   for n, text in said.items()],
    "samples_vqa.jsonl": lambda said: [{"doc_id": n, "target": "red", "filtered_resps": [text], "exact_match": 0.0} for n, text in said.items()],
}  # fmt: skip


@pytest.mark.parametrize("variant", list(vqa.VARIANTS))
def test_vqa_answers_score_the_same_in_every_layout(tmp_path, asked, variant):
    answers, said = asked
    expected = [vqa.answer_accuracy(said[number], answers[number], variant=variant) for number in answers]
    assert 0 < np.mean(expected) < 1
    results = []
    for name, layout in LAYOUTS.items():
        predictions = write(tmp_path / name, layout(said))
        found = run(tmp_path, "--predictions", predictions, "--references", tmp_path / "annotations.json", "--variant", variant)
        assert found["accuracy"]["value"] == pytest.approx(np.mean(expected), abs=1e-6)
        assert found["accuracy"]["low"] < found["accuracy"]["value"] < found["accuracy"]["high"]
        assert (found["accuracy"]["n"], found["left_out"], found["variant"], found["normaliser"]) == (QUESTIONS, 0, variant, vqa.VARIANTS[variant])
        assert "of 20 pictures, each with all questions about it" in found["protocol"]
        assert found["empty_answers"] == sum(not text for text in said.values())
        results.append({name: value for name, value in found.items() if name != "predictions"})
    assert results[0] == results[1] == results[2]


def test_samples_are_written_for_paired_comparison(tmp_path, asked):
    answers, said = asked
    predictions = write(tmp_path / "vqa.json", LAYOUTS["vqa.json"](said))
    words = ["--predictions", predictions, "--references", tmp_path / "annotations.json", "--variant", "vqa_eval"]
    run(tmp_path, *words, "--samples", tmp_path / "s.jsonl")
    rows = read_samples(tmp_path / "s.jsonl")["answers"]
    assert len(rows) == QUESTIONS
    for row in rows:
        number = int(row["id"])
        assert row["scores"] == {"accuracy": vqa.answer_accuracy(said[number], answers[number], variant="vqa_eval")}
        assert row["group"] == str(number // 2)


def test_what_is_written_for_lmms_eval_scores_the_same_again(tmp_path, asked):
    from anymal.evaluation.formats.lmms import read_results

    _, said = asked
    predictions = write(tmp_path / "vqa.json", LAYOUTS["vqa.json"](said))
    words = ["--predictions", predictions, "--references", tmp_path / "annotations.json", "--variant", "evalai", "--lmms", tmp_path / "lmms"]
    first = run(tmp_path, *words)
    assert sorted(path.name for path in (tmp_path / "lmms").iterdir()) == ["results.json", "samples_answers.jsonl"]
    again = run(tmp_path, "--predictions", tmp_path / "lmms" / "samples_answers.jsonl", "--variant", "evalai")
    assert again["accuracy"]["value"] == first["accuracy"]["value"]
    assert read_results(tmp_path / "lmms" / "results.json") == {"answers": {"accuracy": first["accuracy"]["value"]}}
    lines = [json.loads(line) for line in (tmp_path / "lmms" / "samples_answers.jsonl").read_text().splitlines()]
    assert np.mean([line["accuracy"] for line in lines]) == pytest.approx(first["accuracy"]["value"], abs=1e-6)


def test_vizwiz(tmp_path):
    answers = [{"answer": "unanswerable", "answer_confidence": "yes"}] * 10
    references = write(tmp_path / "val.json", [{"image": f"V{n}.jpg", "question": "?", "answers": answers, "answerable": 0} for n in range(4)])
    predictions = write(tmp_path / "said.json", [{"image": f"V{n}.jpg", "answer": "unanswerable" if n < 3 else "a can"} for n in range(4)])
    assert run(tmp_path, "--predictions", predictions, "--references", references, "--variant", "evalai")["accuracy"]["value"] == 0.75


def test_pope(tmp_path):
    references = write(tmp_path / "coco_pope_random.json", "")
    references.write_text("".join(json.dumps({"question_id": n, "image": f"{n // 2}.jpg", "text": "Is it?", "label": ["yes", "no"][n % 2]}) + "\n"
                                  for n in range(6)))  # fmt: skip
    said = ["Yes.", "no", "yes, it is", "yes", "hard to say", "No"]
    predictions = write(tmp_path / "answers.jsonl", [{"question_id": n, "text": text} for n, text in enumerate(said)])
    found = run(tmp_path, "--predictions", predictions, "--references", references)
    assert {name: found[name]["value"] for name in ("accuracy", "precision", "recall", "f1", "yes_ratio")} == pytest.approx(
        {"accuracy": 4 / 6, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes_ratio": 0.5}, abs=1e-6)
    assert found["unparsable"] == 1


def test_scienceqa_scores_a_subset_when_asked(tmp_path):
    references = write(tmp_path / "problems.json", {str(n): {"question": "?", "choices": ["a cat", "a dog"], "answer": n % 2} for n in range(9)})
    predictions = write(tmp_path / "answers.jsonl", [{"question_id": str(n), "text": text} for n, text in enumerate(["A", "B", "(B)", "no idea"])])
    assert "nothing was said of 5 of 9 samples" in run(tmp_path, "--predictions", predictions, "--references", references, fails=True)
    found = run(tmp_path, "--predictions", predictions, "--references", references, "--subset")
    assert (found["accuracy"]["value"], found["accuracy"]["n"], found["unparsable"], found["left_out"]) == (0.5, 4, 1, 5)


def test_targets_of_lmms_eval_do_without_references(tmp_path):
    pope = write(tmp_path / "samples_pope.jsonl", [{"doc_id": n, "target": t, "filtered_resps": ["yes"]} for n, t in enumerate(["yes", "no", "yes"])])
    assert run(tmp_path, "--predictions", pope)["accuracy"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    target = str(["red"] * 5 + ["blue"] * 5)
    lists = write(tmp_path / "samples_ok.jsonl", [{"doc_id": n, "target": target, "filtered_resps": ["Red"]} for n in range(3)])
    found = run(tmp_path, "--predictions", lists, "--variant", "evalai")
    assert (found["accuracy"]["value"], found["references"]["layout"]) == (1.0, "targets of lmms-eval")


def test_ids_of_lmms_eval_may_lie_deeper(tmp_path, asked):
    _, said = asked
    lines = [{"doc_id": 500 + n, "target": "", "filtered_resps": [text], "submission": {"question_id": n}} for n, text in said.items()]
    predictions = write(tmp_path / "samples.jsonl", lines)
    words = ["--predictions", predictions, "--references", tmp_path / "annotations.json", "--variant", "vqa_eval"]
    assert "40 of 40 samples, such as 500, have no reference" in run(tmp_path, *words, fails=True)
    assert run(tmp_path, *words, "--id-field", "submission.question_id")["accuracy"]["n"] == QUESTIONS


def test_wrong_use_is_one_sentence(tmp_path, asked):
    _, said = asked
    good, annotations = write(tmp_path / "vqa.json", LAYOUTS["vqa.json"](said)), tmp_path / "annotations.json"
    odd, few = write(tmp_path / "odd.json", [{"id": 1, "text": "x"}]), write(tmp_path / "few.json", [{"question_id": 0, "answer": "x"}])
    wrong, other = write(tmp_path / "ref.json", {"annotations": [{"id": 3}]}), write(tmp_path / "ref2.json", {"x": 1})
    cases = [
        ((good, annotations), [], "--variant: missing; VQA answers are normalised"),
        ((good, annotations), ["--variant", "best"], "--variant best: unknown; known: published, vqa_eval, evalai"),
        ((good, annotations), ["--spice", tmp_path], "is for captions, and references of this layout (VQA annotations)"),
        ((odd, annotations), [], "has the fields id, text, which are of no known layout"),
        ((good, wrong), [], "annotations[0]: has no field 'question_id'"),
        ((good, other), [], "is of no known layout of references"),
        ((few, annotations), ["--variant", "evalai"], "nothing was said of 39 of 40 samples"),
    ]
    for (predictions, references), words, message in cases:
        said_of_it = run(tmp_path, "--predictions", predictions, "--references", references, *words, fails=True)
        assert message in said_of_it
    assert "--references: missing" in run(tmp_path, "--predictions", good, fails=True)


@pytest.mark.slow
def test_coco_captions_and_how_they_are_printed(tmp_path):
    references = [["a red dog runs", "a dog on a hill"], ["a green car"], ["two birds in a tree", "birds sing"], ["a child with a ball"]]
    said = ["a red dog runs", "a red car", "birds", ""]
    annotations = [{"image_id": 10 + n, "caption": text} for n, group in enumerate(references) for text in group]
    truth = write(tmp_path / "captions_val2014.json", {"images": [{"id": 10 + n} for n in range(4)], "annotations": annotations})
    predictions = write(tmp_path / "results.json", [{"image_id": 10 + n, "caption": text} for n, text in enumerate(said)])
    output = tmp_path / "out.json"
    words = ["--predictions", str(predictions), "--references", str(truth), "--resamples", "20", "--output", str(output)]
    done = CliRunner().invoke(cli, ["rescore", *words])
    found = json.loads(output.read_text())
    flat = iter(captions.tokenize([text for group in references for text in group] + said))
    scorer = captions.CaptionScorer([[next(flat) for _ in group] for group in references], None)
    for name, measure in scorer.measures(list(flat), [name for name in captions.ALL_METRICS if name != "meteor"]).items():
        assert found[name]["value"] == pytest.approx(float(measure.close(measure.rows.sum(axis=0))), abs=1e-6)
    assert 0 < found["meteor"]["low"] < found["meteor"]["value"] < 1
    assert found["absent"].keys() == {"spice", "spider"}
    assert re.search(r"^cider_d +\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]  n=4$", done.output, re.MULTILINE)
    assert "spice, spider: needs the jars of Stanford CoreNLP" in done.output
