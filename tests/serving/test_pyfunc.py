"""Rows of a table: a column per modality, a column of any media in any order, and what is refused."""

from __future__ import annotations

import base64
import json

import pandas as pd
import pytest

from anymal.errors import DataError
from anymal.registry import _bundle_rows, _signature
from anymal.serving import pyfunc
from anymal.serving.answer import Request, answer
from anymal.serving.pyfunc import _load_pyfunc
from tests import tiny
from tests.model.test_bundle import make

MODALITIES = ("image", "audio", "imu")


@pytest.fixture(scope="module")
def files(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, content in tiny.MEDIA.values():
        (folder / name).write_bytes(content())
    make(tiny_model, str(folder / "bundle"), MODALITIES)
    return {modality: folder / name for modality, (name, _) in tiny.MEDIA.items()}


@pytest.fixture(scope="module")
def predictor(files, tiny_model):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny_model)
        yield _load_pyfunc(str(files["image"].parent / "bundle"))


@pytest.fixture
def sent(files):
    return {modality: base64.b64encode(files[modality].read_bytes()).decode() for modality in MODALITIES}


def listed(sent, *modalities):
    return json.dumps([{"modality": modality, "data": sent[modality]} for modality in modalities])


def test_rows_of_all_kinds_are_answered_as_requests(predictor, files, sent):
    rows = [
        {"image": sent["image"], "question": "what colour ?"}, {"audio": f"data:audio/wav;base64,{sent['audio']}", "question": None},
        {"imu": sent["imu"], "image": sent["image"], "question": "yes ?"}, {"question": "what is red ?"},
        {"media": listed(sent, "imu", "image", "image", "audio"), "question": "yes ?"}, {"media": listed(sent, "audio", "image"), "question": " "},
        {"media": listed(sent, "audio", "image"), "question": "is <audio> the sound of <image> ?"}, {"media": "[]", "question": "a ?"},
    ]  # fmt: skip
    path = {modality: (modality, files[modality]) for modality in MODALITIES}
    requests = [
        Request("what colour ?", [path["image"]]), Request(None, [path["audio"]]), Request("yes ?", [path["image"], path["imu"]]),
        Request("what is red ?"), Request("yes ?", [path["imu"], path["image"], path["image"], path["audio"]]),
        Request(None, [path["audio"], path["image"]]), Request("is <audio> the sound of <image> ?", [path["audio"], path["image"]]), Request("a ?"),
    ]  # fmt: skip
    expected = answer(predictor._model, requests, max_new_tokens=5, batch_size=1)
    assert predictor.predict(pd.DataFrame(rows)) == expected
    short = answer(predictor._model, requests, max_new_tokens=2, batch_size=1)
    assert predictor.predict(pd.DataFrame(rows), {"max_new_tokens": 2}) == short != expected


@pytest.mark.parametrize(("row", "said"), [
    ({"image": "red.png"}, "row 1, column image: 'red.png'… is neither base64 nor a data URI"),
    ({"image": "aGVsbG8="}, "row 1, column image: cannot be read as a picture"),
    ({"media": "{"}, "row 1, column media: is no JSON"),
    ({"media": "[" * 100_000}, "row 1, column media: is no JSON"),
    ({"media": '{"modality": "image"}'}, "row 1, column media: holds dict; send a list"),
    ({"media": json.dumps([1] * 33)}, "row 1, column media: holds 33 items; send a list of at most 32"),
    ({"media": '["image"]'}, "row 1, column media, item 0: must be an object"),
    ({"media": '[{"modality": "image", "path": "red.png"}]'}, "row 1, column media, item 0: must be an object"),
    ({"media": '[{"modality": "image", "data": 5}]'}, "row 1, column media, item 0: must be an object"),
    ({"media": '[{"modality": "video", "data": "aGVsbG8="}]'}, "row 1: this model has no projector for 'video'; it reads audio, image, imu"),
    ({"media": '[{"modality": "audio", "data": "aGVsbG8="}]'}, "row 1, column media, item 0: cannot be read as a sound"),
    ({"media": '[{"modality": "imu", "data": "aGVsbG8="}]', "image": "aGVsbG8="}, "row 1: has both the column media and the column image"),
    ({"question": "what is <image> ?"}, "row 1: the question takes <image>, but the files given are none"),
    ({"question": None}, "row 1: there is neither a question nor a file"),
])  # fmt: skip
def test_mistakes_name_the_row(predictor, row, said):
    with pytest.raises(DataError) as caught:
        predictor.predict(pd.DataFrame([{"question": "a ?"}, {"question": "what ?", **row}]))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_media_above_the_limit_are_refused_before_they_are_parsed(predictor, monkeypatch):
    monkeypatch.setattr(pyfunc, "MAX_MEDIUM_BYTES", 2**20)
    with pytest.raises(DataError, match="row 0, column media: more than 1 MiB"):
        predictor.predict(pd.DataFrame([{"media": json.dumps([{"modality": "image", "data": "A" * 2**21}])}]))


def test_the_registered_signature_lists_the_columns():
    signature, example = _signature(_bundle_rows({"encoders": {"audio": None, "image": "x"}, "inference": {"max_new_tokens": 7}}))
    assert [(column["name"], column["type"], column["required"]) for column in signature.inputs.to_dict()] == [
        (name, "string", False) for name in ("audio", "image", "media", "question")]
    assert set(example.columns) == {"image", "question"}
    assert signature.params.to_dict()[0]["name"] == "max_new_tokens"
