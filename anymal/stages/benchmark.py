"""Ask the model what public benchmarks ask, from their official files, right, shuffled, blank and similar; nothing is scored here."""

from __future__ import annotations

import shutil
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from anymal.stage import Config, DType, In, Ins, Out, resumable


class Section(BaseModel):
    """A group of knobs; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class EntryConfig(Section):
    """One benchmark."""

    asset: str | None
    """That holds its official files (null: it is skipped, and the results say so)."""
    split: str
    protocol: Literal["paper", "lmms-eval", "model"]
    """How it is asked: as the paper does, as lmms-eval does, or with the checkpoint's own prompt."""
    samples: int | None = Field(gt=1)
    """Greatest number, drawn by the seed (null: all)."""
    max_new_tokens: int = Field(gt=0)
    media: str | None
    """Where a sample's medium is in the asset, with fields of its record in braces (null: as the official layout has it)."""


class PartConfig(Section):
    """Which share of the pools this run asks: number `index` (from 0) of `of`."""

    index: int = Field(ge=0)
    of: int = Field(ge=1, le=10_000)

    @model_validator(mode="after")
    def _there(self) -> Self:
        if self.index >= self.of:
            raise ValueError(f"index = {self.index} must be below of = {self.of}, for parts are counted from 0")
        return self


class BenchmarkConfig(Config):
    """Knobs of `benchmark`."""

    dtype: DType
    """Of the LLM."""
    quantization: Literal["none", "nf4", "int8"]
    attention: Literal["eager", "sdpa", "flash_attention_2"]
    merge: bool
    """Add the LLM's adapter, if it has one, into its weights: faster, rounded to their precision."""
    batch_size: int = Field(gt=0)
    conditions: list[Literal["right", "shuffled", "blank", "similar"]]
    """Which media stand beside a question; `right` is always among them."""
    pool: int = Field(gt=1)
    """Media (roughly) that stand in for each other under `shuffled` and `similar`, and that are kept encoded together."""
    part: PartConfig
    previews: int = Field(ge=0, le=200)
    """Samples of each benchmark whose medium is drawn for the report, failures first."""
    benchmarks: dict[str, EntryConfig]

    @model_validator(mode="after")
    def _known(self) -> Self:
        from anymal.evaluation.benchmarks.declaration import declarations

        if "right" not in self.conditions or len(set(self.conditions)) < len(self.conditions):
            raise ValueError(f"conditions must hold right, and each condition once; they are {', '.join(self.conditions) or 'none'}")
        known = declarations()
        for name, entry in self.benchmarks.items():
            if name not in known:
                raise ValueError(f"benchmarks.{name}: no such benchmark; there are {', '.join(known)}")
            for knob, value, values in (("split", entry.split, known[name].splits), ("protocol", entry.protocol, known[name].protocols)):
                if value not in values:
                    raise ValueError(f"benchmarks.{name}.{knob} = {value}: must be one of {', '.join(values)}")
        return self


@resumable
def benchmark(config: BenchmarkConfig, *, checkpoints: Ins, assets: In, predictions: Out) -> None:
    """Write what the model says to one part of each benchmark, in the official formats too; a benchmark without its files is named and skipped."""
    from anymal.curation.ego4d import Ego4dFiles
    from anymal.data.manifest import fingerprint
    from anymal.evaluation.benchmarks.examples import draw_examples, write_examples
    from anymal.evaluation.benchmarks.folder import write_benchmark, write_protocol
    from anymal.evaluation.benchmarks.media import Library, MediumRow
    from anymal.evaluation.benchmarks.plan import plan
    from anymal.evaluation.benchmarks.running import run
    from anymal.model.checkpoint import read_checkpoints
    from anymal.model.precision import dtype_of, name_of

    found = read_checkpoints(checkpoints)
    shared: dict[str, Any] = {"batch_size": config.batch_size, "conditions": config.conditions, "pool": config.pool, "seed": config.seed}
    planned = {name: plan(name, assets, motions=Ego4dFiles(), reads=sorted(found.metadata), **shared, **entry.model_dump())
               for name, entry in config.benchmarks.items()}
    state = predictions / "state"
    state.mkdir(parents=True, exist_ok=True)
    described: dict[str, Any] = {name: {"skipped": entry} for name, entry in planned.items() if isinstance(entry, str)}
    media: list[MediumRow] = []
    examples: list[dict[str, Any]] = []
    if len(described) < len(planned):
        from anymal.model.anymal import load_anymal

        model = load_anymal(assets, checkpoints, dtype=config.dtype, quantization=config.quantization, attention=config.attention, merge=config.merge)
        library = Library(model, state, Ego4dFiles())
        for name, entry in planned.items():
            if isinstance(entry, str):
                continue
            ran = run(entry.reading, entry.asking, model, library, limit=entry.samples, size=config.pool, **config.part.model_dump())
            asked, how = entry.asking.declaration, entry.asking.wording.extract
            examples += draw_examples(predictions, name, ran.records, library, declaration=asked, media=entry.media, how=how,
                                      limit=config.previews, seed=config.seed)
            write_benchmark(predictions, name, ran.records, how=how)
            described[name] = entry.described(model.templates) | {"unusable": [{"id": key, "reason": reason} for key, reason in ran.unusable]}
            media += ran.media
    write_examples(predictions, examples)
    shutil.rmtree(state)
    whole = {"seed": config.seed, "part": config.part.model_dump(), "llm": found.llm, "dtype": name_of(dtype_of(config.dtype)),
             "quantization": config.quantization,             "model": [fingerprint(path) for path in checkpoints]}  # fmt: skip
    write_protocol(predictions, whole, described, media)
