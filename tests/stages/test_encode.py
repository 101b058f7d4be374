import json

import numpy as np
import pytest
import torch
from PIL import Image

from anymal.data.encoding import encode_shards
from anymal.data.features import FeatureStore
from anymal.data.manifest import fingerprint, verify_manifest, write_manifest
from anymal.data.shards import Sample, ShardWriter
from anymal.errors import ConfigError, DataError
from anymal.media.image import MAX_PIXELS, open_image
from anymal.model.encoders import load_encoder
from anymal.model.encoders.image import EfficientNetLite, HuggingFaceVision
from anymal.stages.encode import EncodeConfig, encode
from tests.tiny import ARCHITECTURES, MEDIA, VIDEO_ENCODER, make_encoder, make_shards, make_trained_encoder, picture, sample

ABOUT = {"modality": "image", "encoder": {"asset": "tiny-encoder", "kind": "efficientnet_lite", "settings": {}}}


class CountingEncoder:
    """The mean colour of a picture as one token; counts what it was asked for."""

    tokens, dim = 1, 3

    def __init__(self):
        self.seen = 0

    def read(self, source, name):
        return np.asarray(open_image(source, name).resize((2, 2)), dtype=np.float32).transpose(2, 0, 1) / 255

    def blank(self):
        return np.full((3, 2, 2), 0.5, dtype=np.float32)

    def forward(self, batch):
        self.seen += len(batch)
        return batch.mean((2, 3))[:, None]


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    return make_encoder(tmp_path_factory.mktemp("assets") / "tiny-encoder")


def test_every_sample_is_encoded_once_in_order(tmp_path):
    shards, encoder = make_shards(tmp_path / "shards", {"train": 10, "val": 3}), CountingEncoder()
    encode_shards(encoder, [shards], tmp_path / "f", batch_size=4, workers=2, description=ABOUT)
    store = FeatureStore(tmp_path / "f", "train")
    assert len(store) == 10
    assert encoder.seen == 13 + 1  # and the blank
    for row in range(10):
        assert store.meta(row)["key"] == f"train-{row:04d}"
        expected = {"red": [1, 0, 0], "green": [0, 128 / 255, 0], "blue": [0, 0, 1]}[("red", "green", "blue")[row % 3]]
        assert store.features([row])[0, 0].tolist() == pytest.approx(expected, abs=1e-3)
    assert store.blank().tolist() == [[0.5, 0.5, 0.5]]
    verify_manifest(tmp_path / "f")


def test_whole_shards_are_not_encoded_again(tmp_path):
    shards, encoder = make_shards(tmp_path / "shards", {"train": 20}), CountingEncoder()
    encode_shards(encoder, [shards], tmp_path / "whole", batch_size=4, workers=1, description=ABOUT)

    class Dies(CountingEncoder):
        def forward(self, batch):
            if self.seen > 10:
                raise KeyboardInterrupt
            return super().forward(batch)

    with pytest.raises(KeyboardInterrupt):
        encode_shards(Dies(), [shards], tmp_path / "f", batch_size=4, workers=1, description=ABOUT)
    again = CountingEncoder()
    encode_shards(again, [shards], tmp_path / "f", batch_size=4, workers=1, description=ABOUT)
    assert again.seen == 20 - 8 + 1
    assert verify_manifest(tmp_path / "f") == verify_manifest(tmp_path / "whole")


def test_a_damaged_picture_is_named(tmp_path):
    good = picture("red")
    with ShardWriter(tmp_path / "s", "train", 8) as writer:
        one = sample("broken", "train")
        writer.write(type(one)(one.key, one.extension, good[: len(good) // 2], one.meta))
    write_manifest(tmp_path / "s")
    with pytest.raises(DataError, match=r"broken\.png: cannot be read as a picture"):
        encode_shards(CountingEncoder(), [tmp_path / "s"], tmp_path / "f", batch_size=2, workers=1, description=ABOUT)


def test_a_shard_that_changed_after_curation_is_refused(tmp_path):
    shards = make_shards(tmp_path / "shards", {"train": 3})
    with (shards / "train-00000.tar").open("r+b") as stream:
        stream.seek(600)
        stream.write(b"x")
    with pytest.raises(DataError, match=r"changed train-00000\.tar"):
        encode_shards(CountingEncoder(), [shards], tmp_path / "f", batch_size=2, workers=1, description=ABOUT)


@pytest.mark.parametrize(("data", "said"), [(b"", "cannot be read"), (b"hello", "cannot be read"), (picture("red")[:60], "cannot be read")])
def test_what_is_no_picture_is_refused(tmp_path, data, said):
    path = tmp_path / "x.png"
    path.write_bytes(data)
    with pytest.raises(DataError, match=said):
        open_image(path, str(path))


@pytest.mark.parametrize("size", [(30_000, 20_000), (10_000, 8_000)])
def test_a_bomb_is_refused_from_its_header(tmp_path, size):
    import struct
    import zlib

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    path = tmp_path / "bomb.png"
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))))
    with pytest.raises(DataError, match=f"more (pixels )?than the {MAX_PIXELS} allowed"):
        open_image(path, "bomb.png")


