"""Cut motion recordings into windows with captions, drop what breaks a rule and say why, and split by person or video."""

from __future__ import annotations

import json
import string
import tempfile
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from anymal.errors import ConfigError
from anymal.stage import Config, In, Out

Fraction = Annotated[float, Field(ge=0, le=1)]
Label = Annotated[str, Field(pattern=r"^[a-z][a-z0-9 -]*$")]


class HeldOutConfig(BaseModel):
    """Subjects or videos of val and of test."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    val: tuple[int | str, ...]
    test: tuple[int | str, ...]


class MotionSourceConfig(BaseModel):
    """One source: an asset's folder and how to read it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    asset: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder below the assets port")
    reader: Literal["watch_series", "ego4d"]
    licence: str
    held_out: HeldOutConfig = Field(description="the others are drawn by val_fraction and test_fraction")
    labels: dict[str, Label] = Field(description="watch_series: the set's name of an exercise -> label; ego4d has narrations instead")
    captions: tuple[str, ...] = Field(description="watch_series: phrasings with {label}, and {side} if wanted")
    questions: dict[Literal["label", "side"], str] = Field(description="watch_series: kind -> question")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        both = set(map(str, self.held_out.val)) & set(map(str, self.held_out.test))
        if both:
            raise ValueError(f"held_out: {min(both)} is in val and in test; keep one")
        if self.reader == "ego4d":
            if self.labels or self.captions or self.questions:
                raise ValueError("labels, captions and questions must be empty for reader ego4d, which has narrations")
            return self
        if not self.labels or not self.captions:
            raise ValueError("labels and captions must not be empty for reader watch_series")
        for caption in self.captions:
            fields = _fields(caption)
            if "label" not in fields or not fields <= {"label", "side"}:
                raise ValueError(f"caption {caption!r} must have {{label}} and may have {{side}}, nothing else in braces")
        names = sorted(self.labels.values())
        for name in names:
            if sum(name in other for other in names) > 1:
                raise ValueError(f"label {name!r} comes twice or is a part of another; an answer must name one of them")
        return self


def _fields(caption: str) -> set[str | None]:
    try:
        return {field for _, field, _, _ in string.Formatter().parse(caption) if field is not None}
    except ValueError:
        return {None}


class CurateImuConfig(Config):
    """Knobs of curate_imu."""

    sources: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")], MotionSourceConfig] = Field(min_length=1)
    window_seconds: float = Field(gt=0, le=60)
    stride_seconds: float = Field(gt=0, description="between windows of one series in train")
    test_stride_seconds: float = Field(gt=0, description="the same in val and test")
    rate: int = Field(ge=10, le=1000, description="Hz of stored windows")
    val_fraction: Fraction = Field(description="of the subjects or videos that no source holds out by name")
    test_fraction: Fraction
    samples_per_shard: int = Field(gt=0)
    report_examples: int = Field(ge=0, le=40, description="traces of kept windows, and names per reason")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(f"val_fraction + test_fraction = {self.val_fraction + self.test_fraction:g} leaves nothing to train on")
        if self.test_stride_seconds < self.window_seconds:
            raise ValueError(f"test_stride_seconds = {self.test_stride_seconds:g} is less than window_seconds: windows of the test would overlap")
        return self


def curate_imu(config: CurateImuConfig, *, assets: In, shards: Out, report: Out, statistics: Out) -> None:
    """Curate motion recordings: shards of windows, a report of what was kept and dropped, and statistics."""
    from anymal.curation import motions
    from anymal.curation.ego4d import Ego4d
    from anymal.data.manifest import write_manifest

    if assets.is_file():
        raise ConfigError(f"--assets {assets}: is a file; give the folder that holds one folder per asset")
    sources = []
    for name, source in config.sources.items():
        root = assets / source.asset
        if not root.is_dir():
            raise ConfigError(f"curate_imu.sources.{name}.asset = {source.asset}: {root} is no folder; add the asset to ingest.assets and run ingest")
        reader: motions.Reader = Ego4d(root) if source.reader == "ego4d" else motions.WatchSeries(
            root, labels=source.labels, captions=source.captions, questions={str(kind): asked for kind, asked in source.questions.items()})
        held_out = {"val": [*map(str, source.held_out.val)], "test": [*map(str, source.held_out.test)]}
        sources.append(motions.Source(name, source.licence, reader, held_out))
    shards.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=shards.parent, prefix=".curate-imu-") as scratch:
        curated = motions.curate_motions(
            sources, seconds=config.window_seconds, rate=config.rate, stride=config.stride_seconds, test_stride=config.test_stride_seconds,
            val_fraction=config.val_fraction, test_fraction=config.test_fraction, seed=config.seed, scratch=type(shards)(scratch),
            examples=config.report_examples)
        motions.write_shards(curated, shards, config.samples_per_shard)
        figures = motions.statistics(curated)
        motions.write_report(report, curated, figures, config.report_examples)
    motions.write_card(shards, curated, figures)
    write_manifest(shards)
    statistics.write_text(json.dumps({"modality": "imu", **figures}, indent=1) + "\n", encoding="utf-8")
