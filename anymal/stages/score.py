"""From predictions to figures with intervals, and one report for all modalities and benchmarks; no model is loaded."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from anymal.stage import Config, Ins, Out


class ScoreConfig(Config):
    """Knobs of `score`."""

    bootstrap_resamples: int = Field(ge=100)
    spice: str | None
    """Folder with the jars of SPICE, for the captions of benchmarks; null: figures without SPICE and SPIDEr."""
    examples: int = Field(ge=0, le=16)
    """Examples in the report for each group of captions and each kind of question, as far as their inputs were drawn."""


def score(
    config: ScoreConfig, *, predictions: Ins, baselines: Ins, benchmarks: Ins, metrics: Out, samples: Out, report: Out, figures: Out
) -> None:
    """Score the predictions of all modalities and benchmarks with intervals; write the figures, what each sample scored, and a report.

    `baselines` are predictions of another model (before fine-tuning) for the same samples of some of the modalities; `benchmarks` are folders
    of the stage benchmark, the parts of one run among them.
    """
    from anymal import tracking
    from anymal.evaluation.bootstrap import write_samples
    from anymal.evaluation.report import build_report
    from anymal.evaluation.score import dump, headline, score_all

    scores, folders = score_all(predictions, baselines, benchmarks, resamples=config.bootstrap_resamples, seed=config.seed,
                                spice=None if config.spice is None else Path(config.spice))
    metrics.write_text(dump(scores.results), encoding="utf-8")
    write_samples(samples, scores.samples)
    figures.mkdir()
    report.write_text(
        build_report(scores, folders, per_group=config.examples, seed=config.seed, figures=figures, benchmarks=benchmarks), encoding="utf-8")
    tracking.log_metrics(headline(scores.results))
