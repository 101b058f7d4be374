"""The bundle as an MLflow model: what it is asked and answers is what the server is asked and answers, and without a guard it does not load."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow.pyfunc.scoring_server import infer_and_parse_data

from anymal.errors import AnymalError, ConfigError
from anymal.registry import _bundle_chat, _signature
from anymal.safety.models import load_guard
from anymal.serving.openai import BadRequest, parse
from anymal.serving.pyfunc import ADDRESS, ChatPredictor, _load_pyfunc
from tests.model.test_bundle import INFERENCE, make
from tests.safety.tiny_guard import make_guard
from tests.serving.running_server import MODEL, Running, asked, part, running, text

MODALITIES = ("image", "audio", "imu", "video")
LONG = "what is red ? " * 1500
"""More than the guard checks."""


@pytest.fixture(scope="module")
def bundle(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tiny model, and the guard that the environment names."""
    root = tmp_path_factory.mktemp("pyfunc")
    make(tiny_model, str(root / MODEL), MODALITIES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny_model)
        patch.setenv("ANYMAL_GUARD", str(make_guard(root / "guard", root / "assets")))
        yield root / MODEL


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> ChatPredictor:
    return _load_pyfunc(str(bundle))


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[Running]:
    with running(bundle, models=load_guard(bundle.parent / "guard")) as found:
        yield found


def lasting(body: dict[str, Any]) -> dict[str, Any]:
    """What of an answer does not name the time and the request."""
    return {name: value for name, value in body.items() if name not in ("id", "created")}


@pytest.mark.parametrize("body", [
    asked(text("what is red ?")), {"messages": [{"role": "user", "content": "what is red ?"}]}, asked(part("image"), text("what colour ?")),
    asked(text("is"), part("audio"), text("the sound of"), part("video"), text("?"), max_tokens=3), asked(part("imu")),
    asked(text("what is red ?"), max_tokens=20, temperature=1.9, top_p=0.9, seed=3), asked(text("what is red ?"), stop=["a", "e"], max_tokens=20),
    asked(text(LONG)),
])  # fmt: skip
def test_an_answer_is_the_servers(predictor: ChatPredictor, server: Running, body: dict[str, Any]):
    wanted = server.post(body).json()
    said = predictor.predict(body)
    assert isinstance(said, dict) and said["object"] == "chat.completion" and set(said) == set(wanted)
    assert lasting(said) == lasting(wanted)
    refused = wanted["choices"][0]["finish_reason"] == "content_filter"
    assert refused == (LONG in json.dumps(body)), wanted


def test_a_table_and_what_mlflow_makes_of_inputs_are_answered_alike(predictor: ChatPredictor):
    bodies = [asked(part("image"), text("what colour ?")), asked(text("what is red ?"), max_tokens=2, stop=["b"])]
    wanted = [lasting(predictor.predict(body)) for body in bodies]
    table = pd.DataFrame(bodies)
    assert table["max_tokens"].isna().any()
    records = infer_and_parse_data({"dataframe_records": bodies})
    for several in (bodies, table, records):
        assert [lasting(said) for said in predictor.predict(several)] == wanted
    assert [lasting(predictor.predict(infer_and_parse_data({"inputs": body}))) for body in bodies] == wanted


def test_a_stream_is_the_servers(predictor: ChatPredictor, server: Running):
    for question in ("what is red ?", LONG):
        body = asked(part("image"), text(question), stream=True, stream_options={"include_usage": True})
        lines = [line.removeprefix("data: ") for line in server.post(body).text.splitlines() if line]
        assert lines.pop() == "[DONE]"
        chunks = list(predictor.predict_stream(body))
        assert len(chunks) > 2 and len({chunk["id"] for chunk in chunks}) == 1
        assert [lasting(chunk) for chunk in chunks] == [lasting(json.loads(line)) for line in lines]


def test_a_stream_that_is_left_frees_its_place(predictor: ChatPredictor):
    chunks = predictor.predict_stream(asked(text("what is red ?"), max_tokens=1000))
    next(chunks)
    engine = predictor._desk.host.served.engine
    assert sum(engine.load) == 1
    chunks.close()
    predictor.predict(asked(text("what is red ?")))
    assert sum(engine.load) == 0


@pytest.mark.parametrize(("body", "said"), [
    ({}, "messages: field required"), (asked(text("x"), n=2), "n: input should be 1"), (asked(text("x"), tempurature=1), "tempurature: is not supp"),
    (asked(text("x"), stream=True), "stream: MLflow's predict gives whole answers"),
    ({**asked(text("x")), "model": "gpt"}, "model 'gpt' is not loaded here, but 'bundle'"),
    (asked(part("image", "!!!!")), "messages[0].content[0]: '!!!!'… is neither base64"),
    (asked({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}), "fetches no media from addresses"),
    (asked(text("what is <image> ?")), "holds a placeholder"),
])  # fmt: skip
def test_mistakes_are_named(predictor: ChatPredictor, body: dict[str, Any], said: str):
    for given in (body, [body]):
        with pytest.raises(AnymalError) as caught:
            predictor.predict(given)
        assert said in str(caught.value) and "\n" not in str(caught.value)


def test_nothing_loads_without_a_whole_guard(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ANYMAL_GUARD", str(tmp_path / "none"))
    with pytest.raises(AnymalError, match="no such folder of a guard"):
        _load_pyfunc(str(bundle))
    for change in (lambda: monkeypatch.setenv("ANYMAL_GUARD", ""), lambda: monkeypatch.delenv("ANYMAL_GUARD")):
        change()
        with pytest.raises(ConfigError, match=r"ANYMAL_GUARD is not set: .*set it to the guard's folder or address, such as ANYMAL_GUARD=models:/"):
            _load_pyfunc(str(bundle))


def test_what_is_registered_shows_a_request_and_keeps_mlflow_from_dropping_parts_of_others():
    for encoders, parts in (({"audio": None, "image": "x"}, 2), ({"audio": None}, 1)):
        signature, example = _signature(_bundle_chat({"encoders": encoders, "inference": INFERENCE}))
        assert signature.inputs is None and signature.params is None
        assert len(parse(example).messages[0].content) == parts
        assert "choices" in signature.outputs.input_names()


def test_a_file_of_mlflow_that_names_no_version_is_an_error(bundle: Path, tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/bundle").symlink_to(bundle, target_is_directory=True)
    (tmp_path / ADDRESS).write_text("model_name: anymal\n")
    with pytest.raises(AnymalError, match=f"{ADDRESS}: holds no model_name and model_version"):
        _load_pyfunc(str(tmp_path / "data/bundle"))
    (tmp_path / ADDRESS).write_text("model_name: anymal\nmodel_version: '3'\n")
    predictor = _load_pyfunc(str(tmp_path / "data/bundle"))
    assert predictor.predict({**asked(text("what is red ?")), "model": "anymal/3"})["model"] == "anymal/3"
    with pytest.raises(BadRequest, match="model 'anymal/2' is not loaded here, but 'anymal/3'"):
        predictor.predict({**asked(text("what is red ?")), "model": "anymal/2"})