def test_transparency_is_laid_on_white_and_orientation_applied(tmp_path):
    clear = Image.new("RGBA", (4, 2), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert open_image(tmp_path / "clear.png", "x").getpixel((0, 0)) == (255, 255, 255)
    turned = Image.new("RGB", (4, 2), "red")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg", "x").size == (2, 4)


def test_the_fast_encoder_gives_what_the_plain_network_gives(encoder_folder):
    from efficientnet_lite_pytorch import EfficientNet
    from safetensors.torch import load_file

    plain = EfficientNet.from_name("efficientnet-lite0")
    plain.load_state_dict(load_file(encoder_folder / "model.safetensors"))
    plain.eval()
    fast = EfficientNetLite(encoder_folder)
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(fast.preprocess(Image.fromarray(rng.integers(0, 255, (300, 200, 3), dtype=np.uint8))))[None]
    with torch.inference_mode():
        expected = plain.extract_features(pixels).flatten(2).transpose(1, 2)
    got = fast.forward(pixels)
    assert got.shape == (1, fast.tokens, fast.dim)
    cosine = torch.nn.functional.cosine_similarity(got.flatten(), expected.flatten(), dim=0)
    assert cosine > 0.995


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2"])
def test_any_hugging_face_vision_tower_encodes(tmp_path, family):
    import transformers as tf

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
    if family == "clip":
        text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 60}
        model = tf.CLIPModel(tf.CLIPConfig(vision_config=small, text_config=text, projection_dim=16))
        processor = tf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        tokens = 17
    elif family == "siglip":
        model, tokens = tf.SiglipVisionModel(tf.SiglipVisionConfig(**small)), 16
        processor = tf.SiglipImageProcessor(size={"height": 32, "width": 32})
    else:
        model, tokens = tf.Dinov2Model(tf.Dinov2Config(**{k: v for k, v in small.items() if k != "intermediate_size"})), 17
        processor = tf.BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    encoder = HuggingFaceVision(tmp_path, -2)
    pixels = torch.from_numpy(encoder.preprocess(Image.new("RGB", (50, 40), "red")))[None]
    out = encoder.forward(pixels)
    assert out.shape == (1, tokens, 32) == (1, encoder.tokens, encoder.dim)
    assert not torch.equal(out, HuggingFaceVision(tmp_path).forward(pixels))
    with pytest.raises(ConfigError, match=r"encoder settings.layer = 9"):
        HuggingFaceVision(tmp_path, 9)


def test_unknown_kinds_settings_and_missing_folders_are_named(tmp_path, encoder_folder):
    with pytest.raises(ConfigError, match="encoder kind = vgg: unknown"):
        load_encoder("vgg", tmp_path, {})
    with pytest.raises(DataError, match=r"no such encoder; name it in ingest.assets"):
        load_encoder("hf_vision", tmp_path / "none", {})
    with pytest.raises(ConfigError, match=r"encoder settings.layer = 2: efficientnet_lite has no such setting; it has none"):
        load_encoder("efficientnet_lite", encoder_folder, {"layer": 2})
    with pytest.raises(ConfigError, match=r"encoder settings of video_frames: missing .* it has image_kind, frames, grid"):
        load_encoder("video_frames", encoder_folder, {"frames": 2})


def test_the_index_names_the_encoder(tmp_path):
    encode_shards(CountingEncoder(), [make_shards(tmp_path / "s", {"test": 2})], tmp_path / "f", batch_size=2, workers=1, description=ABOUT)
    index = json.loads((tmp_path / "f" / "features.json").read_text())
    assert index["encoder"] == ABOUT["encoder"]
    assert index["shards"] == [{"name": "test-00000", "count": 2}]


