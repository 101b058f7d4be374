"""A fifth modality without an edit of the library: an encoder registered, then the stages encode, align and the command ask as they are."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

from anymal.commands.ask import command
from anymal.data.manifest import write_manifest
from anymal.data.shards import Sample, ShardWriter
from anymal.errors import ConfigError, DataError
from anymal.model import modalities
from anymal.model.bundle import read_bundle, write_bundle
from anymal.model.modalities import register_encoder
from anymal.profile import read_config
from anymal.stage import load_stage, run_stage
from tests.model.test_bundle import INFERENCE
from tests.tiny import ALIGN

COLOURS = ("red", "green", "blue")
RECEPTORS = 12


# --- the new modality
class Nose:
    """Intensities at twelve receptors (.npy) as two tokens, by fixed weights."""

    modality = "smell"
    tokens, dim = 2, 16

    def __init__(self, folder: Path) -> None:
        self._weights = load_file(folder / "nose.safetensors")["weights"]

    def read(self, source, name):
        """One .npy file."""
        try:
            smell = np.load(source, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{name}: cannot be read as a smell; give a .npy file of {RECEPTORS} intensities") from error
        return smell.astype(np.float32)

    def blank(self):
        """Clean air."""
        return np.zeros(RECEPTORS, dtype=np.float32)

    def picture(self, medium):
        """A grey stripe per receptor."""
        stream = io.BytesIO()
        Image.fromarray((np.clip(medium, 0, 1)[None] * 255).astype(np.uint8)).resize((120, 40)).save(stream, "PNG")
        return stream.getvalue()

    def forward(self, batch):
        """(batch, 12) to (batch, 2, 16)."""
        return (batch @ self._weights).unflatten(1, (self.tokens, self.dim))


ENCODE = {"seed": 0, "modality": "smell", "encoder": "nose", "kind": "nose", "settings": {}, "batch_size": 4, "workers": 1}
ALIGN_SMELL = {**ALIGN, "modality": "smell", "introduction": "the smell is {medium} .", "steps": 40}
# --- end of the new modality


def smell(colour, rng):
    levels = np.zeros(RECEPTORS)
    levels[4 * COLOURS.index(colour):][:4] = 1
    stream = io.BytesIO()
    np.save(stream, (levels + 0.05 * rng.normal(size=RECEPTORS)).astype(np.float32))
    return stream.getvalue()


def make_shards(folder):
    rng = np.random.default_rng(0)
    for split, count in (("train", 30), ("val", 9), ("test", 3)):
        with ShardWriter(folder, split, 16) as writer:
            for i in range(count):
                colour = COLOURS[i % 3]
                writer.write(Sample(f"{split}-{i:03d}", "npy", smell(colour, rng), {
                    "kind": "smell", "split": split, "source": "tiny", "license": "CC0-1.0", "captions": [f"a {colour} apple ."], "objects": [],
                    "questions": [{"question": "what colour is it ?", "answer": colour, "kind": "colour"}], "group": f"{split}-{i}"}))
    write_manifest(folder)


def stage(name, config, **ports):
    loaded = load_stage(name)
    run_stage(loaded, read_config(loaded, json.dumps(config)), {
        port: tuple(map(Path, path)) if isinstance(path, tuple) else Path(path) for port, path in ports.items()})


@pytest.fixture
def registered(monkeypatch):
    """The nose is known within a test only."""
    monkeypatch.setattr(modalities, "_ENCODERS", dict(modalities._ENCODERS))
    register_encoder("nose", "smell", Nose)


def test_it_is_small():
    text = Path(__file__).read_text(encoding="utf-8")
    part = text.split("# --- the new modality\n")[1].split("# --- end of the new modality\n")[0]
    assert 0 < len(part.splitlines()) + 1 <= 40, "with the line that registers it"


@pytest.mark.slow
def test_it_goes_all_the_way_to_an_answer(registered, workspace):
    make_shards(workspace / "data/shards/smell")
    (workspace / "encoders/nose").mkdir(parents=True)
    weights = torch.randn(RECEPTORS, Nose.tokens * Nose.dim, generator=torch.Generator().manual_seed(0))
    save_file({"weights": weights}, workspace / "encoders/nose/nose.safetensors")
    stage("encode", ENCODE, shards=("data/shards/smell",), encoders="encoders", features="data/features/smell")
    stage("align", ALIGN_SMELL, features="data/features/smell", assets="data/assets", checkpoint="models/checkpoints/smell", plots="plots",
          metrics="align.json")
    assert json.loads(Path("align.json").read_text())["validation"]["gap_shuffled"] > 0.3, "the held-out smells are read"
    checkpoints = [Path("models/checkpoints") / modality for modality in ("smell", "image")]
    write_bundle(Path("bundle"), checkpoints=checkpoints, assets=Path("data/assets"), inference=INFERENCE, card="", provenance={})
    assert read_bundle(Path("bundle"))["encoders"] == {"smell": None, "image": "tiny-encoder"}

    rng = np.random.default_rng(9)
    for colour in COLOURS:
        Path(f"{colour}.npy").write_bytes(smell(colour, rng))
    said = [CliRunner().invoke(command, ["bundle", "--smell", f"{colour}.npy", "what colour is it ?"], catch_exceptions=False).stdout
            for colour in COLOURS]
    assert len(set(said)) == 3 and all(text.strip() for text in said), "each smell is told from the others"
    with_picture = ["bundle", "--image", "red.png", "--smell", "red.npy", "is <image> or <smell> red ?", "--show", "shown"]
    assert CliRunner().invoke(command, with_picture, catch_exceptions=False).exit_code == 0
    assert sorted(file.name for file in Path("shown").iterdir()) == ["1-image.png", "2-smell.png"]
    Path("notes.npy").write_text("a rose")
    with pytest.raises(DataError, match=r"notes\.npy: cannot be read as a smell"):
        CliRunner().invoke(command, ["bundle", "--smell", "notes.npy"], catch_exceptions=False)


def test_it_is_unknown_before_and_refused_under_a_bad_name():
    with pytest.raises(ConfigError, match="known: image, video, audio, imu"):
        read_config(load_stage("encode"), json.dumps(ENCODE))
    with pytest.raises(ConfigError, match="must be lower-case letters"):
        register_encoder("nose", "Smell!", Nose)
