"""Collect what the guard's classifiers learn from and are measured on: labelled texts, pictures, and pairs of both."""

from __future__ import annotations

import json
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from anymal.errors import ConfigError
from anymal.stage import Config, In, Out

Fraction = Annotated[float, Field(ge=0, lt=1)]
Code = Annotated[str, Field(pattern=r"^[a-z_]+$")]


class TextSourceConfig(BaseModel):
    """A source of texts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    asset: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder below the assets port")
    reader: Literal["do_not_answer", "phrasing", "toxicity", "harmbench", "jigsaw"]
    use: Literal["train", "unseen"] = Field(description="unseen: held out whole, to see how the classifier does on what it was not made for")
    licence: str


class PictureSourceConfig(BaseModel):
    """A source of pictures: one that pictures.yaml describes, or a folder per class."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    asset: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    reader: Literal["catalogue", "folders"]
    licence: str
    classes: dict[str, tuple[Code, ...]] = Field(description="folders: folder of a class -> categories, none if harmless; catalogue: empty")


class PairSourceConfig(BaseModel):
    """A source of pairs: composed of the pictures and texts of pairs.yaml, or Hateful Memes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    asset: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="of composed pairs, one of those that their pictures are of")
    reader: Literal["composed", "hateful_memes"]
    licence: str
    categories: tuple[Code, ...] = Field(description="hateful_memes: what its hateful memes are")


class TextsConfig(BaseModel):
    """How texts are split and disguised."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    val_fraction: Fraction
    test_fraction: Fraction
    disguised: float = Field(ge=0, le=1, description="share of training texts, harmful and harmless, with a copy within a frame or roughened")
    most: int | None = Field(ge=1, description="texts of a source; null for all")


class PicturesConfig(BaseModel):
    """How many pictures are taken, and how they are written and split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    others: float = Field(ge=0, description="harmless pictures of no particular kind for each harmful one of the same source")
    look_alikes: float = Field(ge=0, description="harmless ones that look alike, likewise")
    per_concept: int = Field(ge=1, description="pictures of a concept that only pairs need, at most")
    size: int = Field(ge=32, le=2048, description="pixels of the longer side")
    val_fraction: Fraction
    test_fraction: Fraction


class PairsConfig(BaseModel):
    """How pairs are composed and split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_text: int = Field(ge=1, description="pictures of either kind that each text is put to")
    val_fraction: Fraction
    test_fraction: Fraction


class CurateSafetyConfig(Config):
    """Knobs of curate_safety."""

    sources: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")],
                  Annotated[TextSourceConfig | PictureSourceConfig | PairSourceConfig, Field(discriminator="reader")]] = Field(min_length=1)
    texts: TextsConfig
    pictures: PicturesConfig
    pairs: PairsConfig
    report_examples: int = Field(ge=0, le=40, description="texts of each kind and category in the report")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, part in (("texts", self.texts), ("pictures", self.pictures), ("pairs", self.pairs)):
            if part.val_fraction + part.test_fraction >= 1:
                raise ValueError(f"{name}: val_fraction + test_fraction = {part.val_fraction + part.test_fraction:g} leaves nothing to train on")
        for kind in (TextSourceConfig, PictureSourceConfig, PairSourceConfig):
            if not any(isinstance(source, kind) for source in self.sources.values()):
                raise ValueError(f"none is a source of {kind.__name__.removesuffix('SourceConfig').lower()}s; name one of texts, pictures and pairs")
        return self


def curate_safety(config: CurateSafetyConfig, *, assets: In, safety: Out, report: Out, statistics: Out) -> None:
    """Write labelled texts, pictures and pairs in splits without leakage, a report and statistics."""
    from anymal.data.manifest import write_manifest
    from anymal.safety import curated_page
    from anymal.safety.pairs import PairSource, curate_pairs
    from anymal.safety.pictures import PictureSource, curate_pictures
    from anymal.safety.texts import TextSource, curate_texts, write_texts

    for name, source in config.sources.items():
        if not (assets / source.asset).is_dir():
            raise ConfigError(f"curate_safety.sources.{name}.asset = {source.asset}: {assets / source.asset} is no folder; add the asset to "
                              "ingest.assets and run ingest")
    safety.mkdir(parents=True, exist_ok=True)
    texts = curate_texts([TextSource(name, assets / source.asset, source.reader, source.use) for name, source in config.sources.items()
                          if isinstance(source, TextSourceConfig)], seed=config.seed, **config.texts.model_dump())
    write_texts(safety / "texts", texts.splits)
    pictures = curate_pictures(
        [PictureSource(source.asset if source.reader == "catalogue" else name, assets / source.asset, source.reader, source.licence, source.classes)
         for name, source in config.sources.items() if isinstance(source, PictureSourceConfig)],
        safety / "images", seed=config.seed, **config.pictures.model_dump())
    pairs = curate_pairs(
        [PairSource(name, None if source.reader == "composed" else assets / source.asset, source.reader, source.licence, source.categories)
         for name, source in config.sources.items() if isinstance(source, PairSourceConfig)],
        pictures, safety / "pairs", size=config.pictures.size, seed=config.seed, **config.pairs.model_dump())
    licences = {name: source.licence for name, source in config.sources.items() if isinstance(source, TextSourceConfig)}
    figures = {"texts": {**texts.statistics(), "licences": licences}, "images": dict(pictures.statistics), "pairs": pairs}
    write_manifest(safety)
    curated_page.write_page(report, figures, texts.splits, config.report_examples)
    statistics.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
