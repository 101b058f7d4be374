"""Each layout read, written and read again; what is wrong is named by file, place and field."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anymal.errors import DataError
from anymal.evaluation.formats import coco, documents, llava, lmms, questions, vqa

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SAID = st.dictionaries(st.one_of(st.integers(0, 10**12).map(str), st.text("abcü_-.", min_size=1, max_size=8)), TEXT, min_size=1, max_size=6)
SAMPLE = {"doc_id": 0, "target": "cat", "filtered_resps": ["a cat"], "resps": [["a cat."]], "doc_hash": "0", "exact_match": 1.0, "input": "What?",
          "doc": {"question_id": 77}, "submission": {"question_id": 77, "answer": "a cat"}}  # fmt: skip


def put(folder, document, name="file.json"):
    path = folder / name
    lines = "".join(json.dumps(line) + "\n" for line in document) if name.endswith("l") else json.dumps(document)
    path.write_text(document if isinstance(document, str) else lines, encoding="utf-8")
    return path


@pytest.mark.parametrize(("write", "read"), [
    (coco.write_captions, coco.read_captions), (vqa.write_answers, vqa.read_answers), (vqa.write_vizwiz_answers, vqa.read_vizwiz_answers),
    (lambda path, said: llava.write_answers(path, [(key, "Q?", text) for key, text in said.items()], model="m"), llava.read_answers),
    (lambda path, said: lmms.write_samples(path, [lmms.Sample(key, text, "t") for key, text in said.items()]),
     lambda path: {sample.doc_id: sample.said for sample in lmms.read_samples(path)}),
])  # fmt: skip
@settings(deadline=None)
@given(said=SAID)
def test_predictions_come_back_as_they_were(tmp_path_factory, write, read, said):
    path = tmp_path_factory.mktemp("formats") / "predictions"
    write(path, said)
    assert read(path) == said
    first = path.read_bytes()
    write(path, said)
    assert path.read_bytes() == first
    assert [one.name for one in path.parent.iterdir()] == ["predictions"], "no half-written file stays"


def test_whole_numbers_are_numbers_in_files_and_other_names_are_text(tmp_path):
    path = tmp_path / "said.json"
    vqa.write_answers(path, {"12": "yes", "007": "no", "x1": "two"})
    assert [entry["question_id"] for entry in json.loads(path.read_text())] == [12, "007", "x1"]


def test_llava_and_lmms_lines_have_their_fields(tmp_path):
    path = tmp_path / "lines.jsonl"
    llava.write_answers(path, [("5", "What?", "a cat")], model="ours")
    assert json.loads(path.read_text()) == {"question_id": 5, "prompt": "What?", "text": "a cat", "answer_id": "ours-5", "model_id": "ours",
                                            "metadata": {}}  # fmt: skip
    lmms.write_samples(path, [lmms.Sample("0", "a cat", "cat", "What?", {"exact_match": 1.0})])
    line = json.loads(path.read_text())
    assert (line["doc_id"], line["filtered_resps"], line["target"], line["input"], line["exact_match"]) == (0, ["a cat"], "cat", "What?", 1.0)


def test_references_of_the_official_layouts(tmp_path):
    found = coco.read_references(put(tmp_path, {"images": [{"id": 1}], "annotations": [{"image_id": 1, "id": 9, "caption": c} for c in ("a", "b")]}))
    assert found == {"1": ["a", "b"]}
    answers = [{"answer_id": 1, "answer": "yes", "answer_confidence": "maybe"}, {"answer_id": 2, "answer": "no"}]
    asked = vqa.read_annotations(put(tmp_path, {"annotations": [{"question_id": 3, "image_id": 1, "answers": answers}]}))
    assert asked == {"3": vqa.Annotation(["yes", "no"], "1")}
    vizwiz = vqa.read_vizwiz_annotations(put(tmp_path, [{"image": "VizWiz_val_0.jpg", "question": "?", "answers": answers, "answerable": 1}]))
    assert vizwiz == {"VizWiz_val_0.jpg": vqa.Annotation(["yes", "no"], "VizWiz_val_0.jpg")}
    pope = questions.read_pope(put(tmp_path, [{"question_id": 1, "image": "i.jpg", "text": "Is it?", "label": "no"}], "pope.jsonl"))
    assert pope == {"1": questions.YesNo(False, "i.jpg")}
    science = questions.read_scienceqa(put(tmp_path, {"4": {"question": "?", "choices": ["x", "y"], "answer": 1, "split": "test"}}))
    assert science == {"4": questions.Problem(["x", "y"], 1)}


def test_lmms_samples_with_and_without_what_only_some_versions_write(tmp_path):
    bare = {name: SAMPLE[name] for name in ("doc_id", "target", "filtered_resps")} | {"doc_id": 1, "filtered_resps": [["no"]]}
    first, second = lmms.read_samples(put(tmp_path, [SAMPLE, bare], "model_samples_vqav2.jsonl"))
    assert (first.doc_id, first.said, first.target, first.prompt, first.scores) == ("0", "a cat", "cat", "What?", {"exact_match": 1.0})
    assert (second.doc_id, second.said, second.prompt) == ("1", "no", "")
    assert list(lmms.named_by([first], "doc.question_id", tmp_path)) == list(lmms.named_by([first], "submission.question_id", tmp_path)) == ["77"]
    with pytest.raises(DataError, match="entry 2: has no field 'submission'"):
        lmms.named_by([first, second], "submission.question_id", tmp_path / "x.jsonl")
    with pytest.raises(DataError, match="entry 2: doc_id 0 stands twice"):
        lmms.named_by([first, first], "doc_id", tmp_path / "x.jsonl")


def test_lmms_results_round_trip_with_intervals_beside(tmp_path):
    path = tmp_path / "results.json"
    figure = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 20}
    lmms.write_results(path, {"vqav2": {"exact_match": figure}}, model="ours", prompts={"vqav2": "Answer."})
    document = json.loads(path.read_text())
    assert document["results"] == {"vqav2": {"alias": "vqav2", "exact_match,none": 0.5, "exact_match_stderr,none": "N/A"}}
    assert document["intervals"] == {"vqav2": {"exact_match": [0.4, 0.6]}}
    assert document["n-samples"] == {"vqav2": {"original": 20, "effective": 20}}
    assert lmms.read_results(path) == {"vqav2": {"exact_match": 0.5}}
    real = {"results": {"gsm": {"alias": "gsm", "exact_match,strict": 0.25, "exact_match_stderr,strict": 0.01, "acc,none": 1}}}
    assert lmms.read_results(put(tmp_path, real)) == {"gsm": {"exact_match,strict": 0.25, "exact_match_stderr,strict": 0.01, "acc": 1.0}}


WRONG = [
    (coco.read_captions, "", "is empty"),
    (coco.read_captions, "{nonsense", "line 1: is neither JSON nor a file of JSON lines"),
    (coco.read_captions, '{"a": 1}\n{"b": 2,}\n', "line 2: is neither JSON"),
    (coco.read_captions, [], "must be a list of objects that is not empty"),
    (coco.read_captions, {"annotations": []}, "must be a list of objects"),
    (coco.read_captions, [{"image_id": 1}], "entry 1: has no field 'caption'"),
    (coco.read_captions, [{"image_id": 1, "caption": "x"}, {"image_id": 1, "caption": "y"}], "entry 2: image_id 1 stands twice"),
    (coco.read_captions, [{"image_id": 1.5, "caption": "x"}], "entry 1: image_id must be text or a whole number, found a number (1.5)"),
    (coco.read_captions, [{"image_id": True, "caption": "x"}], "entry 1: image_id must be text or a whole number, found true or false"),
    (coco.read_captions, [{"image_id": 1, "caption": None}], "entry 1: caption must be text, found null"),
    (coco.read_references, {"images": []}, "has no field 'annotations'"),
    (coco.read_references, {"annotations": [{"image_id": 1, "caption": "x"}, {"image_id": 1}]}, ": annotations[1]: has no field 'caption'"),
    (vqa.read_answers, [{"question_id": 1, "answer": ["x"]}], "entry 1: answer must be text, found a list"),
    (vqa.read_annotations, {"annotations": [{"question_id": 1, "image_id": 2, "answers": []}]}, "annotations[0]: answers is empty"),
    (vqa.read_annotations, {"annotations": [{"question_id": 1, "image_id": 2, "answers": [{"answer": "x"}, {}]}]},
     "annotations[0].answers[1]: has no field 'answer'"),
    (vqa.read_annotations, {"annotations": [{"question_id": 1, "image_id": 2, "answers": ["x"]}]},
     "annotations[0].answers[0]: has no field 'answer'"),
    (vqa.read_vizwiz_annotations, [{"answers": [{"answer": "x"}]}], "entry 1: has no field 'image'"),
    (llava.read_answers, {"question_id": 1}, "entry 1: has no field 'text'"),
    (lmms.read_samples, [{**SAMPLE, "filtered_resps": [[-3.0, False]]}], "entry 1: filtered_resps must hold what was said as text"),
    (lmms.read_samples, [{"doc_id": 1, "filtered_resps": ["x"]}], "entry 1: has no field 'target'"),
    (lmms.read_results, {"config": {}}, "has no field 'results'"),
    (lmms.read_results, {"results": {"task": 3}}, "results.task must be an object"),
    (questions.read_pope, [{"question_id": 1, "image": "i", "label": "maybe"}], "entry 1: label must be yes or no, found 'maybe'"),
    (questions.read_scienceqa, [1], "must be an object of problems by id"),
    (questions.read_scienceqa, {"7": {"choices": ["x", "y"], "answer": 2}}, ": 7: answer 2 is no place in choices, which has 2"),
    (questions.read_scienceqa, {"7": {"choices": ["x"], "answer": 0}}, ": 7: choices must be 2 to 26 texts, found 1 entries"),
    (questions.read_scienceqa, {"7": {"choices": ["x", 2], "answer": 0}}, ": 7: choices must be 2 to 26 texts"),
]


@pytest.mark.parametrize(("read", "document", "message"), WRONG)
def test_a_wrong_layout_names_file_place_and_field(tmp_path, read, document, message):
    path = put(tmp_path, document)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))


def test_files_that_cannot_be_read_are_one_sentence(tmp_path):
    with pytest.raises(DataError, match="cannot be read as text"):
        documents.read_json(tmp_path / "missing.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as text"):
        documents.read_json(tmp_path / "binary")
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbf[1]")
    assert documents.read_json(tmp_path / "marked") == [1], "a byte order mark is no content"
