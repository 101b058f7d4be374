"""The audit finds what was planted, saved again in other ways, and nothing else."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import pytest
from PIL import Image

from anymal.data.features import INDEX, write_feature_shard
from anymal.data.instructions import Instruction, MediumName, write_instructions
from anymal.errors import ConfigError, DataError
from anymal.evaluation.leakage import Thresholds, find_leaks, page, refuse, summary
from anymal.media import likeness
from tests.evaluation.copies import clip, cropped, flac, jpeg, npy, picture, recording, sample, shards, wave

LIMITS = {
    "image": Thresholds(bits=4, colour=12.0, correlation=None, cosine=None), "video": Thresholds(bits=4, colour=6.0, correlation=None, cosine=None),
    "audio": Thresholds(bits=None, colour=None, correlation=0.9, cosine=None), "imu": Thresholds(None, None, correlation=0.92, cosine=None),
}  # fmt: skip
"""The profiles'; features are compared in a test of their own."""
ORIGINAL = {"image": ("jpg", lambda seed: jpeg(picture(seed))), "video": ("mp4", clip), "audio": ("flac", lambda seed: flac(wave(seed))),
            "imu": ("npy", lambda seed: npy(recording(seed)[:250]))}  # fmt: skip
COUNT = 6


@pytest.fixture(scope="module")
def media():
    """Modality -> seed -> the medium; seeds of 100 and more are tested on."""
    return {modality: {seed: make(seed) for seed in (*range(COUNT), *range(100, 100 + COUNT))} for modality, (_, make) in ORIGINAL.items()}


def build(root, media, planted=(), *, split="train", modalities=("image",), **meta):
    """Shards of all splits: the training media, then what is planted among them."""
    for modality in modalities:
        extension = ORIGINAL[modality][0]
        every = {name: [sample(f"{modality}-{seed}", extension, data) for seed, data in media[modality].items() if (seed >= 100) == (name == "test")]
                 for name in ("train", "test")}
        every["val"] = [every["train"].pop()]
        if modality == modalities[0]:
            every[split] += [sample(f"planted-{place}", kind, data, **meta) for place, (kind, data) in enumerate(planted)]
        for name, samples in every.items():
            shards(root / modality, name, samples)
    return {modality: [root / modality] for modality in modalities}


def find(folders, *, features=(), instructions=(), benchmarks=(), limits=LIMITS):
    return find_leaks(folders, dict(features), list(instructions), list(benchmarks), thresholds=limits, workers=2)


def test_different_media_pass_and_the_most_alike_are_named(tmp_path, media):
    found = find(build(tmp_path, media, modalities=tuple(ORIGINAL)))
    assert found.leaks == []
    document = summary(found, LIMITS)
    assert document["passed"] and document["leaks"] == 0
    for modality in ("image", "video", "audio", "imu"):
        entry = document["modalities"][modality]
        assert entry["media"] == {"train": 5, "val": 1, "test": 6} and not any(entry["leaks"].values())
    nearest = document["modalities"]["imu"]["nearest"]["motions"]
    assert nearest["test"].startswith("imu-10") and nearest["split"] in {"train", "val"} and 0 < nearest["correlation"] < 0.9
    assert "0 leaks" in page(document) and nearest["test"] in page(document)
    refuse(found, shown=5, say=lambda _: pytest.fail("nothing to say"))
    json.dumps(document, allow_nan=False)


def resized(data, scale):
    image = Image.open(io.BytesIO(data))
    return image.resize((round(image.width * scale), round(image.height * scale)))


def as_png(data):
    stream = io.BytesIO()
    Image.open(io.BytesIO(data)).save(stream, "PNG")
    return stream.getvalue()


AGAIN = {
    "image": {
        "copy": lambda data: ("jpg", data), "content": lambda data: ("png", as_png(data)),
        "pictures": lambda data: ("jpg", jpeg(Image.open(io.BytesIO(data)), 40)), "pictures, smaller": lambda data: ("jpg", jpeg(resized(data, 0.5))),
        "pictures, larger": lambda data: ("jpg", jpeg(resized(data, 1.7), 80)),
        "pictures, cropped": lambda data: ("jpg", jpeg(cropped(Image.open(io.BytesIO(data)), 0.01))),
        "pictures, darker": lambda data: ("jpg", jpeg(Image.open(io.BytesIO(data)).point(lambda value: value * 0.95))),
    },
    "video": {"copy": lambda data: ("mp4", data), "frames": lambda _: ("mp4", clip(100, (96, 96)))},
    "audio": {
        "copy": lambda data: ("flac", data), "sounds, louder": lambda _: ("flac", flac(1.3 * wave(100))),
        "sounds, other rate": lambda _: ("flac", flac(np.interp(np.arange(0, 16_000, 16 / 22.05), np.arange(16_000), wave(100)), 22_050)),
        "sounds, later": lambda _: ("flac", flac(np.concatenate([np.zeros(900), wave(100)[:-900]]))),
    },
    "imu": {
        "copy": lambda data: ("npy", data), "motions, later": lambda _: ("npy", npy(recording(100)[50:300])),
        "motions, scaled": lambda _: ("npy", npy(recording(100)[:250] * [1, *[1.05] * 6])),
        "motions, noisy": lambda _: ("npy", npy(recording(100)[:250] + np.random.default_rng(1).normal(0, 0.05, (250, 7)) * [0, *[1] * 6])),
        "motions, other rate": lambda _: ("npy", npy(recording(100)[:250:2])),
    },
}  # fmt: skip


