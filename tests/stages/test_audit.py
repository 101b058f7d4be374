"""The stage on shards, features, instructions and benchmarks' media of its own making."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from anymal.config import validate
from anymal.data.features import INDEX, write_feature_shard
from anymal.data.manifest import write_manifest
from anymal.errors import ConfigError, DataError
from anymal.evaluation.benchmarks.folder import write_protocol
from anymal.stage import load_stage, run_stage
from anymal.stages.audit import AuditConfig
from tests.evaluation.copies import jpeg, npy, picture, recording, sample, shards

PICTURES = {"bits": 4, "colour": 12.0, "correlation": None, "cosine": 0.999}
KNOBS = {"seed": 0, "workers": 2, "shown": 3,
         "thresholds": {"image": PICTURES, "imu": {"bits": None, "colour": None, "correlation": 0.92, "cosine": None}}}  # fmt: skip


@pytest.fixture
def inputs(tmp_path):
    """Ports: two modalities with features, media of people's instructions, and a benchmark."""
    for modality, extension, make in (("image", "jpg", lambda seed: jpeg(picture(seed))), ("imu", "npy", lambda seed: npy(recording(seed)[:250]))):
        for split, seeds in (("train", range(3)), ("test", range(9, 12))):
            shards(tmp_path / modality, split, [sample(f"{modality}-{seed}", extension, make(seed)) for seed in seeds])
        folder = tmp_path / f"features-{modality}"
        folder.mkdir()
        for split, seeds in (("train", range(3)), ("test", range(9, 12))):
            rows = np.random.default_rng(seeds[0]).normal(size=(3, 2, 8)).astype(np.float32)
            write_feature_shard(folder / f"{split}-00000.safetensors", rows, [{"key": f"{modality}-{seed}"} for seed in seeds])
        described = {"modality": modality, "tokens": 2, "dim": 8, "shards": [{"name": f"{split}-00000", "count": 3} for split in ("train", "test")]}
        (folder / INDEX).write_text(json.dumps(described))
    shards(tmp_path / "human" / "image", "train", [sample("human-1", "jpg", jpeg(picture(50)))])
    (tmp_path / "human" / "audio").mkdir()
    (tmp_path / "instructions").mkdir()
    (tmp_path / "instructions" / "train.json").write_text("[]")
    measured(tmp_path / "benchmarks", jpeg(picture(60)))
    named = {"shards": ("imu", "image", "human"), "features": ("features-imu", "features-image"), "instructions": ("instructions",),
             "benchmarks": ("benchmarks",)}  # fmt: skip
    return {port: tuple(tmp_path / name for name in names) for port, names in named.items()}


def measured(folder, data):
    """A folder of the stage benchmark that showed one picture."""
    folder.mkdir(exist_ok=True)
    entry = {"benchmark": "pope", "id": "one.jpg", "modality": "image", "sha256": hashlib.sha256(data).hexdigest(), "phash": None, "miniature": None}
    write_protocol(folder, {"seed": 0, "part": {"index": 0, "of": 1}}, {"vqav2": {"skipped": "assets has no vqav2"}}, [entry])


def run(target, inputs, **knobs):
    outputs = {"leakage": target / "leakage.json", "report": target / "leakage.html"}
    run_stage(load_stage("audit"), validate(AuditConfig, {**KNOBS, **knobs}, "audit"), {**inputs, **outputs})
    return {name: path.read_bytes() for name, path in outputs.items()}


WITH_AUDIO = {**KNOBS["thresholds"], "audio": {"bits": None, "colour": None, "correlation": 0.9, "cosine": None}}


def test_clean_data_pass_and_give_the_same_bytes(inputs, tmp_path):
    first = run(tmp_path / "a", inputs, thresholds=WITH_AUDIO)
    document = json.loads(first["leakage"])
    assert document["passed"] is True and document["leaks"] == 0
    assert document["modalities"]["image"]["media"] == {"train": 4, "val": 0, "test": 3}
    assert document["modalities"]["image"]["thresholds"] == {"bits": 4, "colour": 12.0, "cosine": 0.999}
    assert document["modalities"]["image"]["nearest"].keys() >= {"features"} and document["modalities"]["imu"]["nearest"].keys() == {"motions"}
    assert document["benchmarks"]["pope.image"]["media"] == 1
    assert run(tmp_path / "b", inputs, thresholds=WITH_AUDIO) == first


def test_a_leak_fails_the_stage_and_is_printed(inputs, tmp_path, capfd):
    measured(inputs["benchmarks"][0], jpeg(picture(1)))
    shards(tmp_path / "human" / "image", "train", [sample("human-1", "jpg", jpeg(picture(10), 50)), sample("human-2", "jpg", jpeg(picture(9)))])
    with pytest.raises(DataError, match=r"training data hold 3 of what the model is tested on \(copy 2, pictures 1\); the first: image one\.jpg "
                                        r"\(benchmark pope\) and image-1 \(train\): the same file"):
        run(tmp_path / "out", inputs, thresholds=WITH_AUDIO)
    printed = capfd.readouterr().err
    assert "image image-9 (test) and human-2 (train): the same file" in printed and "image image-10 (test) and human-1 (train): look alike" in printed
    assert not list((tmp_path / "out").iterdir())


def test_ports_that_do_not_belong_together_are_refused(inputs, tmp_path):
    with pytest.raises(DataError, match="--shards is given 1 times and --features 2 times"):
        run(tmp_path / "out", {**inputs, "shards": inputs["shards"][:1]})
    with pytest.raises(DataError, match="--features has two folders of one modality; give one each of imu"):
        run(tmp_path / "out", {**inputs, "features": inputs["features"][:1] * 2})
    with pytest.raises(DataError, match=r"--shards .*instructions holds no folder named after a modality"):
        run(tmp_path / "out", {**inputs, "shards": (*inputs["shards"], tmp_path / "instructions")})
    with pytest.raises(ConfigError, match=r"audit\.thresholds: has nothing for audio"):
        run(tmp_path / "out", inputs)
    write_manifest(tmp_path / "benchmarks")
    (tmp_path / "benchmarks" / "media.jsonl").write_text("")
    with pytest.raises(DataError, match=r"media\.jsonl"):
        run(tmp_path / "out", inputs)


@pytest.mark.parametrize("knob", [
    {"workers": 0}, {"shown": 0}, {"thresholds": {"image": {**PICTURES, "bits": 65}}}, {"thresholds": {"image": {**PICTURES, "cosine": 0}}},
    {"thresholds": {"smell": PICTURES}}, {"strict": True}])
def test_bad_knobs_are_named(knob):
    with pytest.raises(ConfigError, match=f"audit.{next(iter(knob))}"):
        validate(AuditConfig, {**KNOBS, **knob}, "audit")
