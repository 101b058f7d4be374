"""Clean captioned images from the sources, drop what breaks a rule and say why, split without leaks, and compose scenes with true answers."""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from anymal.errors import ConfigError
from anymal.safety.limits import SafetyLimits
from anymal.stage import Config, In, Out

Fraction = Annotated[float, Field(ge=0, le=1)]
Channel = Annotated[int, Field(ge=0, le=255)]


class Section(BaseModel):
    """A group of knobs; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SourceConfig(Section):
    """One source: an asset's folder and how to read it."""

    asset: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder below the assets port")
    reader: Literal["captioned_folder", "named_folder", "webdataset"]
    licence: str
    exclude: tuple[str, ...] = Field(description="globs of paths within the asset; * stays in a folder, ** does not")
    min_complexity: int = Field(ge=0, description="CAT: relations on an object")
    min_actions: int = Field(ge=0, description="CAT: verbs that say what happens")
    scenes: bool = Field(description="whether its cut-out pictures take part in composed scenes")


class ImagesConfig(Section):
    """What an image file may be, and how it is stored."""

    max_bytes: int = Field(gt=0)
    max_pixels: int = Field(gt=0, description="checked in the header, before decoding")
    min_side: int = Field(gt=0)
    size: int = Field(ge=32, le=4096, description="longest side of a stored picture")
    background: tuple[Channel, Channel, Channel] = Field(description="RGB below transparent pixels")
    jpeg_quality: int = Field(ge=1, le=95)


class CaptionsConfig(Section):
    """What a caption may be."""

    max_characters: int = Field(gt=0, description="of the raw caption")
    min_words: int = Field(ge=1)
    max_words: int = Field(ge=1)
    min_english: Fraction = Field(description="share of words known in English")
    author_min_images: int = Field(ge=2, description="different pictures after which an ending of file names is an author")


class DuplicatesConfig(Section):
    """When two pictures are one (same) or may stem from one object (related): bits of 64 of pHash, and mean colour difference of 255."""

    same_bits: int = Field(ge=0, le=64)
    same_colour: float = Field(ge=0, le=255)
    related_bits: int = Field(ge=0, le=64)
    related_colour: float = Field(ge=0, le=255)


class SceneCounts(Section):
    """Scenes per split."""

    train: int = Field(ge=0)
    val: int = Field(ge=0)
    test: int = Field(ge=0)


class ScenesConfig(Section):
    """Composed scenes."""

    count: SceneCounts
    size: int = Field(ge=64, le=2048, description="side of the canvas")
    max_objects: int = Field(ge=2, le=4)
    min_complexity: int = Field(ge=0)
    min_actions: int = Field(ge=0)


class CurateImageConfig(Config):
    """Knobs of curate_image. Sides in pixels, sizes in bytes, scores and fractions 0 to 1."""

    sources: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")], SourceConfig] = Field(min_length=1)
    images: ImagesConfig
    captions: CaptionsConfig
    face_threshold: Fraction
    ocr_side: int = Field(ge=32, le=4096, description="longest side at which text is looked for")
    ocr_min_characters: int = Field(ge=1, description="of a recognised string that the caption repeats")
    duplicates: DuplicatesConfig
    val_fraction: Fraction
    test_fraction: Fraction
    scenes: ScenesConfig
    safety: SafetyLimits | None = Field(description="what the guard's classifiers leave out; null: they are not asked")
    samples_per_shard: int = Field(gt=0)
    report_thumbnails: int = Field(ge=0, le=40, description="per rule")
    workers: int = Field(ge=1, le=256)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(f"val_fraction + test_fraction = {self.val_fraction + self.test_fraction:g} leaves nothing to train on")
        if self.captions.min_words > self.captions.max_words:
            raise ValueError(f"captions.min_words = {self.captions.min_words} exceeds max_words = {self.captions.max_words}")
        if self.duplicates.related_bits < self.duplicates.same_bits or self.duplicates.related_colour < self.duplicates.same_colour:
            raise ValueError("duplicates.related_* must be at least same_*: what is one picture is related too")
        return self


def curate_image(config: CurateImageConfig, *, assets: In, guard: In, shards: Out, stamps: Out, report: Out, statistics: Out) -> None:
    """Curate captioned images and compose scenes: shards, cut-outs for clips, a report of what was kept and dropped, and statistics."""
    from anymal.curation import output
    from anymal.curation.captions import CaptionLimits
    from anymal.curation.images import ImageLimits
    from anymal.curation.parser import load_parser
    from anymal.curation.pipeline import DuplicateSettings, SceneSettings, Source, curate_images
    from anymal.curation.workers import ImageSettings
    from anymal.data.manifest import write_manifest
    from anymal.safety.filters import open_screen

    if assets.is_file():
        raise ConfigError(f"--assets {assets}: is a file; give the folder that holds one folder per asset")
    sources = [Source(name=name, root=assets / source.asset, **source.model_dump(exclude={"asset"})) for name, source in config.sources.items()]
    limits = ImageLimits(config.images.max_bytes, config.images.max_pixels, config.images.min_side)
    image_settings = ImageSettings(limits, config.images.size, config.images.background, config.images.jpeg_quality, config.face_threshold,
                                   config.ocr_side, config.ocr_min_characters)
    texts, scenes = config.captions, config.scenes
    shards.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=shards.parent, prefix=".curate-") as scratch:
        curated = curate_images(
            sources, captions=CaptionLimits(texts.max_characters, texts.min_words, texts.max_words, texts.min_english),
            author_min_images=texts.author_min_images, image_settings=image_settings,
            duplicate_settings=DuplicateSettings(**config.duplicates.model_dump()),
            scene_settings=SceneSettings(scenes.count.model_dump(), **scenes.model_dump(exclude={"count"})), seed=config.seed, parser=load_parser(),
            val_fraction=config.val_fraction, test_fraction=config.test_fraction, scratch=type(shards)(scratch), workers=config.workers,
            screen=open_screen(guard, config.safety), say=lambda line: print(f"curate_image: {line}", file=sys.stderr))
        counts = output.write_shards(curated, shards, config.samples_per_shard)
        output.write_stamps(curated, stamps)
        figures = output.statistics(curated)
        output.write_report(report, figures=figures, curated=curated, limits=limits, background=config.images.background,
                            thumbnails=config.report_thumbnails)
    output.write_card(shards, figures=figures, curated=curated, counts=counts)
    write_manifest(shards)
    write_manifest(stamps)
    statistics.write_text(json.dumps({"modality": "image", **figures}, indent=1) + "\n", encoding="utf-8")
