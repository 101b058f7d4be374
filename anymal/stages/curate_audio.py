"""Bring sounds of several sources to one form, label or caption them, drop what breaks a rule and say why, and split without leaks."""

from __future__ import annotations

import json
import re
import tempfile
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from anymal.errors import ConfigError
from anymal.stage import Config, In, Out

Fraction = Annotated[float, Field(ge=0, le=1)]


def _inside(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError("must lie within the asset")
    return path


def _expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"is no regular expression ({error})") from error
    return pattern


def _template(text: str) -> str:
    if "{label}" not in text and "{a_label}" not in text:
        raise ValueError("must hold {label} or {a_label}: a caption names its sound")
    return text


RelativePath = Annotated[str, AfterValidator(_inside)]
Label = Annotated[str, Field(pattern=r"^[a-z][a-z -]*$")]
Patterns = Annotated[tuple[Annotated[str, AfterValidator(_expression)], ...], Field(min_length=1)]
Templates = Annotated[tuple[Annotated[str, AfterValidator(_template)], ...], Field(min_length=1, max_length=20)]


class Section(BaseModel):
    """A group of knobs; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class HeldOutConfig(Section):
    """The groups (kits, folders) of a source that are not trained on."""

    val: tuple[str, ...]
    test: tuple[str, ...]


class TableConfig(Section):
    """A CSV file of captions: the paths within the asset, how its columns make a file name, and the split all its sounds belong to."""

    file: RelativePath
    folder: RelativePath
    name: str = Field(min_length=1, description="columns in braces, for example {youtube_id}.wav")
    captions: tuple[str, ...] = Field(min_length=1, description="columns that hold a caption")
    split: Literal["train", "val", "test"] | None


class SourceConfig(Section):
    """One source: an asset's folder, how to read it, and how its sounds are labelled and split."""

    asset: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder below the assets port")
    reader: Literal["hydrogen_drumkits", "named_sounds", "captioned_sounds", "csv", "webdataset"]
    licence: str
    exclude: tuple[str, ...] = Field(description="globs of paths within the asset; * stays in a folder, ** does not")
    max_per_label: int | None = Field(ge=1)
    question: str | None = Field(description="asked of each labelled sound; its label is the answer")
    held_out: HeldOutConfig | None = Field(description="null splits by the hash of the group")
    tables: tuple[TableConfig, ...] = Field(description="of the reader csv")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.reader == "csv") != bool(self.tables):
            raise ValueError(f"reader = {self.reader} with {len(self.tables)} tables: the reader csv needs tables, the others have none")
        if self.held_out and set(self.held_out.val) & set(self.held_out.test):
            raise ValueError(f"held_out: {sorted(set(self.held_out.val) & set(self.held_out.test))[0]} is in val and in test")
        return self


class CaptionsConfig(Section):
    """Captions of labelled sounds, with {label} or {a_label} ("an agogo bell")."""

    general: Templates
    labels: dict[Label, Templates] = Field(description="for labels that need words of their own")


class CurateAudioConfig(Config):
    """Knobs of curate_audio. Lengths in seconds, rate in Hz, silence and fractions 0 to 1."""

    sources: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")], SourceConfig] = Field(min_length=1)
    labels: dict[Label, Patterns] = Field(description="regular expressions, searched in lower-case names with blanks for _; only one label may match")
    rate: int = Field(ge=8000, le=192_000)
    min_seconds: float = Field(gt=0)
    max_seconds: float = Field(gt=0, le=600, description="longer sounds are cut to it")
    silence: float = Field(gt=0, lt=1, description="part of full scale that a sound's peak must reach")
    lead: float | None = Field(ge=0, description="silence kept before the onset; null keeps all")
    same_correlation: Fraction = Field(description="of the first second's waveforms, from which two sounds are one recording")
    captions: CaptionsConfig
    val_fraction: Fraction
    test_fraction: Fraction
    samples_per_shard: int = Field(gt=0)
    report_examples: int = Field(ge=0, le=40, description="per label and per rule")
    workers: int = Field(ge=1, le=256)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError(f"val_fraction + test_fraction = {self.val_fraction + self.test_fraction:g} leaves nothing to train on")
        if self.min_seconds > self.max_seconds:
            raise ValueError(f"min_seconds = {self.min_seconds:g} exceeds max_seconds = {self.max_seconds:g}")
        return self


def curate_audio(config: CurateAudioConfig, *, assets: In, shards: Out, report: Out, statistics: Out) -> None:
    """Curate labelled and captioned sounds: shards, a report of what was kept and dropped, and statistics."""
    from anymal.curation import sound_output as output
    from anymal.curation.sound_sources import Table
    from anymal.curation.sounds import SoundSettings, Source, curate_sounds
    from anymal.data.manifest import write_manifest

    if assets.is_file():
        raise ConfigError(f"--assets {assets}: is a file; give the folder that holds one folder per asset")
    sources = [
        Source(name, assets / source.asset, labels=config.labels, tables=[Table(**table.model_dump()) for table in source.tables],
               **source.model_dump(exclude={"asset", "tables"})) for name, source in config.sources.items()
    ]
    settings = SoundSettings(config.rate, config.min_seconds, config.max_seconds, config.silence, config.lead, config.same_correlation)
    words: dict[str, Any] = {"templates": config.captions.labels, "general": config.captions.general}
    shards.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=shards.parent, prefix=".curate-audio-") as scratch:
        candidates = curate_sounds(sources, settings=settings, val_fraction=config.val_fraction, test_fraction=config.test_fraction,
                                   seed=config.seed, scratch=type(shards)(scratch), workers=config.workers)
        figures = output.statistics(candidates)
        output.write_shards(candidates, shards, rate=config.rate, samples_per_shard=config.samples_per_shard, **words)
        output.write_report(report, figures, candidates, rate=config.rate, examples=config.report_examples, **words)
        output.write_card(shards, figures, candidates, **words)
    write_manifest(shards)
    statistics.write_text(json.dumps({"modality": "audio", **figures}, indent=1) + "\n", encoding="utf-8")
