"""One table and one picture of several training runs that differ in a knob: an ablation."""

from __future__ import annotations

import json
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from anymal.errors import ConfigError
from anymal.stage import Config, Ins, Out


class CompareConfig(Config):
    """Knobs of `compare`."""

    title: str = Field(min_length=1, max_length=200)
    variants: list[str] = Field(min_length=2, max_length=10)
    """What the runs are called, in the order in which they are given."""
    figures: dict[str, str] = Field(min_length=1)
    """Title of a column -> where the figure is: `image.vqa.accuracy` in a run's results, or `history.validation.right` at the end of its history."""

    @field_validator("variants", "figures")
    @classmethod
    def _fit_a_table(cls, value: Any) -> Any:
        if bad := [name for name in value if not name.strip() or "|" in name or "\n" in name]:
            raise ValueError(f"'{bad[0]}' cannot head a line or column of a table; use words without | and line breaks")
        return value

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.variants)) < len(self.variants):
            raise ValueError(f"variants name a run twice ({', '.join(self.variants)}); name each once")
        return self


def compare(config: CompareConfig, *, results: Ins, plots: Ins, table: Out, metrics: Out, figure: Out) -> None:
    """Put the figures and loss curves of several runs side by side.

    `results` and `plots` are the metrics file and the folder of loss curves of each run, in the order of `variants`; `table` is
    Markdown, `metrics` the same as JSON, `figure` a PNG file.
    """
    from anymal.evaluation.comparison import compare_figures, markdown, read_results
    from anymal.training.plots import HISTORY, draw_comparison, read_history

    for port, paths in (("results", results), ("plots", plots)):
        if len(paths) != len(config.variants):
            raise ConfigError(f"compare.variants = {', '.join(config.variants)}: --{port} is given {len(paths)} times; give it once for each variant")
    histories = {name: read_history(folder / HISTORY) for name, folder in zip(config.variants, plots, strict=True)}
    runs = {name: {**read_results(path), "history": _end(histories[name])} for name, path in zip(config.variants, results, strict=True)}
    comparison = compare_figures(runs, config.figures)
    table.write_text(markdown(comparison, list(config.figures), title=config.title), encoding="utf-8")
    document = {"title": config.title, "variants": comparison.measured, "absent": comparison.absent}
    metrics.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draw_comparison(histories, figure, title=config.title)


def _end(history: list[dict[str, Any]]) -> dict[str, Any]:
    """The last step's loss and number, and the held-out losses that were measured last."""
    checked = [record["validation"] for record in history if "validation" in record]
    return {"step": history[-1]["step"], "loss": history[-1]["loss"], "validation": checked[-1] if checked else {}}
