import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from anymal.data.features import FeatureStore
from anymal.errors import AnymalError, ConfigError, DataError
from anymal.model.anymal import AnyMAL, load_anymal
from anymal.model.checkpoint import read_checkpoint
from anymal.model.llm import load_llm
from anymal.model.prompt import Medium, Prompt, Template
from anymal.stages.align import AlignConfig, align
from anymal.training.data import CaptionData
from tests.tiny import ALIGN, ARCHITECTURES, make_assets, make_features, make_trained_encoder

OUTPUTS = ("checkpoint", "plots", "metrics")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("align")
    return {"features": make_features(root / "features", {"train": 30, "val": 9, "test": 3}), "assets": make_assets(root / "assets")}


def run(folder, inputs, **knobs):
    folder.mkdir(exist_ok=True)
    ports = {"checkpoint": folder / "checkpoint", "plots": folder / "plots", "metrics": folder / "metrics.json"}
    align(AlignConfig(**{**ALIGN, **knobs}), **inputs, **ports)
    return ports


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    return run(tmp_path_factory.mktemp("finished"), inputs, steps=60)


def test_the_projector_learns_to_read_its_input(finished):
    figures = json.loads(finished["metrics"].read_text())
    assert figures["validation"]["gap_shuffled"] > 0.1
    assert figures["steps"] == 60
    for name in ("loss.png", "grounding.png"):
        assert (finished["plots"] / name).read_bytes()[:4] == b"\x89PNG"


def test_the_checkpoint_loads_and_tells_colours_apart(finished, inputs):
    model = load_anymal(inputs["assets"], [finished["checkpoint"]], dtype="float32")
    store = FeatureStore(inputs["features"], "test")
    prompts = [Prompt(model.templates["image"]["caption"].messages(["image"]), [Medium("image", store.features([i])[0])]) for i in range(3)]
    right = model.score(prompts, [store.meta(i)["captions"][0] for i in range(3)], batch_size=3)
    wrong = model.score(prompts, [store.meta((i + 1) % 3)["captions"][0] for i in range(3)], batch_size=3)
    assert sum(t for t, _ in right) < sum(t for t, _ in wrong)
    assert read_checkpoint(finished["checkpoint"])["projector"]["arguments"]["tokens"] == 3


def command(folder, inputs, **knobs):
    config = json.dumps({**ALIGN, **knobs})
    ports = [f"--{n}={folder / n}" for n in OUTPUTS] + [f"--{n}={p}" for n, p in inputs.items()]
    return [sys.executable, "-m", "anymal", "align", "--config", config, *ports]