@pytest.mark.parametrize(("modality", "kind"), [(modality, kind) for modality, kinds in AGAIN.items() for kind in kinds])
def test_a_test_medium_that_was_saved_again_is_found(tmp_path, media, modality, kind):
    planted = AGAIN[modality][kind](media[modality][100])
    found = find(build(tmp_path, media, [planted], modalities=(modality,), split="val" if kind == "copy" else "train"))
    assert [(leak.kind, leak.test, leak.training) for leak in found.leaks] == [(kind.partition(",")[0], f"{modality}-100", "planted-0")]
    assert found.leaks[0].split == ("val" if kind == "copy" else "train")


def test_groups_keys_and_pictures_in_compositions_are_found(tmp_path, media):
    folders = build(tmp_path, media, [("jpg", jpeg(picture(55)))], group="group of image-101", parts=["image-102", "unknown"])
    shards(tmp_path / "more", "train", [sample("image-103", "jpg", jpeg(picture(56)))])
    shards(tmp_path / "clips" / "video", "train", [sample("clip", "mp4", clip(57), parts=["image-104"])])
    folders["image"].append(tmp_path / "more")
    folders["video"] = [tmp_path / "clips" / "video"]
    found = find(folders)
    assert {(leak.kind, leak.modality, leak.test, leak.training, leak.detail) for leak in found.leaks} == {
        ("group", "image", "group of image-101", "planted-0", ""), ("part", "image", "image-102", "planted-0", "image-102"),
        ("key", "image", "image-103", "image-103", ""), ("group", "image", "group of image-103", "image-103", ""),
        ("part", "video", "image-104", "clip", "image-104")}  # fmt: skip


def instruction(number, *keys, question="<image>\nWhat is it?", answer="A thing.", origin="human"):
    media = tuple(MediumName("image", f"{key}.jpg") for key in keys)
    return Instruction(f"i{number}", media, ((question, answer),), origin, "conversation", "s", "CC0-1.0")


def test_instructions_about_test_media_are_found(tmp_path, media):
    folders = build(tmp_path, media, [("jpg", jpeg(Image.open(io.BytesIO(media["image"][105])), 50))])
    human, made = tmp_path / "human", tmp_path / "made"
    for folder in (human, made):
        folder.mkdir()
    write_instructions(human / "train.json", [instruction(0, "image-1"), instruction(1, "image-100")])
    write_instructions(human / "test.json", [instruction(2, "image-101")])
    write_instructions(made / "val.json", [instruction(3, "planted-0", answer="THIS  is image-105. Yes.", origin="synthetic")])
    found = find(folders, instructions=[human, made])
    assert [leak.sentence() for leak in found.leaks if leak.kind == "instruction"] == [
        "image image-100 (test) and i1 (train): asks about a test medium (human)",
        "image image-105 (test) and i3 (val): asks about a test medium (synthetic, and says what the test says)"]
    document = summary(found, LIMITS)
    assert document["instructions"] == {"human": {"records": 2, "media": 2, "leaks": 1}, "synthetic": {"records": 1, "media": 1, "leaks": 1},
                                        "template": {"records": 0, "media": 0, "leaks": 0}}  # fmt: skip
    with pytest.raises(DataError, match=r"image: holds neither train\.json nor val\.json; give a folder of instructions"):
        find(folders, instructions=[tmp_path / "image"])


def row(benchmark, name, data, modality="image"):
    image = Image.open(io.BytesIO(data)) if modality == "image" else None
    return {"benchmark": benchmark, "id": name, "modality": modality, "sha256": hashlib.sha256(data).hexdigest(),
            "phash": image and likeness.perceptual_hash(image), "miniature": image and likeness.miniature(image).tobytes().hex()}  # fmt: skip


