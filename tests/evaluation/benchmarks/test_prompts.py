"""How samples are asked, by protocol, and what is taken for their answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from anymal.errors import ConfigError
from anymal.evaluation.benchmarks.declaration import Wording, declaration_of, declarations
from anymal.evaluation.benchmarks.items import Item, Medium
from anymal.evaluation.benchmarks.prompts import candidates, extract, messages
from anymal.model.prompt import Template

INTRODUCED = {name: f"The {name} is {{medium}}." for name in ("image", "audio", "video", "imu")}
TEMPLATES = {"caption": Template(None, "{media}\nWhat is it?", INTRODUCED), "question": Template("Look.", "{media}\n{question}", INTRODUCED)}


def item(modality="image", **changes):
    fields = {"question": "what color is it?", "options": ("red", "blue"), "answer": 0, "references": ("red",), **changes}
    return Item("1", Medium(modality, "a", Path("a")), **fields)


def asked(name, protocol, **changes):
    modality = declaration_of(name).modality or "audio"
    return messages(declaration_of(name).protocols[protocol], item(modality, **changes), TEMPLATES, name)


@pytest.mark.parametrize(("name", "protocol"), [(name, protocol) for name, one in declarations().items() for protocol in one.protocols])
def test_every_protocol_holds_the_medium_once_introduced_as_it_was_trained(name, protocol):
    found = asked(name, protocol, text="so nice", context="It is late.", ocr=("stop", "go"))
    modality = declaration_of(name).modality or "audio"
    text = "\n".join(message["content"] for message in found)
    assert text.count(f"The {modality} is <{modality}>.") == 1
    assert "{" not in text.replace('{"caption": ', "")
    if protocol == "paper":  # the role and the medium in the system message, the question in the user message
        assert [message["role"] for message in found] == ["system", "user"]
        assert f"<{modality}>" in found[0]["content"]
    if protocol == "lmms-eval":
        assert [message["role"] for message in found] == ["user"]


def test_the_words_of_some():
    assert asked("textvqa_ocr", "lmms-eval", ocr=("stop", "go")) == [{"role": "user", "content": (
        "The image is <image>.\nWhat color is it?\nReference OCR token: stop, go\nAnswer the question using a single word or phrase.")}]
    assert asked("scienceqa", "lmms-eval", context="It is late.") == [{"role": "user", "content": (
        "The image is <image>.\nContext: It is late.\nwhat color is it?\nA. red\nB. blue\n"
        "Answer with the option's letter from the given choices directly.")}]
    assert asked("hateful_memes", "paper", text="so nice")[0]["content"].endswith("The image is <image>.\nWords on the picture: so nice")
    assert asked("vqav2", "model")[1]["content"] == "The image is <image>.\nwhat color is it?"
    assert asked("clotho", "model") == [{"role": "user", "content": "The audio is <audio>.\nWhat is it?"}]


def test_lines_without_their_field_are_left_out():
    assert "Context" not in asked("scienceqa", "paper")[1]["content"]
    assert "Words read" not in asked("textvqa_ocr", "paper")[0]["content"]


def test_a_sample_cannot_place_a_medium():
    found = asked("vqav2", "paper", question="Is <image> here, or {media}, or {question}?")
    assert found[1]["content"].startswith("Is image here, or media, or question?")


def test_a_checkpoint_without_the_template_is_named():
    with pytest.raises(ConfigError, match=r"benchmarks.vqav2.protocol = model: the checkpoint of image was trained without a template 'question'"):
        messages(declaration_of("vqav2").protocols["model"], item(), {"caption": TEMPLATES["caption"]}, "vqav2")


@pytest.mark.parametrize(("said", "answer"), [
    ('{"caption": "A cat."}', "A cat."), ('Sure: {"caption": " A cat. "} done', "A cat."), ("A cat.", None), ('{"caption": ""}', None),
    ('{"text": "x"} {"caption": "B"}', "B"), ('{"caption": "A cat', None), ('{"caption": 3}', None)])
def test_captions_in_json(said, answer):
    assert extract("json_caption", said) == answer


def test_other_answers_are_scored_as_they_are():
    assert extract("choice", "B.") == "B." and extract("text", "") == ""


def test_likelihoods_are_of_what_is_asked_for():
    assert candidates(item(), "choice") == ["A", "B"] and candidates(item(options=("yes", "no")), "pope") == ["yes", "no"]


def test_a_protocol_without_a_place_for_the_medium_is_refused():
    with pytest.raises(ValueError, match=r"must hold \{media\} once"):
        Wording(user="{question}", extract="text")
