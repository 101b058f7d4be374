"""Where shapes come from, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anymal.config import read_document
from anymal.data.features import INDEX
from anymal.errors import ConfigError
from anymal.planning.shapes import MediaShape, llm_config, media_shape

ROOT = Path(__file__).parent.parent.parent
PRODUCTION = read_document(ROOT / "params.production.yaml")


def test_known_models_need_no_files():
    found = llm_config("llama-2-70b-chat", None)
    assert (found["hidden_size"], found["num_hidden_layers"], found["num_key_value_heads"], found["vocab_size"]) == (8192, 80, 8, 32000)
    assert llm_config("llama-2-7b-chat", Path("/nowhere"))["num_hidden_layers"] == 32


def test_a_folder_that_is_here_is_read(tmp_path):
    (tmp_path / "llama-2-7b-chat").mkdir()
    (tmp_path / "llama-2-7b-chat" / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 5}))
    assert llm_config("llama-2-7b-chat", tmp_path)["num_hidden_layers"] == 5


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_type": 3}'])
def test_a_broken_config_is_refused(tmp_path, content):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"mine/config\.json: is no config of an LLM"):
        llm_config("mine", tmp_path)


def test_an_unknown_llm_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"llm = mine: no .*mine and no known model; .*llama-2-70b-chat"):
        llm_config("mine", tmp_path)


def test_encoders_of_the_production_profile():
    shapes = {modality: media_shape(modality, PRODUCTION, None) for modality in PRODUCTION["align"]}
    assert shapes == {"image": MediaShape(577, 1024, 1), "audio": MediaShape(32, 768, 1), "video": MediaShape(4 * 144, 1024, 4),
                      "imu": MediaShape(32, 512, 1)}


def test_features_that_are_here_are_read(tmp_path):
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / INDEX).write_text(json.dumps({"tokens": 5, "dim": 6, "frames": 1}))
    assert media_shape("image", PRODUCTION, tmp_path) == MediaShape(5, 6, 1)
    (tmp_path / "image" / INDEX).write_text(json.dumps({"tokens": 5}))
    with pytest.raises(ConfigError, match="is no index of features"):
        media_shape("image", PRODUCTION, tmp_path)


def test_unknown_encoders_are_refused():
    with pytest.raises(ConfigError, match=r"encode\.smell: the profile has no such section"):
        media_shape("smell", PRODUCTION, None)
    changed = {"encode": {"image": {"encoder": "mine", "settings": {}}}}
    with pytest.raises(ConfigError, match=r"encode\.image\.encoder = mine: its tokens are not known"):
        media_shape("image", changed, None)
