from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from anymal.errors import ConfigError, DataError
from anymal.media.video import write_mp4
from anymal.model.encoders import load_encoder
from anymal.model.encoders.video import HuggingFaceVideo, VideoFrames, _Preparation
from tests.tiny import make_encoder

FRAMES = [Image.new("RGB", (64, 48), colour) for colour in ("red", "green", "blue", "yellow")]


def apart(left: torch.Tensor, right: torch.Tensor) -> float:
    """The greatest difference, as a share of the greatest value (random networks give tiny values)."""
    return float((left - right).abs().max() / right.abs().max())


def clip(frames: list[Image.Image]) -> io.BytesIO:
    return io.BytesIO(write_mp4([frame for frame in frames for _ in range(2)], 8))


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("assets") / "tiny-encoder")


@pytest.fixture(scope="module")
def frames_encoder(image_folder: Path) -> Any:
    return load_encoder("video_frames", image_folder, {"image_kind": "efficientnet_lite", "frames": 4, "grid": 2})


def make_tower(folder: Path, kind: str = "videomae") -> Path:
    """A tiny random video tower with its processor's configuration."""
    from transformers import VideoMAEConfig, VideoMAEImageProcessor, VideoMAEModel, VJEPA2Config, VJEPA2Model

    torch.manual_seed(0)
    if kind == "videomae":
        VideoMAEModel(VideoMAEConfig(image_size=32, patch_size=16, num_frames=4, tubelet_size=2, hidden_size=16, num_hidden_layers=2,
                                     num_attention_heads=2, intermediate_size=16, initializer_range=0.5)).save_pretrained(folder)
    else:
        VJEPA2Model(VJEPA2Config(crop_size=32, patch_size=16, frames_per_clip=4, hidden_size=24, num_attention_heads=2, num_hidden_layers=2,
                                 pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=1)).save_pretrained(folder)
    VideoMAEImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tower_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tower(tmp_path_factory.mktemp("assets") / "tiny-videomae")


def test_tokens_are_the_frames_pooled_one_after_another(frames_encoder: VideoFrames, image_folder: Path) -> None:
    medium = frames_encoder.read(clip(FRAMES), "v")
    assert medium.shape == (4, 3, 224, 224)
    assert medium.dtype == np.float32
    tokens = frames_encoder.forward(torch.from_numpy(medium)[None])
    assert tokens.shape == (1, frames_encoder.tokens, frames_encoder.dim) == (1, 16, 1280)
    assert (tokens.dtype, tokens.requires_grad, frames_encoder.frames) == (torch.float32, False, 4)
    image = load_encoder("efficientnet_lite", image_folder, {})
    maps = image.forward(torch.from_numpy(medium)).unflatten(1, (7, 7))
    corner = maps[2, :4, :4].mean(dim=(0, 1))
    assert apart(tokens[0, 8], corner) < 0.02, "first cell of the third frame"
    assert apart(tokens[0, 4], corner) > 0.1


def test_reversed_videos_give_reversed_frames(frames_encoder: VideoFrames) -> None:
    forward, backward = (frames_encoder.forward(torch.from_numpy(frames_encoder.read(clip(frames), "v"))[None])[0].unflatten(0, (4, 4))
                         for frames in (FRAMES, FRAMES[::-1]))
    assert apart(forward, backward.flip(0)) < 0.05
    assert apart(forward, backward) > 0.1


def test_a_video_does_not_depend_on_its_batch(frames_encoder: VideoFrames, monkeypatch: pytest.MonkeyPatch) -> None:
    media = torch.from_numpy(np.stack([frames_encoder.read(clip(FRAMES), "v"), frames_encoder.blank()]))
    together = frames_encoder.forward(media)
    monkeypatch.setattr("anymal.model.encoders.video.FRAMES_AT_ONCE", 3)
    assert apart(frames_encoder.forward(media), together) < 0.05


def test_all_tokens_of_frames_can_be_kept(image_folder: Path) -> None:
    encoder = VideoFrames(image_folder, "efficientnet_lite", frames=2, grid=None)
    assert encoder.forward(torch.from_numpy(encoder.blank())[None]).shape == (1, 98, 1280) == (1, encoder.tokens, encoder.dim)


@pytest.mark.slow
def test_the_class_token_is_left_out_of_the_grid(tmp_path: Path) -> None:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    CLIPVisionModel(CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32,
                                     patch_size=8)).save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    encoder = load_encoder("video_frames", tmp_path, {"image_kind": "hf_vision", "frames": 3, "grid": 4, "image_settings": {"layer": -1}})
    whole = load_encoder("video_frames", tmp_path, {"image_kind": "hf_vision", "frames": 3, "grid": None})
    assert (encoder.tokens, whole.tokens) == (48, 51)
    medium = torch.from_numpy(encoder.read(clip(FRAMES), "v"))[None]
    patches = whole.forward(medium).unflatten(1, (3, 17))[:, :, 1:]
    assert apart(encoder.forward(medium), patches.flatten(1, 2)) < 1e-5


