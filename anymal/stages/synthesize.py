"""Have an open LLM write instruction data from text-only descriptions of the media, check every pair, and keep what holds."""

from __future__ import annotations

import functools
import json
import re
import shutil
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from anymal.model.modalities import ModalityName
from anymal.safety.limits import SafetyLimits
from anymal.stage import Config, DType, In, Out, per_modality, resumable


def _expression(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"is no regular expression ({error})") from error
    return pattern


class Section(BaseModel):
    """A group of knobs; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LLMConfig(Section):
    """An LLM of the assets, in this process."""

    llm: str
    dtype: DType
    quantization: Literal["none", "nf4", "int8"]
    attention: Literal["eager", "sdpa"]
    batch_size: int = Field(gt=0, le=4096)

    @property
    def loading(self) -> dict[str, Any]:
        return self.model_dump(include={"llm", "dtype", "quantization", "attention"})


class ServerConfig(Section):
    """A server with OpenAI's chat completions; the key comes from the environment variable OPENAI_API_KEY."""

    url: str = Field(pattern=r"^https?://[^@\s]+$", description="up to and with /v1")
    model: str = Field(min_length=1)
    concurrency: int = Field(ge=1, le=1024, description="requests on their way at a time")
    timeout: float = Field(gt=0, le=3600, description="seconds for one answer")
    retries: int = Field(ge=0, le=20, description="with pauses that grow up to 8 s")


class KindConfig(Section):
    """How many samples of each split are asked about (null: all), and what the pairs must fulfil."""

    train: int | None = Field(ge=0)
    val: int | None = Field(ge=0)
    questions: int = Field(ge=1, description="ways to ask used for a sample, in turn")
    answer_words: tuple[int, int]
    unsupported: float = Field(ge=0, le=1, description="greatest share of content words that the annotation lacks")


class BlindConfig(LLMConfig):
    """The LLM that guesses answers without the medium."""

    threshold: float = Field(le=0, description="nats a token; likelier answers are dropped")


class DuplicatesConfig(Section):
    """From which share of common word triples pairs are alike, and how many alike ones may be kept."""

    similarity: float = Field(gt=0, le=1)
    most: int = Field(ge=1)


class SynthesizeConfig(Config):
    """Knobs of `synthesize`."""

    modality: ModalityName
    in_process: LLMConfig | None
    server: ServerConfig | None
    max_new_tokens: int = Field(ge=8, le=4096)
    temperature: float = Field(ge=0, le=2, description="0 takes the likeliest token")
    top_p: float = Field(gt=0, le=1)
    manner: Literal["free", "guided"] = Field(description="guided shows a small LLM one sort of question at a time")
    captions: int = Field(ge=1, description="most captions of a sample that the LLM reads")
    min_description_words: int = Field(ge=1)
    kinds: dict[Literal["conversation", "detail", "reasoning"], KindConfig] = Field(min_length=1)
    question_words: tuple[int, int]
    blind: BlindConfig | None
    duplicates: DuplicatesConfig
    harmful: tuple[Annotated[str, AfterValidator(_expression)], ...] = Field(description="searched in lower-case text, beside those of words.yaml")
    safety: SafetyLimits | None = Field(description="what the guard's text classifier leaves out; null: it is not asked")
    report_examples: int = Field(ge=0, le=100, description="per kind and per reason")

    @model_validator(mode="after")
    def _one_backend(self) -> Self:
        if (self.in_process is None) == (self.server is None):
            raise ValueError("one of in_process and server must be given, and the other null")
        return self


@resumable
@per_modality
def synthesize(config: SynthesizeConfig, *, shards: In, assets: In, guard: In, instructions: Out, report: Out, statistics: Out) -> None:
    """Have an open LLM write instruction data from text-only descriptions of the media (paper section 2), and keep what holds."""
    from anymal import tracking
    from anymal.safety.filters import open_screen
    from anymal.synthesis import generation, output
    from anymal.synthesis.backends import Backend, InProcess, Server
    from anymal.synthesis.checks import Limits
    from anymal.synthesis.descriptions import check_shards
    from anymal.synthesis.journal import ask, score

    @functools.cache
    def load(llm: str, **options: str) -> tuple[Any, Any]:
        from anymal.model.llm import load_llm  # a run with a server and no blind LLM needs no torch
        return load_llm(assets / llm, **options)

    check_shards(shards)
    kinds = [generation.Kind(name, {"train": kind.train, "val": kind.val}, kind.questions,
                             Limits(config.question_words, kind.answer_words, kind.unsupported)) for name, kind in config.kinds.items()]
    chosen = generation.choose(shards, kinds, modality=config.modality, manner=config.manner, captions=config.captions,
                               min_words=config.min_description_words, seed=config.seed)
    sampling = config.model_dump(include={"max_new_tokens", "temperature", "top_p", "seed"})
    backend: Backend
    if config.in_process is not None:
        backend, writer = InProcess(*load(**config.in_process.loading), batch_size=config.in_process.batch_size, **sampling), config.in_process.llm
    else:
        assert config.server is not None
        backend, writer = Server(**config.server.model_dump(), **sampling), config.server.model
    state = instructions / "state"
    state.mkdir(parents=True, exist_ok=True)
    answers = ask(backend, [one.request for one in chosen.asked], state / "answers.jsonl", report=tracking.log_metrics)
    blind, screen = config.blind, open_screen(guard, config.safety)
    judged = generation.judge(
        chosen, answers, threshold=blind.threshold if blind else 0.0, similarity=config.duplicates.similarity, most_alike=config.duplicates.most,
        harmful=[re.compile(pattern) for pattern in config.harmful], unsafe=None if screen is None else screen.texts,
        likelihoods=None if blind is None else lambda pairs: score(load(**blind.loading), pairs, state / "likelihoods.jsonl", blind.batch_size))
    made = {split: generation.instructions(judged, split, config.modality) for split in generation.SPLITS}
    figures = generation.statistics(chosen, judged, made, config.modality, screened=screen is not None)
    generation.refuse_empty(made, figures, writer=writer)
    output.write_folder(instructions, made, judged, figures, writer=writer)
    output.write_report(report, judged, figures, writer=writer, examples=config.report_examples)
    statistics.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(state)