def test_media_of_benchmarks_are_compared_with_training_data(tmp_path, media):
    folders = build(tmp_path, media)
    rows = [row("pope", "new.jpg", jpeg(picture(70))), row("pope", "old.jpg", jpeg(picture(2), 30)), row("vqav2", "same.jpg", media["image"][1]),
            row("vqav2", "tested.jpg", media["image"][100]), row("clotho", "a.wav", media["audio"][0], "audio")]  # fmt: skip
    found = find(folders, benchmarks=rows)
    assert [(leak.kind, leak.held, leak.test, leak.training) for leak in found.leaks] == [
        ("copy", "vqav2", "same.jpg", "image-1"), ("pictures", "pope", "old.jpg", "image-2")]
    document = summary(found, LIMITS)["benchmarks"]
    assert document["clotho.audio"] == {"media": 1, "compared": False, "leaks": dict.fromkeys(document["clotho.audio"]["leaks"], 0), "nearest": {}}
    assert document["pope.image"]["leaks"]["pictures"] == 1 and document["vqav2.image"]["media"] == 2
    assert "benchmark pope" in found.leaks[1].sentence() and "no training data of this modality" in page(summary(found, LIMITS))


def write_features(folder, rows):
    """Features (samples, 2 tokens, 3) by split."""
    folder.mkdir()
    for split, (keys, values) in rows.items():
        write_feature_shard(folder / f"{split}-00000.safetensors", np.repeat(np.array(values, dtype=np.float32)[:, None], 2, axis=1),
                            [{"key": key} for key in keys])
    (folder / INDEX).write_text(json.dumps({"modality": "image", "tokens": 2, "dim": 3, "shards": [
        {"name": f"{split}-00000", "count": len(keys)} for split, (keys, _) in rows.items()]}))
    return folder


def test_what_is_the_same_to_the_encoder_is_found(tmp_path, media):
    folder = write_features(tmp_path / "features", {
        "train": (["a", "b"], [[1, 0, 0], [0, 1, 0.5]]), "val": (["c"], [[0, 0, 1]]), "test": (["x", "y"], [[0.6, 0.6, 0], [2, 0.1, 0]])})
    limits = {"image": Thresholds(4, 12.0, None, cosine=0.99)}
    found = find(build(tmp_path, media), features={"image": folder}, limits=limits)
    assert [(leak.kind, leak.test, leak.training, leak.detail) for leak in found.leaks] == [("features", "y", "a", "cosine 0.9988")]
    nearest = summary(found, limits)["modalities"]["image"]["nearest"]["features"]
    assert nearest == {"test": "x", "training": "a", "split": "train", "cosine": 0.7071}
    assert not find(build(tmp_path / "b", media), features={"image": folder}).leaks, "null: not compared"


def test_leaks_are_said_one_by_one_up_to_a_limit(tmp_path, media):
    planted = [("jpg", media["image"][100 + place]) for place in range(4)]
    found = find(build(tmp_path, media, planted))
    said = []
    with pytest.raises(DataError, match=r"training data hold 4 of what the model is tested on \(copy 4\); the first: image image-100 \(test\) and "
                                        r"planted-0 \(train\): the same file; take them out of training, or loosen audit\.thresholds"):
        refuse(found, shown=3, say=said.append)
    assert len(said) == 4 and said[-1] == "and 1 more"
    assert summary(found, LIMITS)["passed"] is False


def test_what_cannot_be_audited_is_one_sentence(tmp_path, media):
    folders = build(tmp_path, media)
    with pytest.raises(ConfigError, match=r"audit\.thresholds: has nothing for image"):
        find(folders, limits={})
    with pytest.raises(ConfigError, match=r"audit\.thresholds\.image: bits and colour must be numbers"):
        find(folders, limits={"image": Thresholds(None, None, 0.9, None)})
    with pytest.raises(ConfigError, match=r"audit\.thresholds\.imu: correlation must be a number"):
        find(build(tmp_path / "imu", media, modalities=("imu",)), limits={"imu": Thresholds(None, None, None, None)})
    shards(tmp_path / "only", "test", [sample("a", "jpg", media["image"][100])])
    with pytest.raises(DataError, match="the shards hold no training sample"):
        find({"image": [tmp_path / "only"]})
    shards(tmp_path / "bad", "train", [sample("b", "jpg", b"no picture")])
    with pytest.raises(DataError, match=r"image b\.jpg: cannot be read as a picture"):
        find({"image": [tmp_path / "bad"]})


def test_media_of_a_kind_that_nobody_compares_are_told_by_their_bytes(tmp_path, media):
    shards(tmp_path / "toy", "train", [sample("a", "xyz", b"1"), sample("b", "xyz", b"2")])
    shards(tmp_path / "toy", "test", [sample("c", "xyz", b"2")])
    found = find({"toy": [tmp_path / "toy"]}, limits={"toy": Thresholds(None, None, None, None)})
    assert [(leak.kind, leak.test, leak.training) for leak in found.leaks] == [("copy", "c", "b")]
