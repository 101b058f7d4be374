"""`anymal plan`: what it prints and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from anymal.commands.plan import command
from anymal.config import read_document
from anymal.errors import ConfigError

ROOT = Path(__file__).parent.parent.parent
DEMO, PRODUCTION = ROOT / "params.yaml", ROOT / "params.production.yaml"


def plan(*words: str | Path) -> str:
    """Standard output of the command, which must succeed; it looks for assets and features nowhere."""
    result = CliRunner().invoke(command, [*map(str, words), "--assets", "none", "--features", "none"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_demo_as_text_and_as_json():
    text = plan("--config", DEMO, "--stage", "align.audio", "--pairs", "1000", "--rate", "10", "--gpus", "2")
    assert text.startswith("align.audio: smollm2-135m-instruct in full precision")
    assert "fits" in text
    assert "63 steps" in text
    assert "0.0 GPU-hours" in text
    document = json.loads(plan("--config", DEMO, "--stage", "align.audio", "--pairs", "1000", "--rate", "10", "--gpus", "2", "--json"))
    (stage,) = document["stages"]
    assert stage["fits"] is True
    assert stage["total"] == sum(stage["memory"].values())
    assert stage["memory"]["gradients"] == 4 * stage["trained"]
    assert stage["memory"]["communication"] == 0
    assert stage["cost"]["gpu_hours"] == pytest.approx(1000 / 10 / 3600)
    assert stage["cost"]["hours"] == pytest.approx(stage["cost"]["gpu_hours"] / 2)
    assert stage["largest_micro_batch"] == 8  # half a batch of 16 on each of two GPUs


def test_the_same_again():
    words = ("--config", DEMO, "--stage", "align.imu", "--json")
    assert plan(*words) == plan(*words)


def test_what_if():
    words = ("--config", DEMO, "--stage", "align.image", "--json")
    (one,), (two,) = (json.loads(plan(*words, "--set", f"align.image.layers={layers}"))["stages"] for layers in (1, 2))
    assert two["trained"] > one["trained"]


def test_a_small_gpu_is_too_small():
    text = plan("--config", DEMO, "--stage", "align.audio", "--gpu-memory", "0.2", "--reserve", "0.1")
    assert "does not fit" in text
    assert "none fits, not even 1" in text


@pytest.mark.slow
def test_llama_70b_on_one_gpu():
    """Linear projectors fit beside it on 80 GiB at the paper's micro-batch of 4; a resampler as wide as the LLM is planned for as it is."""
    stages = {stage["stage"]: stage for stage in json.loads(plan("--config", PRODUCTION, "--json"))["stages"]}
    assert set(stages) == {"align.image", "align.audio", "align.video", "align.imu", "finetune"}
    for name in ("align.audio", "align.imu"):
        assert stages[name]["fits"], name
        assert stages[name]["largest_micro_batch"] >= 4, name
    assert stages["align.image"]["memory"]["optimizer"] == 2 * stages["align.image"]["memory"]["projectors"]


@pytest.mark.parametrize(("words", "message"), [
    (["--rate", "5"], "--rate 5: says how fast, not how much; add --pairs"),
    (["--reserve", "90"], "--reserve 90: leaves nothing of --gpu-memory 80"),
    (["--stage", "align.smell"], r"--stage align\.smell: .* has no such training stage; it has align\.image"),
    (["--set", "align.image.layer=2"], r"align\.image\.layer: .* has no such knob; did you mean 'align\.image\.layers'\?"),
    (["--set", "align.image.layers"], "names no knob and value"),
    (["--set", "seed=2"], "names no knob and value"),
    (["--set", "align.image.layers=[2"], "the value cannot be read as YAML"),
    (["--set", "align.image.layers=0"], r"align\.image\.layers = 0"),
    (["--gpus", "3"], r"align\.image\.batch_size = 16: does not divide among 3 GPUs"),
])
def test_options_that_cannot_be(words, message):
    with pytest.raises(ConfigError, match=message):
        plan("--config", DEMO, *words)


def edited(tmp_path: Path, edit: Any) -> Path:
    """The production profile, changed."""
    from ruamel.yaml import YAML

    document = read_document(PRODUCTION)
    edit(document)
    path = tmp_path / "profile.yaml"
    with path.open("w") as stream:
        YAML(typ="safe", pure=True).dump(document, stream)
    return path


def test_profiles_that_cannot_be(tmp_path):
    cases = [
        (lambda d: d["align"]["image"].update(layers=0), "align.image.layers = 0"),
        (lambda d: d["align"]["image"].update(llm="mine"), "llm = mine: no none/mine and no known model"),
        (lambda d: d["align"]["image"].update(heads=5), "projector heads = 5"),
        (lambda d: d["align"]["audio"].update(tokens=64), "projector tokens = 64"),
        (lambda d: d["encode"]["image"].update(encoder="mine"), "encode.image.encoder = mine: its tokens are not known"),
        (lambda d: [d.pop("align"), d.pop("finetune")], "has no training stage"),
        (lambda d: d.pop("align"), "finetune: needs a section align.MODALITY"),
    ]
    for edit, message in cases:
        with pytest.raises(ConfigError) as caught:
            plan("--config", edited(tmp_path, edit))
        assert message in str(caught.value), message
    with pytest.raises(ConfigError, match=r"align\.image\.parallelism = fsdp: cannot shard weights of quantization = nf4"):
        plan("--config", edited(tmp_path, lambda d: d["align"]["image"].update(parallelism="fsdp")), "--gpus", "2", "--stage", "align.image")
    with pytest.raises(ConfigError, match="no such file"):
        plan("--config", tmp_path / "absent.yaml")
