"""Measure held-out captions and answers with intervals, and the same with another sample's input and a blank one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from anymal.stage import Config, In, Out

if TYPE_CHECKING:
    from anymal.evaluation.predict import Predictor, Record

SPLIT = "test"


class EvaluateConfig(Config):
    """Knobs of `evaluate`. A limit of null takes all held-out samples."""

    modality: Literal["image"]
    tasks: list[Literal["caption", "vqa"]] = Field(min_length=1)
    dtype: Literal["bfloat16", "float16", "float32"]
    """Of the LLM; it may be another than in training (paper section 3.1)."""
    quantization: Literal["none", "nf4", "int8"]
    attention: Literal["eager", "sdpa", "flash_attention_2"]
    batch_size: int = Field(gt=0)
    caption_kinds: list[Literal["photo", "scene"]] = Field(min_length=1)
    """Kinds of samples to caption. Scenes' captions are composed from templates: easier words, so figures of photos say more."""
    caption_samples: int | None = Field(gt=1)
    caption_scored_references: int = Field(gt=0)
    """References of each sample whose loss is measured, from the first; the metrics on words use all references."""
    caption_max_new_tokens: int = Field(gt=0)
    vqa_questions: int | None = Field(gt=1)
    vqa_max_new_tokens: int = Field(gt=0)
    bootstrap_resamples: int = Field(ge=100)
    examples: int = Field(ge=0, le=16)
    """Examples in the report for each group of captions and each kind of question."""


def evaluate(
    config: EvaluateConfig, *, checkpoint: In, features: In, shards: In, assets: In, predictions: Out, report: Out, metrics: Out
) -> None:
    """Measure held-out captions and answers with intervals and grounding controls; write predictions, report and figures."""
    from anymal import tracking
    from anymal.data.features import FeatureStore
    from anymal.evaluation.captions import java_path
    from anymal.evaluation.predict import Predictor
    from anymal.evaluation.predictions import write_predictions
    from anymal.evaluation.report import choose_examples, render, thumbnails
    from anymal.evaluation.score import dump, headline, score_predictions
    from anymal.model.anymal import load_anymal, read_checkpoint

    if "caption" in config.tasks:
        java_path()  # a missing Java must show now, not after minutes of generation
    store, described = FeatureStore(features, SPLIT), read_checkpoint(checkpoint)
    model = load_anymal(assets, [checkpoint], dtype=config.dtype, quantization=config.quantization, attention=config.attention)
    predictor = Predictor(model, store, modality=config.modality, trained_on=described["encoder"], batch_size=config.batch_size)
    run = {"caption": run_captions, "vqa": run_questions}
    records: dict[str, list[Record]] = {}
    protocol: dict[str, dict[str, str]] = {}
    for task in dict.fromkeys(config.tasks):
        records[task], protocol[task] = run[task](config, predictor, described["llm"])
    settings = {"resamples": config.bootstrap_resamples, "seed": config.seed, "tasks": protocol}
    write_predictions(predictions, config.modality, records, settings)
    scores = score_predictions(predictions)
    examples = choose_examples(scores.records, per_group=config.examples, seed=config.seed)
    pictures = thumbnails(shards, examples.keys(), split=SPLIT)
    report.write_text(render(scores.results, examples, pictures, modality=config.modality), encoding="utf-8")
    metrics.write_text(dump(scores.results), encoding="utf-8")
    tracking.log_metrics(headline(scores.results))


def run_captions(config: EvaluateConfig, predictor: Predictor, llm: str) -> tuple[list[Record], dict[str, str]]:
    """Records of the caption task, and its prompt and protocol."""
    from anymal.evaluation.predict import predict_captions
    from anymal.evaluation.protocol import caption_protocol, llm_note, prompt_text

    records, available = predict_captions(
        predictor, kinds=config.caption_kinds, limit=config.caption_samples, scored_references=config.caption_scored_references,
        max_new_tokens=config.caption_max_new_tokens, seed=config.seed)
    text = caption_protocol(
        samples=len(records), available=available, kinds=config.caption_kinds, split=SPLIT, seed=config.seed,
        llm=llm_note(llm, config.dtype, config.quantization),
        max_new_tokens=config.caption_max_new_tokens, scored_references=config.caption_scored_references, resamples=config.bootstrap_resamples)
    return records, {"prompt": prompt_text(predictor.template("caption")), "protocol": text}


def run_questions(config: EvaluateConfig, predictor: Predictor, llm: str) -> tuple[list[Record], dict[str, str]]:
    """Records of the VQA task, and its prompt and protocol."""
    from anymal.evaluation.predict import predict_answers
    from anymal.evaluation.protocol import llm_note, prompt_text, vqa_protocol

    records, available = predict_answers(predictor, limit=config.vqa_questions, max_new_tokens=config.vqa_max_new_tokens, seed=config.seed)
    text = vqa_protocol(
        questions=len(records), available=available, samples=len({record["key"] for record in records}), split=SPLIT, seed=config.seed,
        llm=llm_note(llm, config.dtype, config.quantization), max_new_tokens=config.vqa_max_new_tokens, resamples=config.bootstrap_resamples)
    return records, {"prompt": prompt_text(predictor.template("question")), "protocol": text}
