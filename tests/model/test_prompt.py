"""Templates as data, and the one way from messages to token pieces."""

import pytest
import torch
from transformers import AutoTokenizer

from anymal.errors import DataError
from anymal.model.prompt import Medium, Prompt, Template, tokenize
from tests.tiny import make_llm


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(make_llm(tmp_path_factory.mktemp("llm") / "tiny-llm"))


def media(*modalities):
    return [Medium(modality, torch.zeros(1, 1)) for modality in modalities]


def texts(tokenizer, template, modalities, question=None):
    pieces = tokenize(Prompt(template.messages(modalities, question), media(*modalities)), tokenizer)
    assert [medium.modality for medium in pieces.media] == list(modalities)
    return [tokenizer.decode(ids) for ids in pieces.texts]


def test_the_medium_in_the_system_message_and_after_the_instruction(tokenizer):
    """Both orders of the paper: appendix B's, and `[instruction, medium]` of section 3.2."""
    before = texts(tokenizer, Template("look at {media} .", "{question}"), ["image"], "what is red ?")
    assert before == ["<s>system\nlook at ", " .</s>\n<s>user\nwhat is red ?</s>\n<s>assistant\n"]
    after = texts(tokenizer, Template(None, "{question} {media}"), ["image"], "what is red ?")
    assert after == ["<s>user\nwhat is red ? ", "</s>\n<s>assistant\n"]


def test_any_number_of_media_stand_in_order_on_lines_of_their_own(tokenizer):
    found = texts(tokenizer, Template(None, "{media}\n{question}"), ["image", "image", "imu"], "yes ?")
    assert found == ["<s>user\n", "\n", "\n", "\nyes ?</s>\n<s>assistant\n"]


def test_media_are_introduced_where_the_template_places_them(tokenizer):
    template = Template(None, "{media}\n{question}", {"image": "the picture is {medium} .", "audio": "the sound is {medium} ."})
    found = texts(tokenizer, template, ["image", "imu", "audio"], "yes ?")
    assert found == ["<s>user\nthe picture is ", " .\n", "\nthe sound is ", " .\nyes ?</s>\n<s>assistant\n"]
    assert template.messages(["audio"], "is <audio> red ?") == [{"role": "user", "content": "is <audio> red ?"}]


def test_a_question_can_place_the_media_itself(tokenizer):
    template = Template("look at {media}", "{media}\n{question}")
    found = texts(tokenizer, template, ["audio", "image"], "is <audio> the sound of <image> ?")
    assert found == ["<s>system\nlook at </s>\n<s>user\nis ", " the sound of ", " ?</s>\n<s>assistant\n"]


def test_text_alone_is_one_piece(tokenizer):
    pieces = tokenize(Prompt([{"role": "user", "content": "what is red ?"}]), tokenizer)
    assert pieces.media == () and len(pieces.texts) == 1


def test_what_is_filled_in_is_not_filled_in_again():
    turns = Template(None, "{question} {media}").messages(["image"], "what is {media} or {question} ?")
    assert turns == [{"role": "user", "content": "what is {media} or {question} ? <image>"}]


@pytest.mark.parametrize(("content", "given", "said"), [
    ("<image>", [], "the prompt's placeholders are ['image'] but the inputs given are none"),
    ("<image>", ["image", "image"], "the prompt's placeholders are ['image'] but the inputs given are ['image', 'image']"),
    ("<image> <audio>", ["audio", "image"], "the prompt's placeholders are ['image', 'audio'] but the inputs given are ['audio', 'image']"),
    ("red", ["imu"], "the prompt's placeholders are none but the inputs given are ['imu']"),
])  # fmt: skip
def test_too_few_too_many_and_wrongly_ordered_media_are_refused(tokenizer, content, given, said):
    with pytest.raises(DataError) as caught:
        tokenize(Prompt([{"role": "user", "content": content}], media(*given)), tokenizer)
    assert str(caught.value) == f"{said}; give one input per placeholder, in order"
