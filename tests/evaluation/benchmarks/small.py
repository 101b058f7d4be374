"""Small curated shards of four modalities, every benchmark's official layout made from them, and a tiny model to ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anymal.config import validate
from anymal.data.shards import Sample, ShardWriter
from anymal.evaluation.benchmarks.declaration import declarations
from anymal.stage import load_stage, run_stage
from anymal.stages.benchmark import BenchmarkConfig
from scripts.benchmark_layouts import SHARED, SPLITS, make_layouts
from tests.tiny import VIDEO_ENCODER, clip, make_assets, make_checkpoint, make_trained_encoder, motion, picture, sound

COLOURS = ("red", "green", "blue", "yellow", "black", "white")
THINGS = ("apple", "cat", "dog", "duck", "fox", "owl")
COUNT = 8


def _meta(captions: list[str], kind: str, questions: list[tuple[str, str, str]], **more: Any) -> dict[str, Any]:
    asked = [{"question": question, "answer": answer, "kind": sort} for question, answer, sort in questions]
    return {"split": "test", "source": "tiny", "license": "CC0-1.0", "captions": captions, "kind": kind, "questions": asked, "objects": [], **more}


def _image(number: int) -> list[Sample]:
    colour, thing = COLOURS[number % 6], THINGS[number % 6]
    scene = _meta([f"A {thing} on {colour}."], "scene", [
        ("What color is the background?", colour, "color"), (f"Is there a {thing} in the picture?", "yes", "presence"),
        ("What is in the picture?", thing, "object")], objects=[{"name": thing, "box": [1, 2, 3, 4]}])
    photo = _meta([f"A {thing}.", f"One {colour} {thing}."], "photo", [])
    return [Sample(f"scene-{number}", "jpg", picture(colour, (64 + number, 48), kind="JPEG"), scene),
            Sample(f"photo-{number}", "jpg", picture(colour, (48, 64 + number), kind="JPEG"), photo)]


def _video(number: int) -> list[Sample]:
    colour = COLOURS[number % 6]
    meta = _meta([f"A clip on {colour}."], "clip", [("What color is the background?", colour, "color")], duration=1.0)
    return [Sample(f"clip-{number}", "mp4", clip((colour, COLOURS[(number + 1) % 6])), meta)]


def _audio(number: int) -> list[Sample]:
    label = ("kick drum", "bell", "cymbal")[number % 3]
    return [Sample(f"sound-{number}", "wav", sound(200.0 + 50 * number), _meta(
        [f"The sound is a {label}."], "labelled", [("What instrument is it?", label, "label")], label=label))]


def _imu(number: int) -> list[Sample]:
    label, recording = ("rows", "curls", "raises", "swings")[number // 2 % 4], f"s{number // 2}-left"
    return [Sample(f"swing-{number}", "npy", motion(1.0 + number), _meta(
        [f"The person is doing {label}."], "motion", [("What exercise is the person doing?", label, "label")], label=label,
        original=f"{recording}-{5 * (number % 2):.2f}s", start=5.0 * (number % 2)))]


def make_all_shards(folder: Path) -> dict[str, Path]:
    """Modality -> shards of a few test samples."""
    for modality, make in (("image", _image), ("video", _video), ("audio", _audio), ("imu", _imu)):
        with ShardWriter(folder / modality, "test", 100) as writer:
            for number in range(COUNT):
                for sample in make(number):
                    writer.write(sample)
    return {modality: folder / modality for modality in ("image", "video", "audio", "imu")}


def make_sample_layouts(root: Path) -> Path:
    """A folder with the official layout of every benchmark."""
    make_layouts(make_all_shards(root / "shards"), root / "layouts", limit=COUNT)
    return root / "layouts"


def make_ports(root: Path, layouts: Path) -> dict[str, Any]:
    """Ports of the stage: a tiny random model of four modalities, and assets with all layouts as `sample-NAME`."""
    assets = make_assets(root / "assets")
    for folder in layouts.iterdir():
        (assets / f"sample-{folder.name}").symlink_to(folder, target_is_directory=True)
    checkpoints = [
        make_checkpoint(root / "image", "image"),
        make_checkpoint(root / "video", "video", encoder=VIDEO_ENCODER, frames=2),
        *(make_checkpoint(root / modality, modality, linear=True, tokens=2, trained_encoder=make_trained_encoder(root / f"{modality}-own", modality))
          for modality in ("audio", "imu"))]  # fmt: skip
    return {"checkpoints": tuple(checkpoints), "assets": assets}


def knobs(*names: str, **changes: Any) -> dict[str, Any]:
    """A section with these benchmarks (all, if none are named) on the sample layouts."""
    entries = {}
    for name in declarations():
        if not names or name in names:
            entries[name] = {"asset": f"sample-{SHARED.get(name, name)}", "split": SPLITS[name], "protocol": "paper", "samples": None,
                             "max_new_tokens": 3, "media": None}
    return {"seed": 0, "dtype": "float32", "quantization": "none", "attention": "eager", "merge": False, "batch_size": 4,
            "conditions": ["right", "shuffled", "blank", "similar"], "pool": 100, "part": {"index": 0, "of": 1}, "previews": 2,
            "benchmarks": entries, **changes}


def ask(ports: dict[str, Any], target: Path, section: dict[str, Any]) -> Path:
    """Run the stage."""
    run_stage(load_stage("benchmark"), validate(BenchmarkConfig, section, "benchmark"), {**ports, "predictions": target})
    return target
