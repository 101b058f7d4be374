"""Compose clips with true answers about time from cut-out pictures, clean captioned clips of the sources, and split without leaks."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from anymal.errors import ConfigError
from anymal.stage import Config, In, Out

Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A group of knobs; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ClipSourceConfig(Section):
    """One source of captioned clips: an asset's folder and how to read it."""

    asset: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder below the assets port")
    reader: Literal["webdataset"]
    licence: str
    group_field: str | None = Field(description="field of KEY.json that names the video a clip was cut from; null: each clip is a video of its own")


class VideosConfig(Section):
    """What a clip of a source may be, and how it is stored."""

    max_bytes: int = Field(gt=0, le=500_000_000)
    max_seconds: float = Field(gt=0, le=600)
    min_side: int = Field(ge=16, description="of the stored clip")
    side: int = Field(ge=32, le=2048, description="longer side of the stored clip")
    rate: int = Field(ge=1, le=60, description="frames a second of the stored clip")


class CaptionsConfig(Section):
    """What a source's caption may be."""

    max_characters: int = Field(gt=0, description="of the raw caption")
    min_words: int = Field(ge=1)
    max_words: int = Field(ge=1)
    min_english: Fraction = Field(description="share of words known in English")


class ClipCounts(Section):
    """Composed clips per split."""

    train: int = Field(ge=0)
    val: int = Field(ge=0)
    test: int = Field(ge=0)


class ClipsConfig(Section):
    """Composed clips."""

    count: ClipCounts
    size: int = Field(ge=64, le=1024, multiple_of=2, description="side of the picture")
    frames: int = Field(ge=8, le=256)
    rate: int = Field(ge=1, le=60, description="frames a second")


class CurateVideoConfig(Config):
    """Knobs of curate_video. Sides in pixels, sizes in bytes, fractions 0 to 1."""

    sources: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")], ClipSourceConfig] = Field(description="may be empty")
    videos: VideosConfig
    captions: CaptionsConfig
    val_fraction: Fraction
    test_fraction: Fraction
    clips: ClipsConfig
    samples_per_shard: int = Field(gt=0)
    report_examples: int = Field(ge=0, le=40, description="per split, and per rule")
    workers: int = Field(ge=1, le=256)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(f"val_fraction + test_fraction = {self.val_fraction + self.test_fraction:g} leaves nothing to train on")
        if self.captions.min_words > self.captions.max_words:
            raise ValueError(f"captions.min_words = {self.captions.min_words} exceeds max_words = {self.captions.max_words}")
        if not self.sources and not sum(self.clips.count.model_dump().values()):
            raise ValueError("sources is empty and clips.count is 0 everywhere: there is nothing to curate; name a source, or ask for clips")
        if "clips" in self.sources:
            raise ValueError("sources.clips: the name is taken by the composed clips; choose another")
        return self


def curate_video(config: CurateVideoConfig, *, stamps: In, assets: In, shards: Out, report: Out, statistics: Out) -> None:
    """Curate captioned clips and compose clips of cut-outs: shards, a report of what was kept and dropped, and statistics."""
    from anymal.curation import clip_shards
    from anymal.curation.captions import CaptionLimits
    from anymal.curation.clip_shards import ClipSource, Curated, VideoLimits
    from anymal.curation.clips import plan_clips
    from anymal.curation.duplicates import SPLITS
    from anymal.curation.stamps import load_stamps
    from anymal.data.manifest import write_manifest

    for port, folder in (("stamps", stamps), ("assets", assets)):
        if folder.is_file():
            raise ConfigError(f"--{port} {folder}: is a file; give the folder that {'curate_image' if port == 'stamps' else 'ingest'} wrote")
    limits = VideoLimits(**config.videos.model_dump())
    sources = [ClipSource(name, assets / source.asset, source.licence, source.group_field) for name, source in config.sources.items()]
    counts = config.clips.count.model_dump()
    cutouts, licences = load_stamps(stamps)
    plans = [plan for split in SPLITS for plan in plan_clips(
        cutouts.get(split, []), split=split, count=counts[split], size=config.clips.size, frames=config.clips.frames, rate=config.clips.rate,
        seed=config.seed)]
    found = clip_shards.collect(sources, limits=limits, captions=CaptionLimits(**config.captions.model_dump()), seed=config.seed,
                                val_fraction=config.val_fraction, test_fraction=config.test_fraction)
    curated = Curated(found, plans, licences)
    shards.mkdir(parents=True, exist_ok=True)
    written = clip_shards.write_clips(curated, shards, limits=limits, samples_per_shard=config.samples_per_shard, workers=config.workers,
                                      report_examples=config.report_examples)
    figures = clip_shards.statistics(curated, written)
    clip_shards.write_card(shards, curated, figures)
    write_manifest(shards)
    clip_shards.write_report(report, curated, figures, report_examples=config.report_examples)
    statistics.write_text(json.dumps({"modality": "video", **figures}, indent=1) + "\n", encoding="utf-8")
    print(f"curate_video: {figures['kept']} clips of {figures['seen']} kept", file=sys.stderr)
