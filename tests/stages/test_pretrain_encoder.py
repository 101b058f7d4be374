"""Two kinds of synthetic motion and of sound, told apart by an encoder that starts from nothing."""

import json
import shutil

import pytest
import torch

from anymal.data.manifest import write_manifest
from anymal.data.shards import Sample, ShardWriter
from anymal.errors import ConfigError, DataError
from anymal.model.encoders import load_encoder
from anymal.stages.pretrain_encoder import PretrainEncoderConfig, pretrain_encoder
from anymal.training import loop
from tests.tiny import ARCHITECTURES, motion, sample, sound

MEDIA = {"audio": ("wav", {"low drum": lambda i: sound(150 + 3 * i, seconds=0.4), "high drum": lambda i: sound(2000 + 30 * i, seconds=0.4)}),
         "imu": ("npy", {"slow wave": lambda i: motion(0.5 + 0.01 * i, seconds=4.0), "quick wave": lambda i: motion(2 + 0.01 * i, seconds=4.0)})}
KNOBS = {"seed": 0, "pretrained": None, "encoder": "own", "text_encoder": "words", "dim": 16, "balance": 0.5, "batch_size": 8, "steps": 120,
         "learning_rate": 0.005, "warmup_steps": 4, "weight_decay": 0.0, "gradient_clip": 1.0, "validate_every": 20, "checkpoint_every": 5}


def make_words(folder):
    """A random sentence encoder that knows the words of the captions."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "low", "high", "slow", "quick", "drum", "wave", "the", "is", "a"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                         max_position_embeddings=16, initializer_range=0.5)).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16).save_pretrained(folder)


def make_media(folder, modality, labels=None):
    """Shards of the modality's labels, evenly, for training and validation."""
    extension, makers = MEDIA[modality]
    for split, count in (("train", 12), ("val", 6)):
        with ShardWriter(folder, split, 8) as writer:
            for index in range(count):
                for label in labels or makers:
                    meta = {**sample("k", split).meta, "captions": [f"the {label}"], "label": label}
                    writer.write(Sample(f"{label.replace(' ', '-')}-{split}-{index}", extension, makers[label](index + 12 * (split == "val")), meta))
    write_manifest(folder)
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("pretrain")
    make_words(root / "assets" / "words")
    return {modality: {"shards": make_media(root / modality, modality), "assets": root / "assets"} for modality in MEDIA}


def run(folder, inputs, modality, **knobs):
    kind, architecture = ARCHITECTURES[modality]
    config = {"modality": modality, "kind": kind, "architecture": architecture, **KNOBS, **knobs}
    ports = {"encoders": folder / "encoders", "plots": folder / "plots", "metrics": folder / "metrics.json"}
    for path in (folder, ports["encoders"]):
        path.mkdir(exist_ok=True, parents=True)
    pretrain_encoder(PretrainEncoderConfig(**config), **inputs[modality], **ports)
    return ports


def content(ports):
    return {str(path.relative_to(folder)): path.read_bytes() for folder in (ports["encoders"], ports["plots"])
            for path in sorted(folder.rglob("*")) if path.is_file()} | {"metrics": ports["metrics"].read_bytes()}


@pytest.mark.parametrize("modality", MEDIA)
def test_what_is_heard_or_felt_finds_its_words(tmp_path, inputs, modality):
    ports = run(tmp_path, inputs, modality)
    figures = json.loads(ports["metrics"].read_text())
    validation = figures["validation"]
    assert (validation["chance"], validation["samples"], figures["steps"]) == (0.5, 12, 120)
    assert validation["media_to_text_recall_at_1"] >= 0.75
    assert {path.name for path in ports["encoders"].iterdir()} == {"own"}
    for name in ("loss.png", "recall.png"):
        assert (ports["plots"] / name).read_bytes()[:4] == b"\x89PNG"
    kind, architecture = ARCHITECTURES[modality]
    encoder = load_encoder(kind, ports["encoders"] / "own", {})
    assert encoder.forward(torch.from_numpy(encoder.blank())[None]).shape == (1, architecture["tokens"], architecture["dim"])


def test_the_same_seed_gives_the_same_bytes(tmp_path, inputs):
    first, second = (run(tmp_path / name, inputs, "imu", steps=6) for name in "ab")
    assert content(first) == content(second)
    other = run(tmp_path / "c", inputs, "imu", steps=6, seed=1)
    assert content(other)["own/encoder.safetensors"] != content(first)["own/encoder.safetensors"]


@pytest.mark.parametrize("modality", MEDIA)
def test_interrupted_and_run_again_it_ends_with_the_same_bytes(tmp_path, inputs, modality, monkeypatch):
    whole = run(tmp_path / "whole", inputs, modality, steps=12)
    step = loop._step

    def dies(*arguments, **keywords):
        if keywords["step"] == 8:
            raise KeyboardInterrupt
        return step(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_step", dies)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "broken", inputs, modality, steps=12)
    assert (tmp_path / "broken" / "encoders" / "state" / "latest").is_dir()
    assert content(run(tmp_path / "broken", inputs, modality, steps=12)) == content(whole)


def test_a_kind_with_weights_of_its_own_cannot_be_trained(tmp_path, inputs):
    with pytest.raises(ConfigError, match=r"pretrain_encoder.kind = hf_clap: comes with weights of its own and cannot be trained here"):
        run(tmp_path, inputs, "audio", kind="hf_clap")


def test_a_kind_of_another_modality_is_refused(tmp_path, inputs):
    with pytest.raises(ConfigError, match=r"pretrain_encoder.kind = log_mel: reads audio, not imu"):
        run(tmp_path, inputs, "imu", kind="log_mel")


@pytest.mark.parametrize(("change", "said"), [({"widht": 8}, "widht"), ({"width": None}, "width")])
def test_a_wrong_architecture_is_named(tmp_path, inputs, change, said):
    architecture = {name: value for name, value in (ARCHITECTURES["imu"][1] | change).items() if value is not None}
    with pytest.raises(ConfigError, match=rf"pretrain_encoder.architecture of imu2clip: .*{said}.*; see its class"):
        run(tmp_path, inputs, "imu", architecture=architecture)


def test_one_label_only_cannot_be_retrieved(tmp_path, inputs):
    shards = make_media(tmp_path / "shards", "imu", ["slow wave"])
    with pytest.raises(DataError, match="the validation split holds 1 distinct label; at least 2 are needed"):
        run(tmp_path / "x", {"imu": inputs["imu"] | {"shards": shards}}, "imu")


def test_a_missing_text_encoder_is_named(tmp_path, inputs):
    with pytest.raises(DataError, match=r"none: no such asset; name it in ingest.assets"):
        run(tmp_path, inputs, "imu", text_encoder="none")


def test_pretrained_weights_are_passed_on(tmp_path, inputs):
    assets = tmp_path / "assets"
    shutil.copytree(inputs["imu"]["assets"], assets)
    (assets / "words" / "asset.json").write_text("{}")
    write_manifest(assets / "words")
    ports = run(tmp_path / "x", {"imu": inputs["imu"] | {"assets": assets}}, "imu", pretrained="words")
    assert (ports["encoders"] / "words" / "model.safetensors").read_bytes() == (assets / "words" / "model.safetensors").read_bytes()
    assert not (ports["encoders"] / "own").exists()
    with pytest.raises(DataError, match="none"):
        run(tmp_path / "y", inputs, "imu", pretrained="none")
