"""Conversations become the prompts that the command line and training use."""

from __future__ import annotations

import pytest

from anymal.errors import DataError
from anymal.model.loading import load_bundle
from anymal.model.prompt import Template
from anymal.serving.answer import Content, Request, messages_of
from anymal.serving.conversation import MediumPart, Turn, to_prompt
from tests import tiny
from tests.model.test_bundle import make


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    make(tiny_model, str(folder), ("image", "audio"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny_model)
        yield load_bundle(folder)


def part(modality):
    name, content = tiny.MEDIA[modality]
    return MediumPart(modality, Content(name, content()))


IMAGE, AUDIO = part("image"), part("audio")


def user(*parts):
    return Turn("user", parts)


@pytest.mark.parametrize(("parts", "question"), [
    ((IMAGE, "what colour ?"), "what colour ?"), (("what colour ?", IMAGE), "what colour ?"), ((IMAGE,), None), ((IMAGE, AUDIO), None),
    ((IMAGE, "what ?", AUDIO), "what ?"), (("Is", IMAGE, "or", AUDIO, "?"), "Is <image> or <audio>?"), (("Is ", IMAGE, " red ?"), "Is <image> red ?"),
    ((AUDIO, "and", IMAGE, "are one ?"), "<audio> and <image> are one ?"),
])
def test_one_turn_is_asked_as_the_command_line_asks(model, parts, question):
    made = to_prompt(model, [user(*parts)])
    media = [(found.modality, found.content) for found in parts if isinstance(found, MediumPart)]
    assert list(made.messages) == messages_of(model, Request(question, media))
    assert [medium.modality for medium in made.media] == [modality for modality, _ in media]
    model.tokenize(made)


def test_turns_follow_one_another_with_files_at_any_of_them(model):
    turns = [Turn("system", ("be brief .",)), user(IMAGE, "what colour ?"), Turn("assistant", ("red .",)), user("are you right ?"),
             Turn("assistant", ("yes .",)), user(AUDIO, "and what is it ?")]
    made = to_prompt(model, turns)
    assert [message["role"] for message in made.messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert made.messages[5]["content"] == "the sound is <audio> .\nand what is it ?" and made.messages[3]["content"] == "are you right ?"
    assert [medium.modality for medium in made.media] == ["image", "audio"]
    assert model.tokenize(made).media == tuple(made.media)


def test_a_prompt_with_files_in_its_system_message_joins_the_callers(model, monkeypatch):
    monkeypatch.setitem(model.templates["image"], "question", Template("you see {media}", "{question}", {"image": "{medium}"}))
    made = to_prompt(model, [Turn("system", ("be brief .",)), user(IMAGE, "what ?")])
    assert list(made.messages) == [{"role": "system", "content": "be brief .\nyou see <image>"}, {"role": "user", "content": "what ?"}]
    with pytest.raises(DataError, match=r"messages\[2\]: this model was trained to read files in the first turn only"):
        to_prompt(model, [user("hello ."), Turn("assistant", ("yes ?",)), user(IMAGE, "what ?")])


@pytest.mark.parametrize(("turns", "said"), [
    ([], "the roles are no message"), ([Turn("system", ("x",))], "the roles are system"), ([user("x"), user("y")], "the roles are user, user"),
    ([user("x"), Turn("assistant", ("y",))], "the user last"), ([user("what is <image> ?", IMAGE)], "holds a placeholder"),
    ([user("x"), Turn("assistant", (IMAGE,)), user("y")], "has the role assistant and a file"), ([user(" ")], "neither text nor a file"),
    ([user(MediumPart("smell", Content("x", b"")))], "no projector for 'smell'"),
    ([user(MediumPart("image", Content("messages[0].content[0]", b"no picture")))], r"messages\[0\].content\[0\]: cannot be read as a picture"),
])  # fmt: skip
def test_what_cannot_be_asked_is_named(model, turns, said):
    with pytest.raises(DataError, match=said):
        to_prompt(model, turns)
