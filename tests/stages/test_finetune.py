"""Fine-tuning on random parts: what learns, what is written and loaded, interrupted runs, and refusals."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from anymal.data.features import FeatureStore
from anymal.data.manifest import sha256_of, write_manifest
from anymal.errors import AnymalError, BundleError, ConfigError, DataError
from anymal.model.anymal import load_anymal
from anymal.model.bundle import read_bundle, write_bundle
from anymal.model.checkpoint import read_checkpoints
from anymal.model.prompt import Medium, Prompt
from anymal.stages.finetune import FinetuneConfig, finetune
from tests.tiny import make_assets, make_checkpoint, make_features, make_instructions

TOY = {"asset": "tiny-encoder", "kind": "efficientnet_lite", "settings": {}, "tokens": 5, "dim": 16}
KNOBS = {
    "seed": 3, "dtype": "float32", "quantization": "none", "attention": "eager", "adapter": {"rank": 4, "alpha": 8, "dropout": 0.1},
    "mixing": {"template": 1.0}, "gradient_checkpointing": False, "batch_size": 4, "micro_batch_size": 4,
    "parallelism": "ddp", "steps": 40, "learning_rate": 0.01,
    "warmup_steps": 3, "weight_decay": 0.01, "gradient_clip": 1.0, "validation_samples": 6, "validate_every": 20, "checkpoint_every": 5,
    "grounding_floor": -10.0,
}
OUTPUTS = {"model": "tuned", "plots": "plots", "metrics": "metrics.json"}
WEIGHTS = ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "image/projector.safetensors", "imu/projector.safetensors",
           "image/projector.json", "manifest.json")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("finetune")
    made = {"checkpoints": [], "features": []}
    for modality in ("image", "imu"):
        made["checkpoints"].append(make_checkpoint(root / "checkpoints" / modality, modality, encoder=TOY))
        made["features"].append(make_features(root / "features" / modality, {"train": 30, "val": 9, "test": 3}, modality=modality))
    return {**{port: tuple(paths) for port, paths in made.items()}, "assets": make_assets(root / "assets"), "instructions": (
        make_instructions(root / "plain", turns=2), make_instructions(root / "mixed", modalities=("image", "imu"), origin="human"))}


def run(folder, inputs, **knobs):
    folder.mkdir(exist_ok=True)
    ports = {port: folder / name for port, name in OUTPUTS.items()}
    finetune(FinetuneConfig(**{**KNOBS, **knobs}), **inputs, **ports)
    return ports


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    return run(tmp_path_factory.mktemp("finished"), inputs, mixing={"template": 1.0, "human": 1.0})


def test_it_learns_from_instructions_and_reports_what_it_forgot(finished):
    figures = json.loads(finished["metrics"].read_text())
    assert figures["validation"]["right"] < figures["before"]["right"] - 0.3
    assert figures["validation"]["gap_shuffled"] > 0.1
    assert {"caption_image", "caption_imu"} <= figures["before"].keys() & figures["validation"].keys()
    assert figures["parameters"]["adapter"] > 0
    for name in ("loss.png", "grounding.png"):
        assert (finished["plots"] / name).read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("merge", [False, True])
def test_the_tuned_model_loads_whole_and_answers_about_what_it_is_shown(finished, inputs, merge):
    model = load_anymal(inputs["assets"], [finished["model"]], dtype="float32", merge=merge)
    assert set(model.projectors) == {"image", "imu"}
    store = FeatureStore(inputs["features"][0], "test")
    template = model.templates["image"]["question"]
    prompts = [Prompt(template.messages(["image"], "what colour is the picture ?"), [Medium("image", store.features([i])[0])]) for i in range(3)]
    colours = ["red", "green", "blue"]
    for place, prompt in enumerate(prompts):
        losses = [total for total, _ in model.score([prompt] * 3, colours, batch_size=3)]
        assert min(range(3), key=losses.__getitem__) == place


def test_without_an_adapter_the_projectors_alone_are_tuned(tmp_path, inputs):
    ports = run(tmp_path / "x", inputs, adapter=None, steps=4)
    found = read_checkpoints([ports["model"]])
    assert found.adapter is None
    assert not (ports["model"] / "adapter").exists()
    before = (inputs["checkpoints"][0] / "projector.safetensors").read_bytes()
    assert (found.folders["image"] / "projector.safetensors").read_bytes() != before


def test_a_tuned_model_without_its_adapter_is_refused(finished, inputs, tmp_path):
    tuned = shutil.copytree(finished["model"], tmp_path / "tuned")
    shutil.rmtree(tuned / "adapter")
    write_manifest(tuned)
    with pytest.raises(BundleError, match=r"tuned with adapter .* but no adapter is given"):
        load_anymal(inputs["assets"], [tuned])
    with pytest.raises(BundleError, match=r"tuned with adapter .* but no adapter is given"):
        load_anymal(inputs["assets"], [finished["model"] / "image"])
    with pytest.raises(BundleError, match="one checkpoint per modality"):
        load_anymal(inputs["assets"], [finished["model"], inputs["checkpoints"][0]])


def test_a_bundle_holds_the_adapter_and_is_refused_without_it(finished, inputs, tmp_path):
    bundle = tmp_path / "bundle"
    inference = {"dtype": "float32", "quantization": "none", "attention": "eager", "merge": False, "max_new_tokens": 4}
    write_bundle(bundle, checkpoints=[finished["model"]], assets=inputs["assets"], inference=inference, card="", provenance={})
    assert read_bundle(bundle)["adapter"] == sha256_of(finished["model"] / "adapter" / "manifest.json")
    assert read_checkpoints([bundle]).adapter == bundle / "adapter"
    shutil.rmtree(bundle / "adapter")
    with pytest.raises(BundleError, match=r"missing adapter/adapter_config\.json"):
        read_bundle(bundle)
    write_manifest(bundle)
    with pytest.raises(BundleError, match=r"tuned with adapter .* but no adapter is given"):
        read_checkpoints([bundle])


def command(folder, inputs, **knobs):
    words = [sys.executable, "-m", "anymal", "finetune", "--config", json.dumps({**KNOBS, **knobs})]
    words += [f"--{port}={folder / name}" for port, name in OUTPUTS.items()]
    return words + [f"--{port}={path}" for port, paths in inputs.items() for path in (paths if isinstance(paths, tuple) else (paths,))]


@pytest.mark.slow
def test_killed_and_run_again_it_ends_with_the_same_bits(tmp_path, inputs):
    environment = {**os.environ, "ANYMAL_TRACKING": "off"}
    knobs = {"steps": 100, "checkpoint_every": 3}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    subprocess.run(command(whole, inputs, **knobs), check=True, env=environment, capture_output=True)
    state = broken / ".tuned.partial" / "state" / "latest" / "state.json"
    process = subprocess.Popen(command(broken, inputs, **knobs), env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and not state.is_file():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    assert not (broken / "tuned").exists()
    done = subprocess.run(command(broken, inputs, **knobs), check=True, env=environment, capture_output=True, text=True)
    assert "finetune" in done.stderr
    for name in WEIGHTS:
        assert (broken / "tuned" / name).read_bytes() == (whole / "tuned" / name).read_bytes(), name
    assert (broken / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()


def test_accumulated_gradients_equal_those_of_the_whole_batch(tmp_path, inputs):
    whole = run(tmp_path / "whole", inputs, steps=3, adapter={"rank": 4, "alpha": 8, "dropout": 0.0})
    parts = run(tmp_path / "parts", inputs, steps=3, micro_batch_size=1, adapter={"rank": 4, "alpha": 8, "dropout": 0.0})
    fewer = run(tmp_path / "fewer", inputs, steps=3, batch_size=1, micro_batch_size=1, adapter={"rank": 4, "alpha": 8, "dropout": 0.0})
    one, other, unlike = (json.loads(ports["metrics"].read_text())["validation"]["right"] for ports in (whole, parts, fewer))
    assert one == pytest.approx(other, abs=1e-3), "rounding differs, and AdamW's first steps make much of the smallest gradients"
    assert abs(one - unlike) > 1e-2


def test_checkpointed_gradients_give_the_same_model(tmp_path, inputs):
    knobs = {"steps": 3, "adapter": {"rank": 4, "alpha": 8, "dropout": 0.0}}
    plain, saving = run(tmp_path / "plain", inputs, **knobs), run(tmp_path / "saving", inputs, gradient_checkpointing=True, **knobs)
    from safetensors.torch import load_file

    one, other = (load_file(ports["model"] / "adapter/adapter_model.safetensors") for ports in (plain, saving))
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_llm_is_tuned_and_serves_in_full_precision(tmp_path, inputs, quantization):
    ports = run(tmp_path / "x", inputs, quantization=quantization, dtype="bfloat16")
    figures = json.loads(ports["metrics"].read_text())
    assert figures["validation"]["right"] < figures["before"]["right"] - 0.2
    assert load_anymal(inputs["assets"], [ports["model"]], dtype="float32").llm.dtype == torch.float32


def test_refusals_name_what_is_wrong(tmp_path, inputs, finished):
    with pytest.raises(ConfigError, match="gives synthetic a weight, but the instructions are of human, template"):
        run(tmp_path / "a", inputs, mixing={"synthetic": 1.0})
    with pytest.raises(ConfigError, match="has nothing of imu"):
        run(tmp_path / "b", {**inputs, "features": inputs["features"][:1]})
    with pytest.raises(ConfigError, match="was tuned already"):
        run(tmp_path / "c", {**inputs, "checkpoints": (finished["model"],)})
    stranger = make_instructions(tmp_path / "stranger", counts={"train": 40, "val": 6})
    with pytest.raises(DataError, match=r"name 10 media that the features do not hold \(image train-0030.png"):
        run(tmp_path / "d", {**inputs, "instructions": (stranger,)})
    with pytest.raises(AnymalError, match="the media are ignored"):
        run(tmp_path / "e", inputs, steps=1, grounding_floor=5.0)
    alone = make_instructions(tmp_path / "alone", counts={"train": 8, "val": 1})
    with pytest.raises(DataError, match="at least 2 are needed to shuffle"):
        run(tmp_path / "f", {**inputs, "instructions": (alone,)})
