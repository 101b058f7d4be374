"""From predictions to figures with intervals, and one report for all modalities; no model is loaded."""

from __future__ import annotations

from pydantic import Field

from anymal.stage import Config, Ins, Out


class ScoreConfig(Config):
    """Knobs of `score`."""

    bootstrap_resamples: int = Field(ge=100)
    examples: int = Field(ge=0, le=16)
    """Examples in the report for each group of captions and each kind of question, as far as their inputs were drawn."""


def score(config: ScoreConfig, *, predictions: Ins, baselines: Ins, metrics: Out, report: Out) -> None:
    """Score the predictions of all modalities with intervals; write the figures and one self-contained report.

    `baselines` are predictions of another model (before fine-tuning) for the same samples of some of the modalities.
    """
    from anymal import tracking
    from anymal.evaluation.report import build_report
    from anymal.evaluation.score import dump, headline, score_all

    scores, folders = score_all(predictions, baselines, resamples=config.bootstrap_resamples, seed=config.seed)
    metrics.write_text(dump(scores.results), encoding="utf-8")
    report.write_text(build_report(scores, folders, per_group=config.examples, seed=config.seed), encoding="utf-8")
    tracking.log_metrics(headline(scores.results))
