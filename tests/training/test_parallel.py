"""Several processes give what one gives: real torchrun, two Gloo processes on this machine."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from tests.tiny import ALIGN, make_assets, make_checkpoint, make_features, make_instructions

TOY = {"asset": "tiny-encoder", "kind": "efficientnet_lite", "settings": {}, "tokens": 5, "dim": 16}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
FINETUNE = {
    "seed": 3, "dtype": "float32", "quantization": "none", "attention": "eager", "adapter": {"rank": 4, "alpha": 8, "dropout": 0.0},
    "mixing": {"template": 1.0, "human": 1.0}, "gradient_checkpointing": False, "batch_size": 4, "micro_batch_size": 1, "parallelism": "ddp",
    "steps": 6, "learning_rate": 0.001, "warmup_steps": 2, "weight_decay": 0.01, "gradient_clip": 1.0, "validation_samples": 6,
    "validate_every": 3, "checkpoint_every": 2, "grounding_floor": -10.0,
}
"""Not every micro-batch holds a motion: some projectors have no gradient, each process on its own."""
FINETUNED = ("adapter/adapter_model.safetensors", "image/projector.safetensors", "imu/projector.safetensors")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("parallel")
    ports = [("assets", make_assets(root / "assets")), ("instructions", make_instructions(root / "plain", turns=2)),
             ("instructions", make_instructions(root / "mixed", modalities=("image", "imu"), origin="human"))]
    for modality in ("image", "imu"):
        ports.append(("checkpoints", make_checkpoint(root / "checkpoints" / modality, modality, encoder=TOY)))
        ports.append(("features", make_features(root / "features" / modality, {"train": 30, "val": 9, "test": 3}, modality=modality)))
    return ports


def finetune(folder, inputs, **knobs):
    return ["-m", "anymal", "finetune", "--config", json.dumps({**FINETUNE, **knobs}), f"--model={folder / 'model'}",
            f"--plots={folder / 'plots'}", f"--metrics={folder / 'metrics.json'}", *(f"--{port}={path}" for port, path in inputs)]


def align(folder, inputs, **knobs):
    features = next(path for port, path in inputs if port == "features")
    return ["-m", "anymal", "align", "--config", json.dumps({**ALIGN, "learning_rate": 0.001, **knobs}), f"--features={features}",
            f"--assets={dict(inputs)['assets']}", f"--checkpoint={folder / 'model'}", f"--plots={folder / 'plots'}",
            f"--metrics={folder / 'metrics.json'}"]


def environment():
    return {**os.environ, "ANYMAL_TRACKING": "off", "OMP_NUM_THREADS": "1"}


def start(words, *launcher):
    return subprocess.run([sys.executable, *launcher, *words], env=environment(), capture_output=True, text=True, check=False)


def same(one, other, weights):
    """Figures and weights within 1e-4; the figures must be of a training that moved something."""
    figures, others = (json.loads((folder / "metrics.json").read_text()) for folder in (one, other))
    assert figures["validation"] == pytest.approx(others["validation"], abs=1e-4)
    assert figures["train_loss"] == pytest.approx(others["train_loss"], abs=1e-4)
    for name in weights:
        expected, found = load_file(one / "model" / name), load_file(other / "model" / name)
        assert expected.keys() == found.keys()
        for key, tensor in expected.items():
            assert float((tensor - found[key]).abs().max()) < 1e-4, (name, key)
    return figures


@pytest.fixture(scope="module")
def alone(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    done = start(finetune(folder, inputs))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_replicas_give_what_one_process_gives(alone, inputs, tmp_path):
    done = start(finetune(tmp_path, inputs), *TORCHRUN)
    assert done.returncode == 0, done.stderr
    figures = same(alone, tmp_path, FINETUNED)
    assert figures["before"]["right"] - figures["validation"]["right"] > 0.05
    assert done.stderr.count("finetune: 100%") == 1, "one process shows progress"


@pytest.mark.slow
def test_shards_stopped_by_a_signal_go_on_as_one_process(alone, inputs, tmp_path):
    knobs = {"parallelism": "fsdp", "steps": 40, "validate_every": 40, "learning_rate": 0.0003, "checkpoint_every": 1}
    state = tmp_path / "two" / ".model.partial" / "state" / "latest" / "state.json"
    with subprocess.Popen([sys.executable, *TORCHRUN, *finetune(tmp_path / "two", inputs, **knobs)], env=environment(),
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (state.is_file() and json.loads(state.read_text())["step"] >= 2):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert "the state is saved" in errors, errors
    assert 2 <= json.loads(state.read_text())["step"] < 40
    for name in ("two", "one"):
        done = start(finetune(tmp_path / name, inputs, **knobs))
        assert done.returncode == 0, done.stderr
    same(tmp_path / "one", tmp_path / "two", FINETUNED)


@pytest.mark.slow
def test_shards_give_what_one_process_gives(alone, inputs, tmp_path):
    done = start(finetune(tmp_path, inputs, parallelism="fsdp"), *TORCHRUN)
    assert done.returncode == 0, done.stderr
    same(alone, tmp_path, FINETUNED)


@pytest.mark.slow
def test_a_projector_aligns_in_shards_as_in_one_process(inputs, tmp_path):
    for name, launcher, knobs in (("one", (), {}), ("two", TORCHRUN, {"parallelism": "fsdp", "micro_batch_size": 2})):
        done = start(align(tmp_path / name, inputs, **knobs), *launcher)
        assert done.returncode == 0, done.stderr
    same(tmp_path / "one", tmp_path / "two", ["projector.safetensors"])


@pytest.mark.parametrize(("words", "told"), [
    (lambda folder, inputs: finetune(folder, inputs, batch_size=3), "batch_size = 3: does not divide among 2 processes; make it a multiple of 2"),
    (lambda folder, inputs: finetune(folder, inputs, parallelism="fsdp", quantization="nf4"), "set parallelism to ddp"),
], ids=["batch", "quantised shards"])
@pytest.mark.slow
def test_what_cannot_be_spread_is_refused(words, told, inputs, tmp_path):
    done = start(words(tmp_path, inputs), *TORCHRUN)
    assert done.returncode != 0
    assert told in done.stderr
    assert not (tmp_path / "model").exists()


def test_a_stage_of_one_process_refuses_several(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = start(["-m", "anymal", "score", "--config", "params.yaml", f"--predictions={tmp_path}", f"--baselines={tmp_path}",
                  f"--benchmarks={tmp_path}", *(f"--{port}={tmp_path / port}" for port in ("metrics", "samples", "report", "figures"))])
    assert "score: runs in one process, but WORLD_SIZE = 2; start it without torchrun" in done.stderr


def test_processes_that_cannot_meet_are_told_how(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    done = start(finetune(tmp_path, inputs))
    assert done.returncode == 2
    assert "start them with torchrun" in done.stderr
