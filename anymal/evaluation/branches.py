"""The form in which figures stand in `results/evaluate.json`: a branch with those of the right input, of each control, and the gaps between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anymal.evaluation.bootstrap import Measure, Statistic, figures

DECIMALS = 6


def branch_of(conditions: Mapping[str, Mapping[str, Measure | Statistic]], *, n: int, resamples: int, seed: int) -> dict[str, Any]:
    """Figures of the right input by name, those of the others under `controls`, and right minus control, paired, under `gap_CONTROL`.

    Args:
        conditions: condition -> metric -> measure, the same metrics under each; `right` is among them.
        n: number of items to report.

    Raises:
        AnymalError: as `figures`.
    """
    measures = {(condition, metric): measure for condition, by_metric in conditions.items() for metric, measure in by_metric.items()}
    controls = [condition for condition in conditions if condition != "right"]
    metrics = list(conditions["right"])
    gaps = {(f"gap_{control}", metric): (("right", metric), (control, metric)) for control in controls for metric in metrics}
    found = figures(measures, gaps, n=n, resamples=resamples, seed=seed)
    branch: dict[str, Any] = {metric: found["right", metric] for metric in metrics}
    branch["controls"] = {control: {metric: found[control, metric] for metric in metrics} for control in controls}
    for control in controls:
        branch[f"gap_{control}"] = {metric: found[f"gap_{control}", metric] for metric in metrics}
    return branch


def rounded(tree: Any) -> Any:
    """The same tree with its numbers cut to six decimals, so that the last bits of a sum do not show in a diff."""
    if isinstance(tree, dict):
        return {name: rounded(child) for name, child in tree.items()}
    return round(tree, DECIMALS) + 0.0 if isinstance(tree, float) else tree  # adding 0.0 turns -0.0 into 0.0