def media_shards(folder, modality, count=3):
    """Shards of one medium, again and again."""
    name, content = MEDIA[modality]
    with ShardWriter(folder, "train", 8) as writer:
        for index in range(count):
            writer.write(Sample(f"k{index}", name.rpartition(".")[2], content(), sample("k", "train").meta))
    write_manifest(folder)
    return folder


def knobs(modality, kind, encoder="tiny-encoder", **settings):
    return EncodeConfig(seed=0, modality=modality, encoder=encoder, kind=kind, settings=settings, batch_size=2, workers=1)


@pytest.mark.parametrize("modality", ["audio", "imu"])
def test_a_trained_encoder_goes_with_its_features(tmp_path, modality):
    make_trained_encoder(tmp_path / "encoders" / "own", modality)
    kind, architecture = ARCHITECTURES[modality]
    features = tmp_path / "f"
    encode(knobs(modality, kind, "own"), shards=(media_shards(tmp_path / "s", modality),), encoders=tmp_path / "encoders", features=features)
    store = FeatureStore(features, "train")
    assert (store.tokens, store.dim, store.info["frames"]) == (architecture["tokens"], architecture["dim"], 1)
    assert store.info["encoder"] == {"asset": None, "sha256": fingerprint(tmp_path / "encoders" / "own"), "kind": kind, "settings": {}}
    loaded = load_encoder(kind, features / "encoder", {})
    again = loaded.forward(torch.from_numpy(loaded.blank())[None])[0].half()
    assert torch.equal(again, store.blank())
    assert not torch.equal(store.features([0])[0], store.blank())


def test_frames_of_a_video_are_counted(tmp_path, encoder_folder):
    shards = media_shards(tmp_path / "s", "video", 2)
    encode(knobs("video", "video_frames", **VIDEO_ENCODER["settings"]), shards=(shards,), encoders=encoder_folder.parent, features=tmp_path / "f")
    store = FeatureStore(tmp_path / "f", "train")
    assert (store.tokens, store.dim, store.info["frames"]) == (8, 1280, 2)
    assert store.info["encoder"]["asset"] == "tiny-encoder"
    assert not (tmp_path / "f" / "encoder").exists()


def test_a_kind_of_another_modality_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"encode.kind = log_mel: reads audio, but encode.modality = imu"):
        encode(knobs("imu", "log_mel"), shards=(tmp_path,), encoders=tmp_path, features=tmp_path / "f")


@pytest.mark.parametrize("modality", ["audio", "video", "imu"])
def test_a_damaged_medium_is_named(tmp_path, modality, encoder_folder):
    kind, settings = ("video_frames", VIDEO_ENCODER["settings"]) if modality == "video" else (ARCHITECTURES[modality][0], {})
    encoders = encoder_folder.parent if modality == "video" else make_trained_encoder(tmp_path / "encoders" / "tiny-encoder", modality).parent
    name, _ = MEDIA[modality]
    with ShardWriter(tmp_path / "s", "train", 8) as writer:
        writer.write(Sample("broken", name.rpartition(".")[2], b"not a medium", sample("k", "train").meta))
    write_manifest(tmp_path / "s")
    with pytest.raises(DataError, match=r"train-00000.tar: broken\."):
        encode(knobs(modality, kind, **settings), shards=(tmp_path / "s",), encoders=encoders, features=tmp_path / "f")


def test_media_of_human_instructions_go_along(tmp_path):
    """A folder of folders by modality beside the curated shards; where it holds none for this modality, nothing is added."""
    shards = make_shards(tmp_path / "s", {"train": 3, "val": 2})
    own, other = tmp_path / "human" / "image", tmp_path / "human" / "audio"
    with ShardWriter(own, "train", 8) as writer:
        writer.write(sample("own-0", "train", "blue"))
    write_manifest(own)
    other.mkdir()
    write_manifest(other)
    encode_shards(CountingEncoder(), [shards, own], tmp_path / "f", batch_size=2, workers=1, description=ABOUT)
    store = FeatureStore(tmp_path / "f", "train")
    assert [store.meta(row)["key"] for row in range(len(store))] == ["train-0000", "train-0001", "train-0002", "own-0"]
    assert len(FeatureStore(tmp_path / "f", "val")) == 2
    encode_shards(CountingEncoder(), [shards, other], tmp_path / "g", batch_size=2, workers=1, description=ABOUT)
    assert len(FeatureStore(tmp_path / "g", "train")) == 3
