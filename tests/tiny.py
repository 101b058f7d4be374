"""Tiny random parts for tests of mechanics: a two-layer Llama with a chat template; encoders, media, features and checkpoints by modality."""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anymal.data.features import BLANK, INDEX, write_feature_shard
from anymal.data.manifest import write_manifest
from anymal.data.shards import Sample, ShardWriter
from anymal.data.tensors import save_tensors

WORDS = "a the picture of red green blue apple cat dog left right is to there are two what colour describe yes no . ? , : sound motion drum wave"
CHAT = ("{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant\n{% endif %}")


def make_llm(folder: Path, *, seed: int = 0, hidden: int = 32, spread: float = 0.5) -> Path:
    """A random Llama (2 layers, byte-level tokenizer, chat template) as a Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([WORDS], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.chat_template = CHAT
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=len(fast), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=2, tie_word_embeddings=False, initializer_range=spread)
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    _asset(folder)
    return folder


def make_encoder(folder: Path, *, seed: int = 0) -> Path:
    """An EfficientNet-Lite0 with random weights as an asset folder."""
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "model.safetensors", EfficientNet.from_name("efficientnet-lite0").state_dict())
    _asset(folder)
    return folder


def make_assets(folder: Path) -> Path:
    """The two assets that align and the bundle name: `tiny-llm` and `tiny-encoder`."""
    make_llm(folder / "tiny-llm")
    make_encoder(folder / "tiny-encoder")
    return folder


ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "audio": ("log_mel", {"rate": 8000, "seconds": 0.5, "bands": 16, "window": 256, "hop": 80, "width": 8, "dim": 16, "tokens": 4, "dropout": 0.0}),
    "imu": ("imu2clip", {"seconds": 4.0, "rate": 50, "width": 8, "dim": 16, "tokens": 2}),
}
"""Modality -> kind and architecture of an encoder that is trained here."""


def make_trained_encoder(folder: Path, modality: str, *, seed: int = 0) -> Path:
    """An audio or IMU encoder with random weights, as pretrain_encoder writes it."""
    import torch

    from anymal.model.encoders.audio import LogMel
    from anymal.model.encoders.imu import Imu2Clip

    torch.manual_seed(seed)
    encoder = {"audio": LogMel, "imu": Imu2Clip}[modality].create(ARCHITECTURES[modality][1])
    encoder.save(folder)
    return folder


VIDEO_ENCODER = {"asset": "tiny-encoder", "kind": "video_frames", "settings": {"image_kind": "efficientnet_lite", "frames": 2, "grid": 2},
                 "tokens": 8, "dim": 1280}
"""What a checkpoint says of an encoder of two frames."""
TEMPLATES = {"caption": {"system": None, "user": "describe : {media}"}, "question": {"system": None, "user": "{media}\n{question}"}}
INTRODUCTIONS = {"image": "the picture is {medium} .", "audio": "the sound is {medium} ."}
"""Modality -> how a checkpoint introduces a medium; the others as they are."""


def make_checkpoint(folder: Path, modality: str, *, seed: int = 0, trained_encoder: Path | None = None, templates: Mapping[str, Any] = TEMPLATES,
                    encoder: Mapping[str, Any] | None = None, frames: int = 1, tokens: int = 3, linear: bool = False) -> Path:
    """A checkpoint of an untrained projector onto `tiny-llm`, as align writes it.

    Args:
        trained_encoder: folder of an encoder that no asset holds.
        encoder: what the checkpoint says of it; by default of `tiny-encoder`, or of the trained encoder.
    """
    import torch

    from anymal.model.anymal import write_checkpoint
    from anymal.model.projectors import build_projector

    if encoder is None and trained_encoder is not None:
        kind, architecture = ARCHITECTURES[modality]
        encoder = {"asset": None, "sha256": "0" * 64, "kind": kind, "settings": {}, "tokens": architecture["tokens"], "dim": architecture["dim"]}
    encoder = encoder or {"asset": "tiny-encoder", "kind": "efficientnet_lite", "settings": {}, "tokens": 49, "dim": 1280}
    arguments: dict[str, Any] = {"media_dim": encoder["dim"], "media_tokens": encoder["tokens"], "dim": 32, "tokens": tokens, "output_scale": 0.5}
    if not linear:
        arguments |= {"layers": 1, "heads": 4, "pooled_latents": True, "layout_rank": 2, "media_positions": True, "media_frames": frames}
    torch.manual_seed(seed)
    kind = "linear" if linear else "resampler"
    projector = build_projector(kind, arguments)
    folder.mkdir(parents=True)
    write_checkpoint(folder, projector, {"modality": modality, "llm": "tiny-llm", "projector": {"kind": kind, "arguments": arguments},
                                         "encoder": dict(encoder), "templates": dict(templates),
                                         "introduction": INTRODUCTIONS.get(modality, "{medium}")}, trained_encoder)
    return folder


def _asset(folder: Path) -> None:
    entry = {"name": folder.name, "kind": "file", "path": str(folder), "sha256": "0" * 64, "licence": {"id": "CC0-1.0"}}
    (folder / "asset.json").write_text(json.dumps(entry))
    write_manifest(folder)


def picture(colour: str, size: tuple[int, int] = (64, 48), *, kind: str = "PNG") -> bytes:
    """A plain picture, encoded."""
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, kind)
    return stream.getvalue()


def sound(hertz: float = 440.0, *, seconds: float = 0.5, rate: int = 8000) -> bytes:
    """A decaying tone as a WAV file."""
    stream = io.BytesIO()
    times = np.arange(round(seconds * rate)) / rate
    wave_form = np.sin(2 * np.pi * hertz * times) * np.exp(-4 * times)
    with wave.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((wave_form * 30000).astype("<i2").tobytes())
    return stream.getvalue()


def motion(hertz: float = 1.0, *, seconds: float = 5.0, rate: int = 50) -> bytes:
    """A swing along x, with gravity along z, as a .npy file of (samples, 7)."""
    times = np.arange(round(seconds * rate)) / rate
    swing = np.sin(2 * np.pi * hertz * times)
    table = np.stack([times, swing, 0 * swing, 1 + 0 * swing, 0 * swing, swing, 0 * swing], axis=1).astype(np.float32)
    stream = io.BytesIO()
    np.save(stream, table, allow_pickle=False)
    return stream.getvalue()


def clip(colours: Sequence[str] = ("red", "blue"), *, size: tuple[int, int] = (64, 48), frames: int = 4, rate: int = 8) -> bytes:
    """A video file that shows each colour for `frames` frames."""
    from anymal.media.video import write_mp4

    return write_mp4((Image.new("RGB", size, colour) for colour in colours for _ in range(frames)), rate)


MEDIA: dict[str, tuple[str, Callable[[], bytes]]] = {
    "image": ("red.png", lambda: picture("red")), "audio": ("tone.wav", sound), "video": ("clip.mp4", clip), "imu": ("swing.npy", motion)}
"""Modality -> name and content of a file of it."""


def sample(key: str, split: str, colour: str = "red", **meta: Any) -> Sample:
    """A sample of a plain picture with one caption and one question."""
    return Sample(key, "png", picture(colour), {
        "split": split, "source": "tiny", "license": "CC0-1.0", "captions": [f"a {colour} picture ."], "objects": [], "kind": "scene",
        "questions": [{"question": "what colour is the picture ?", "answer": colour, "kind": "colour"}], "width": 64, "height": 48, **meta})


def make_shards(folder: Path, counts: dict[str, int], *, per_shard: int = 8) -> Path:
    """Curated shards of plain red, green and blue pictures."""
    for split, count in counts.items():
        with ShardWriter(folder, split, per_shard) as writer:
            for index in range(count):
                writer.write(sample(f"{split}-{index:04d}", split, ("red", "green", "blue")[index % 3]))
    write_manifest(folder)
    return folder


def make_features(folder: Path, counts: dict[str, int], *, modality: str = "image", tokens: int = 5, dim: int = 16, frames: int = 1, seed: int = 0,
                  per_shard: int = 8, encoder: Mapping[str, Any] | None = None) -> Path:
    """Feature shards whose features tell the colour that the caption names, plus a little noise."""
    rng = np.random.default_rng(seed)
    colours = ("red", "green", "blue")
    codes = rng.normal(size=(3, tokens, dim)).astype(np.float32)
    folder.mkdir(parents=True)
    shards = []
    for split, count in counts.items():
        for start in range(0, count, per_shard):
            rows = range(start, min(count, start + per_shard))
            metas: Sequence[dict[str, Any]] = [
                {**sample(f"{split}-{i:04d}", split, colours[i % 3]).meta, "key": f"{split}-{i:04d}", "extension": "png"} for i in rows]
            features = np.stack([codes[i % 3] + 0.05 * rng.normal(size=(tokens, dim)) for i in rows]).astype(np.float32)
            name = f"{split}-{start // per_shard:05d}"
            write_feature_shard(folder / f"{name}.safetensors", features, metas)
            shards.append({"name": name, "count": len(metas)})
    import torch

    save_tensors(folder / BLANK, {"features": torch.zeros(1, tokens, dim, dtype=torch.float16)})
    document = {"modality": modality, "encoder": encoder or {"asset": "tiny-encoder", "kind": "efficientnet_lite", "settings": {}},
                "tokens": tokens, "dim": dim, "frames": frames, "shards": shards}
    (folder / INDEX).write_text(json.dumps(document))
    write_manifest(folder)
    return folder


ALIGN = {
    "seed": 3, "modality": "image", "llm": "tiny-llm", "dtype": "float32", "quantization": "none", "attention": "eager", "projector": "resampler",
    "layers": 1, "tokens": 3, "heads": 4, "width": None, "pooled_latents": True, "layout_rank": 2, "media_positions": True,
    "introduction": INTRODUCTIONS["image"], **TEMPLATES, "target_captions": None, "question_kinds": None, "answer_forms": {}, "question_share": 0.25,
    "warm_start_steps": 5, "warm_start_batch_size": 8, "warm_start_learning_rate": 0.003,
    "batch_size": 4, "micro_batch_size": 4, "parallelism": "ddp", "steps": 24, "learning_rate": 0.01,
    "warmup_steps": 3, "weight_decay": 0.01, "gradient_clip": 1.0, "validation_samples": 6, "validate_every": 12, "checkpoint_every": 5,
    "grounding_floor": -10.0,
}
"""Knobs of an alignment that takes seconds."""


def make_instructions(folder: Path, *, modalities: Sequence[str] = ("image",), counts: Mapping[str, int] | None = None, origin: Any = "template",
                      turns: int = 1) -> Path:
    """Conversations about the features that `make_features` makes, with a medium of each modality, whose answer is the colour of the last."""
    from anymal.data.instructions import Instruction, MediumName, write_instructions

    folder.mkdir(parents=True)
    for split, count in (counts or {"train": 24, "val": 6}).items():
        made = []
        for index in range(count):
            media = tuple(MediumName(modality, f"{split}-{index:04d}.png") for modality in modalities)
            head = "\n".join(f"<{modality}>" for modality in modalities)
            colour = ("red", "green", "blue")[index % 3]
            talk = [(f"{head}\nwhat colour is the picture ?", colour), *(("is there a dog ?", "no") for _ in range(turns - 1))]
            made.append(Instruction(f"{origin}-{split}-{index}", media, tuple(talk), origin, "color", "tiny", "CC0-1.0"))
        write_instructions(folder / f"{split}.json", made)
    write_manifest(folder)
    return folder