@pytest.mark.slow
def test_killed_at_a_random_step_and_run_again_it_ends_with_the_same_bits(tmp_path, inputs):
    environment = {**os.environ, "ANYMAL_TRACKING": "off"}
    knobs = {"steps": 150, "checkpoint_every": 7, "validate_every": 50}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(whole, inputs, **knobs), check=True, env=environment, capture_output=True)
    moment = random.Random(time.time_ns()).randint(1, 12) * 7
    state = broken / ".checkpoint.partial" / "state" / "latest" / "state.json"
    kills = 0
    for signal_sent in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen(command(broken, inputs, **knobs), env=environment, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not (state.is_file() and _step(state) >= moment):
            time.sleep(0.02)
        process.send_signal(signal_sent)
        _, said = process.communicate(timeout=120)
        assert not (broken / "checkpoint").exists()
        kills += process.returncode == (-signal.SIGKILL if signal_sent == signal.SIGKILL else 75)
        if signal_sent == signal.SIGTERM:
            assert "the state is saved" in said
        moment = min(moment + 21, 140)
    assert kills == 2
    subprocess.run(command(broken, inputs, **knobs), check=True, env=environment, capture_output=True)
    for name in ("projector.safetensors", "projector.json", "manifest.json"):
        assert (broken / "checkpoint" / name).read_bytes() == (whole / "checkpoint" / name).read_bytes(), name
    for name in ("metrics", "plots/loss.png", "plots/grounding.png"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name


def _step(path):
    try:
        return json.loads(path.read_text())["step"]
    except (OSError, ValueError):  # being replaced at this moment
        return 0


def test_a_batch_depends_on_seed_and_step_only(inputs):
    store = FeatureStore(inputs["features"], "train")

    llm, tokenizer = load_llm(inputs["assets"] / "tiny-llm", dtype="float32", quantization="none", attention="eager")
    templates = {"caption": Template(None, "describe : <image>"), "question": Template(None, "<image> {question}")}
    model = AnyMAL(llm, tokenizer, {"image": torch.nn.Identity()}, templates={"image": templates}, metadata={}, encoder_folders={})

    def batches(seed, steps):
        data = CaptionData(model, store, "image", batch_size=4, question_share=0.5, target_captions=None, answer_forms={}, question_kinds=None,
                           seed=seed)
        return [[(turn.answer, float(turn.prompt.media[0].features.sum())) for (turn,) in b.dialogues] for b in map(data.batch, steps)]

    assert batches(1, range(30))[17:] == batches(1, range(17, 30))
    assert batches(1, range(5)) != batches(2, range(5))
    lengths = {len(answer) for batch in batches(1, range(30)) for answer, _ in batch}
    assert len(lengths) > 1  # captions and answers both come, of other lengths


def test_an_input_that_is_ignored_fails_the_run(tmp_path, inputs):
    with pytest.raises(AnymalError, match="the projector is ignored"):
        run(tmp_path / "x", inputs, steps=2, grounding_floor=5.0)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, inputs, monkeypatch):
    with pytest.raises(AnymalError, match="lower learning_rate"):
        run(tmp_path / "x", inputs, learning_rate=1e30, gradient_clip=1e30, warmup_steps=0)


def test_more_batch_than_data_is_named(tmp_path, inputs):
    with pytest.raises(DataError, match="fewer than one batch of 64"):
        run(tmp_path / "x", inputs, batch_size=64)


def test_accumulated_gradients_equal_those_of_the_whole_batch(tmp_path, inputs):
    whole, parts = run(tmp_path / "a", inputs, steps=4), run(tmp_path / "b", inputs, steps=4, micro_batch_size=3)
    losses = [json.loads(ports["metrics"].read_text())["train_loss"] for ports in (whole, parts)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_training_is_the_same_twice(tmp_path, inputs):
    first, second = run(tmp_path / "a", inputs, steps=6), run(tmp_path / "b", inputs, steps=6)
    assert (first["checkpoint"] / "manifest.json").read_bytes() == (second["checkpoint"] / "manifest.json").read_bytes()


@pytest.mark.parametrize("quantization", ["nf4"])
def test_a_quantised_llm_trains_close_to_the_full_one(tmp_path, inputs, quantization):
    full = run(tmp_path / "a", inputs, steps=12, dtype="bfloat16")
    small = run(tmp_path / "b", inputs, steps=12, dtype="bfloat16", quantization=quantization)
    losses = [json.loads(ports["metrics"].read_text())["train_loss"] for ports in (full, small)]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_weights_are_finite(finished):
    from safetensors.torch import load_file

    assert all(torch.isfinite(t).all() for t in load_file(finished["checkpoint"] / "projector.safetensors").values())


def test_features_of_another_modality_are_refused(tmp_path, inputs):
    with pytest.raises(ConfigError, match=r"align.modality = audio: .* holds features of image; give the right ones"):
        run(tmp_path / "x", inputs, modality="audio")


def test_another_modality_with_a_linear_projector_and_its_own_encoder(tmp_path, inputs):
    """The trained encoder's files go from the features into the checkpoint, and the frames into the resampler's arguments."""
    kind, _ = ARCHITECTURES["audio"]
    about = {"asset": None, "sha256": "0" * 64, "kind": kind, "settings": {}}
    features = make_features(tmp_path / "features", {"train": 12, "val": 6}, modality="audio", encoder=about)
    make_trained_encoder(features / "encoder", "audio")
    ports = run(tmp_path / "x", inputs | {"features": features}, modality="audio", projector="linear", steps=4, target_captions=1)
    described = read_checkpoint(ports["checkpoint"])
    assert described["projector"] == {"kind": "linear", "arguments": {"media_dim": 16, "media_tokens": 5, "dim": 32, "tokens": 3,
                                                                      "output_scale": described["projector"]["arguments"]["output_scale"]}}
    assert described["encoder"] == about | {"tokens": 5, "dim": 16}
    assert described["introduction"] == ALIGN["introduction"]
    assert (ports["checkpoint"] / "encoder" / "encoder.safetensors").is_file()
    with pytest.raises(ConfigError, match="at most the encoder's 5 tokens"):
        run(tmp_path / "y", inputs | {"features": features}, modality="audio", projector="linear", tokens=6)


def test_the_frames_of_the_features_reach_the_resampler(tmp_path, inputs):
    features = make_features(tmp_path / "features", {"train": 12, "val": 6}, modality="video", tokens=6, frames=3)
    ports = run(tmp_path / "x", inputs | {"features": features}, modality="video", steps=2)
    assert read_checkpoint(ports["checkpoint"])["projector"]["arguments"]["media_frames"] == 3
