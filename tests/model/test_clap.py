"""The CLAP encoder on a small random tower saved as a Hugging Face folder."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from anymal.errors import DataError
from anymal.media.audio import write_flac
from anymal.model.encoders import load_encoder
from anymal.model.encoders.clap import HuggingFaceClap

RATE = 48_000


def save_tower(folder: Path, *, fusion: bool = False) -> Path:
    """A whole small CLAP, or the audio tower alone of a fused one."""
    from transformers import ClapAudioConfig, ClapAudioModel, ClapConfig, ClapFeatureExtractor, ClapModel, ClapTextConfig

    torch.manual_seed(0)
    audio = ClapAudioConfig(depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2], patch_embeds_hidden_size=8, hidden_size=64, projection_dim=16,
                            enable_fusion=fusion, fusion_type="aff_2d" if fusion else None, aff_block_r=1)
    text = ClapTextConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, projection_dim=16)
    model = ClapAudioModel(audio) if fusion else ClapModel(ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=16))
    model.save_pretrained(folder)
    ClapFeatureExtractor(truncation="fusion" if fusion else "rand_trunc").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tower(tmp_path_factory.mktemp("clap"))


@pytest.fixture(scope="module")
def clap(tower: Path) -> HuggingFaceClap:
    return HuggingFaceClap(tower)


def click(second: float) -> np.ndarray:
    """Ten seconds of faint noise with a burst at one moment."""
    samples = np.random.default_rng((0, 1)).normal(0, 1e-3, 10 * RATE).astype(np.float32)
    start = round(second * RATE)
    samples[start : start + RATE // 20] += np.random.default_rng((0, 2)).uniform(-0.5, 0.5, RATE // 20).astype(np.float32)
    return samples


def tokens(clap: HuggingFaceClap, samples: np.ndarray) -> torch.Tensor:
    medium = clap.read(io.BytesIO(write_flac(samples, RATE)), "click.flac")
    return clap.forward(torch.from_numpy(medium)[None])[0]


def test_shapes(clap: HuggingFaceClap) -> None:
    assert (clap.tokens, clap.dim, clap.modality) == (32, 64, "audio")
    assert clap.blank().shape == (1, 1001, 64)
    assert clap.blank().dtype == np.float32
    out = clap.forward(torch.from_numpy(np.stack([clap.blank()] * 2)))
    assert out.shape == (2, 32, 64)
    assert out.dtype == torch.float32
    assert not out.requires_grad


def test_tokens_are_in_the_order_of_time(clap: HuggingFaceClap) -> None:
    quiet = np.random.default_rng((0, 1)).normal(0, 1e-3, 10 * RATE).astype(np.float32)
    silent = tokens(clap, quiet)
    for second in (0.9, 4.5, 8.3):
        change = (tokens(clap, click(second)) - silent).norm(dim=1)
        assert abs(int(change.argmax()) - second / 10 * 32) < 1.5
        far = [index for index in range(32) if abs(index - second / 10 * 32) > 10]
        assert change[far].max() < change.max() / 4


def test_reads_other_rates_lengths_and_channels_as_one(clap: HuggingFaceClap) -> None:
    wave = 0.4 * np.sin(2 * np.pi * 440 * np.arange(12 * 16_000) / 16_000)
    long = clap.read(io.BytesIO(write_flac(wave, 16_000)), "long.flac")
    assert long.shape == (1, 1001, 64)
    ten = clap.read(io.BytesIO(write_flac(wave[: 10 * 16_000], 16_000)), "ten.flac")
    assert np.abs(long[:, :900] - ten[:, :900]).max() < 0.1  # heard from the start, not from anywhere
    assert np.array_equal(long, clap.read(io.BytesIO(write_flac(wave, 16_000)), "long.flac"))


def test_fused_tower_takes_the_same_sound(tmp_path: Path) -> None:
    fused = HuggingFaceClap(save_tower(tmp_path / "fused", fusion=True))
    assert fused.blank().shape == (1, 1001, 64)
    assert (fused.tokens, fused.dim) == (32, 64)


def test_picture_is_a_png(clap: HuggingFaceClap) -> None:
    assert clap.picture(clap.blank()).startswith(b"\x89PNG")
    assert clap.picture(clap.blank()) == clap.picture(clap.blank())


def test_bad_sound_is_one_sentence(clap: HuggingFaceClap) -> None:
    with pytest.raises(DataError, match=r"^x\.wav: .*cannot be read as a sound"):
        clap.read(io.BytesIO(b"no sound at all"), "x.wav")


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="name a CLAP folder"):
        HuggingFaceClap(tmp_path)


def test_folder_of_another_model(tmp_path: Path) -> None:
    from transformers import ClapFeatureExtractor, ViTConfig

    ViTConfig().save_pretrained(tmp_path)
    ClapFeatureExtractor().save_pretrained(tmp_path)
    with pytest.raises(DataError, match="is a model of type vit"):
        HuggingFaceClap(tmp_path)


def test_registered(tower: Path) -> None:
    assert isinstance(load_encoder("hf_clap", tower, {}), HuggingFaceClap)
