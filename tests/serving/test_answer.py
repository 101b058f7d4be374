"""Requests of mixed modalities, batched, with and without media; and what is said of requests that cannot be answered."""

from __future__ import annotations

import dataclasses

import pytest

from anymal.errors import DataError
from anymal.model.loading import load_bundle
from anymal.model.prompt import Template
from anymal.serving import answer as answering
from anymal.serving.answer import Content, Request, answer, describe
from tests import tiny
from tests.model.test_bundle import make

MODALITIES = ("image", "audio", "imu", "video")


@pytest.fixture(scope="module")
def files(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, content in tiny.MEDIA.values():
        (folder / name).write_bytes(content())
    make(tiny_model, str(folder / "bundle"), MODALITIES)
    return {modality: folder / name for modality, (name, _) in tiny.MEDIA.items()}


@pytest.fixture(scope="module")
def model(files, tiny_model):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny_model)
        yield load_bundle(files["image"].parent / "bundle")


@pytest.fixture
def requests(files):
    return [
        Request(None, [("image", files["image"])]), Request(None, [("audio", files["audio"])]), Request("what is red ?"),
        Request("is <audio> the sound of <image> ?", [("audio", files["audio"]), ("image", files["image"])]),
        Request("yes or no ?", [(modality, files[modality]) for modality in MODALITIES]),
        Request(None, [("imu", files["imu"]), ("video", files["video"])]), Request("what colour ?", [("image", files["image"])] * 2),
    ]  # fmt: skip


def test_a_mixed_batch_is_answered_as_one_by_one(model, requests, monkeypatch):
    alone = [answer(model, [request], max_new_tokens=8, batch_size=1)[0] for request in requests]
    assert answer(model, requests, max_new_tokens=8, batch_size=len(requests)) == alone
    assert len(set(alone)) == len(alone)
    monkeypatch.setattr(answering, "BATCHES_AT_ONCE", 1)
    assert answer(model, requests, max_new_tokens=8, batch_size=3) == alone


def test_content_is_answered_as_the_file(model, files):
    for modality in MODALITIES:
        sources = files[modality], Content("upload", files[modality].read_bytes())
        by_file, by_content = (answer(model, [Request(None, [(modality, source)])], max_new_tokens=8, batch_size=1) for source in sources)
        assert by_file == by_content, modality


def test_the_watcher_sees_what_is_fed_in_order(model, requests):
    seen = []
    answer(model, requests, max_new_tokens=1, batch_size=2, watch=lambda modality, array: seen.append((modality, array.shape)))
    assert [modality for modality, _ in seen] == [modality for request in requests for modality, _ in request.media]
    assert seen[0] == ("image", (3, 224, 224))


def test_a_description_names_each_modality_once():
    assert describe(["image", "imu"]) == "Describe the picture and the motion."
    assert describe(["audio", "smell", "audio", "video"]) == "Describe the sounds, the smell and the video."
    assert describe(["image", "image"]) == "Describe the pictures."


def test_several_media_use_the_prompt_for_pairs_where_there_is_one(model, files, monkeypatch):
    media = [("image", files["image"]), ("audio", files["audio"])]
    plain = answer(model, [Request("what is red ?", media)], max_new_tokens=8, batch_size=1)
    monkeypatch.setitem(model.templates, "image", {**model.templates["image"], "pair": Template("look at {media}", "a dog . {question}")})
    assert answer(model, [Request("what is red ?", media)], max_new_tokens=8, batch_size=1) != plain
    turned = answer(model, [Request("what is red ?", media[::-1])], max_new_tokens=8, batch_size=1)  # the first medium's prompt counts
    monkeypatch.undo()
    assert answer(model, [Request("what is red ?", media[::-1])], max_new_tokens=8, batch_size=1) == turned


def test_what_cannot_be_answered_is_said_before_any_file_is_read(model, files, tmp_path):
    missing = tmp_path / "none.png"
    for request, said in [
        (Request("is <audio> <image> ?", [("image", missing), ("audio", missing)]), "question takes <audio>, <image>, but the files given are <i"),
        (Request("what ?", [("touch", missing)]), "no projector for 'touch'; it reads audio, image, imu, video"),
        (Request(None), "neither a question nor a file"),
        (Request("what ?", [("image", missing)]), r"none\.png: no such file"),
        (Request("what ?", [("imu", Content("row 3", b""))]), "row 3: is empty"),
        (Request("red " * 3000), "more than the 2048 that the model can read"),
    ]:  # fmt: skip
        with pytest.raises(DataError, match=said) as caught:
            answer(model, [Request("what ?"), request], max_new_tokens=2, batch_size=2)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="request 7: there is neither"):
        answer(model, [dataclasses.replace(Request(None), name="request 7")], max_new_tokens=2, batch_size=2)


def test_templates_that_lack_a_prompt_or_a_place_are_named(model, files, monkeypatch):
    monkeypatch.setitem(model.templates, "image", {"caption": Template(None, "describe : <image>")})
    with pytest.raises(DataError, match="the checkpoint of image was trained without a template 'question'; it has caption"):
        answer(model, [Request("what ?", [("image", files["image"])])], max_new_tokens=2, batch_size=1)
    monkeypatch.setitem(model.templates, "image", {"question": Template(None, "<image> {question}")})
    with pytest.raises(DataError, match="the prompt takes <image>, but the files given are <image>, <image>"):
        answer(model, [Request("what ?", [("image", files["image"])] * 2)], max_new_tokens=2, batch_size=1)