@pytest.mark.parametrize(("settings", "message"), [
    ({"grid": 8}, r"settings\.grid = 8: efficientnet_lite gives 7 x 7 tokens; choose 1 to 7"), ({"grid": 0}, r"settings\.grid = 0"),
    ({"frames": 0}, r"settings\.frames = 0: must be 1 to 256"), ({"image_kind": "video_frames"}, "reads video; name a kind that reads images"),
    ({"image_kind": "nothing"}, "encoder kind = nothing: unknown"), ({"layer": 3}, r"settings\.layer = 3: video_frames has no such setting"),
    ({"image_settings": {"layer": 3}}, "efficientnet_lite has no such setting"),
])
def test_wrong_settings_of_frames_are_refused(image_folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_encoder("video_frames", image_folder, {"image_kind": "efficientnet_lite", "frames": 2, "grid": 2} | settings)


def test_a_video_tower_gives_hidden_states(tower_folder: Path) -> None:
    encoder = load_encoder("hf_video", tower_folder, {"frames": 4, "layer": -1})
    medium = encoder.read(clip(FRAMES), "v")
    assert medium.shape == (4, 3, 32, 32)
    tokens = encoder.forward(torch.from_numpy(np.stack([medium, encoder.blank()])))
    assert tokens.shape == (2, 8, 16) == (2, encoder.tokens, encoder.dim)
    assert not hasattr(encoder, "frames"), "its tokens carry their time"
    first = load_encoder("hf_video", tower_folder, {"frames": 4, "layer": 0}).forward(torch.from_numpy(medium)[None])
    assert apart(first[0], tokens[0]) > 0.01
    shuffled = encoder.forward(torch.from_numpy(medium[::-1].copy())[None])
    assert apart(shuffled[0], tokens[0]) > 0.01


def test_a_tower_with_a_predictor_is_read_without_it(tmp_path: Path) -> None:
    encoder = HuggingFaceVideo(make_tower(tmp_path, "vjepa2"), frames=4)
    assert encoder.forward(torch.from_numpy(encoder.blank())[None]).shape == (1, 8, 24)


@pytest.mark.parametrize("size", [(64, 48), (50, 77), (33, 47)])
def test_frames_are_prepared_as_by_the_models_own_processor(tower_folder: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    from transformers import VideoMAEImageProcessor, VivitImageProcessor

    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)) for _ in range(3)]
    for processor in (VideoMAEImageProcessor.from_pretrained(tower_folder),
                      VivitImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})):
        processor.save_pretrained(tmp_path)
        theirs = processor(frames, return_tensors="np")["pixel_values"][0]
        ours = _Preparation(tmp_path)
        assert np.allclose(ours(frames), theirs, atol=1e-5)
        again = ours.undo(ours([frames[0].resize((32, 32))]))[0]
        assert again.size == (32, 32)


def test_wrong_towers_are_refused(tower_folder: Path, tmp_path: Path, image_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"settings\.frames = 8: tiny-videomae takes 4 frames"):
        HuggingFaceVideo(tower_folder, frames=8)
    with pytest.raises(ConfigError, match=r"settings\.layer = 5: tiny-videomae has hidden states -3 to 2"):
        HuggingFaceVideo(tower_folder, frames=4, layer=5)
    with pytest.raises(DataError, match=r"has no preprocessor_config\.json"):
        HuggingFaceVideo(image_folder, frames=4)
    (tmp_path / "preprocessor_config.json").write_text('{"crop_size": 3}')
    with pytest.raises(DataError, match="does not say how frames are scaled"):
        HuggingFaceVideo(tmp_path, frames=4)
    (tmp_path / "preprocessor_config.json").write_text('{"size": 32, "do_normalize": false}')
    with pytest.raises(DataError, match=r"is no Hugging Face folder with config\.json"):
        HuggingFaceVideo(tmp_path, frames=4)


def test_pictures_show_the_frames_in_their_order(frames_encoder: VideoFrames, tower_folder: Path) -> None:
    for encoder in (frames_encoder, HuggingFaceVideo(tower_folder, frames=4)):
        sheet = encoder.picture(encoder.read(clip(FRAMES), "v"))
        with Image.open(io.BytesIO(sheet)) as image:
            assert image.format == "PNG"
            colours = [image.convert("RGB").getpixel((image.width * (2 * index + 1) // 8, image.height // 2)) for index in range(4)]
        for colour, expected in zip(colours, ((255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 0)), strict=True):
            assert np.abs(np.subtract(colour, expected)).max() < 25, (colours, expected)


def test_bad_videos_are_refused_by_name(frames_encoder: VideoFrames, tower_folder: Path) -> None:
    for encoder in (frames_encoder, HuggingFaceVideo(tower_folder, frames=4)):
        with pytest.raises(DataError, match=r"^shard: a\.mp4: is empty"):
            encoder.read(io.BytesIO(b""), "shard: a.mp4")
