import json

import pytest
import torch

from anymal.data.features import INDEX, FeatureStore, write_feature_shard
from anymal.errors import DataError
from anymal.model.anymal import AnyMAL
from anymal.model.llm import load_llm
from anymal.model.prompt import Template
from anymal.training.data import CaptionData, GroundingControls
from tests.tiny import make_llm, sample

CAPTIONS = ["a red apple", "left of a dog", "two blue cat"]
QUESTIONS = [{"question": "what colour ?", "answer": "red", "kind": "colour"}, {"question": "is there a cat ?", "answer": "yes", "kind": "object"}]
PLAIN = {"question_share": 0.0, "target_captions": None, "answer_forms": {}, "question_kinds": None}


def write_features(folder, captions, questions, count=6):
    """Features of one split whose samples all have these captions and questions."""
    folder.mkdir()
    metas = [{**sample("k", "train").meta, "key": f"k{i}", "captions": captions, "questions": questions} for i in range(count)]
    write_feature_shard(folder / "train-00000.safetensors", torch.randn(count, 2, 8, generator=torch.Generator().manual_seed(0)), metas)
    document = {"modality": "audio", "encoder": {}, "tokens": 2, "dim": 8, "frames": 1, "shards": [{"name": "train-00000", "count": count}]}
    (folder / INDEX).write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    llm, tokenizer = load_llm(make_llm(root / "llm"), dtype="float32", quantization="none", attention="eager")
    store = FeatureStore(write_features(root / "features", CAPTIONS, QUESTIONS), "train")
    return llm, tokenizer, store


def make_model(parts, introduction="{medium}"):
    llm, tokenizer, _ = parts
    texts = {"caption": "{media}\nwhat is there ?", "question": "{media}\n{question}"}
    templates = {"audio": {name: Template(None, text, {"audio": introduction}) for name, text in texts.items()}}
    return AnyMAL(llm, tokenizer, {"audio": torch.nn.Identity()}, templates=templates, metadata={}, encoder_folders={})


def examples(parts, steps=12, **knobs):
    """(text around the medium, target) of all samples of some batches."""
    model, (_, tokenizer, store) = make_model(parts, knobs.pop("introduction", "{medium}")), parts
    data = CaptionData(model, store, "audio", batch_size=4, seed=1, **PLAIN | knobs)
    said = []
    for batch in map(data.batch, range(steps)):
        for (turn,) in batch.dialogues:
            assert turn.answer[-1] == model.end_of_turn
            said.append((" # ".join(tokenizer.decode(text) for text in turn.prompt.texts), tokenizer.decode(turn.answer[:-1])))
    return said


def test_the_first_captions_are_the_targets(parts):
    assert {target.strip() for _, target in examples(parts)} == set(CAPTIONS)
    assert {target.strip() for _, target in examples(parts, target_captions=1)} == {CAPTIONS[0]}
    assert {target.strip() for _, target in examples(parts, target_captions=2)} == set(CAPTIONS[:2])


def test_only_the_kinds_asked_for_are_trained_on(parts):
    asked = examples(parts, question_share=0.99)
    assert {target.strip() for prompt, target in asked if "is there a cat" in prompt or "what colour" in prompt} == {"red", "yes"}
    asked = examples(parts, question_share=0.99, question_kinds=["object"])
    assert {target.strip() for prompt, target in asked if "is there a cat" in prompt} == {"yes"}
    assert not any("what colour" in prompt for prompt, _ in asked)


def test_an_answer_takes_the_form_of_its_kind(parts):
    asked = examples(parts, question_share=0.99, answer_forms={"colour": "the picture is {answer} ."})
    targets = {target.strip() for prompt, target in asked if "what colour" in prompt}
    assert targets == {"the picture is red ."}
    assert {target.strip() for prompt, target in asked if "is there a cat" in prompt} == {"yes"}


def test_a_medium_is_introduced_where_it_stands(parts):
    (prompt, _), *_ = examples(parts, introduction="the sound is {medium} .")
    assert "the sound is # " in prompt.replace("is  #", "is #")
    (bare, _), *_ = examples(parts)
    assert "the sound" not in bare


def test_kinds_that_no_sample_asks_are_an_error(parts):
    with pytest.raises(DataError, match="the features hold 0 samples with a question, fewer than one batch of 4"):
        examples(parts, question_share=0.5, question_kinds=["direction"])


def test_controls_need_two_samples(parts):
    with pytest.raises(DataError, match="holds 1 samples; at least 2 are needed"):
        GroundingControls(make_model(parts), parts[2], "audio", samples=1, batch_size=2, seed=0)
