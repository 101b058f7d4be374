"""Import instruction data that people wrote, as LLaVA JSON or Label Studio exports: refuse what breaks a rule and say why, split without leaks."""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from anymal.errors import ConfigError
from anymal.safety.limits import SafetyLimits
from anymal.stage import Config, In, Ins, Out

Fraction = Annotated[float, Field(ge=0, le=1)]
Channel = Annotated[int, Field(ge=0, le=255)]


def _inside(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError("must lie within the asset")
    return path


RelativePath = Annotated[str, Field(min_length=1), AfterValidator(_inside)]


class Section(BaseModel):
    """A group of knobs; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SourceConfig(Section):
    """One source: an asset's folder, the records in it, their media, and what is true of records that do not say."""

    asset: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder below the assets port")
    reader: Literal["llava", "label_studio"]
    file: RelativePath = Field(description="of records: .json, or .jsonl with one a line")
    media: RelativePath | None = Field(description="folder that names of media are relative to (. for the asset's top); null: curated members only")
    origin: Literal["human", "synthetic"] = Field(description="who wrote the records")
    kind: str = Field(min_length=1, description="such as conversation, description or reasoning")
    licence: str | None = Field(min_length=1, description="null: each record names its own, or is refused")


class LimitsConfig(Section):
    """What a record may hold."""

    max_characters: int = Field(gt=0, description="of a question or an answer")
    max_turns: int = Field(gt=0)
    max_media: int = Field(gt=0)


class ImagesConfig(Section):
    """What a new picture may be, and how it is stored; as in curate_image."""

    max_pixels: int = Field(gt=0, description="checked in the header, before decoding")
    min_side: int = Field(gt=0)
    size: int = Field(ge=32, le=4096, description="longest side of a stored picture")
    background: tuple[Channel, Channel, Channel] = Field(description="RGB below transparent pixels")
    jpeg_quality: int = Field(ge=1, le=95)
    face_threshold: Fraction = Field(description="score from which a face is blurred")


class SoundsConfig(Section):
    """How a new sound is stored; longer ones are refused."""

    rate: int = Field(ge=8000, le=192_000, description="Hz")
    max_seconds: float = Field(gt=0, le=600)


class VideosConfig(Section):
    """How a new video is stored; longer ones are refused."""

    side: int = Field(ge=32, le=2048, description="longer side of the stored clip")
    min_side: int = Field(ge=16, description="of the stored clip")
    rate: int = Field(ge=1, le=60, description="frames a second")
    max_seconds: float = Field(gt=0, le=600)


class MotionsConfig(Section):
    """How a new motion recording is stored; it must be one window."""

    rate: int = Field(ge=10, le=1000, description="Hz")
    seconds: float = Field(gt=0, le=60)


class MediaConfig(Section):
    """Files that are no members of the curated shards."""

    max_bytes: int = Field(gt=0, le=500_000_000, description="of a file")
    image: ImagesConfig
    audio: SoundsConfig
    video: VideosConfig
    imu: MotionsConfig
    same_bits: int = Field(ge=0, le=64, description="of 64 of pHash, up to which two pictures are one")
    same_colour: float = Field(ge=0, le=255, description="mean colour difference up to which they are")


class ImportInstructionsConfig(Config):
    """Knobs of import_instructions."""

    sources: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")], SourceConfig] = Field(description="may be empty")
    limits: LimitsConfig
    media: MediaConfig
    test_count: int = Field(ge=0, description="instructions held out for people to judge; the paper has 1000")
    val_fraction: float = Field(ge=0, lt=1, description="of the groups that are not held out")
    safety: SafetyLimits | None = Field(description="what the guard's classifiers leave out (pair: null); null: they are not asked")
    samples_per_shard: int = Field(gt=0)
    report_examples: int = Field(ge=0, le=40, description="kept ones, and dropped ones per rule")
    workers: int = Field(ge=1, le=256)


def import_instructions(config: ImportInstructionsConfig, *, assets: In, shards: Ins, guard: In, instructions: Out, media: Out, report: Out,
                        statistics: Out) -> None:
    """Import human instruction data: splits in LLaVA's form, new media as shards, a report of what was kept and dropped, and statistics."""
    from anymal.curation import instruction_output as output
    from anymal.curation.instruction_media import MediaSettings
    from anymal.curation.instructions import Source, TextLimits, import_records
    from anymal.safety.filters import open_screen

    if assets.is_file():
        raise ConfigError(f"--assets {assets}: is a file; give the folder that holds one folder per asset")
    sources = []
    for name, source in config.sources.items():
        root = assets / source.asset
        if not root.is_dir():
            raise ConfigError(f"import_instructions.sources.{name}.asset = {source.asset}: {root} is no folder; add the asset to ingest.assets "
                              "and run ingest")
        folder = None if source.media is None else root / source.media
        sources.append(Source(name, root / source.file, source.reader, folder, source.origin, source.kind, source.licence))
    media.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=media.parent, prefix=".import-") as scratch:
        imported = import_records(
            sources, shards, limits=TextLimits(**config.limits.model_dump()), media=MediaSettings(**config.media.model_dump()),
            test_count=config.test_count, val_fraction=config.val_fraction, seed=config.seed, scratch=type(media)(scratch), workers=config.workers,
            screen=open_screen(guard, config.safety))
        figures = output.statistics(imported)
        output.write_folder(instructions, imported, figures)
        output.write_media(media, imported, config.samples_per_shard)
        output.write_report(report, imported, figures, config.report_examples)
    statistics.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(f"import_instructions: {figures['kept']} instructions of {figures['seen']} records kept", file=sys.stderr)
