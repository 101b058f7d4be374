"""Measure a given model; register it if it passes the gates, and promote it if it does not fall behind the champion."""

from pipelines import parts
from pipelines.tasks import Graph, Plan


def evaluation(graph: Graph) -> None:
    """Predictions, figures, the audit of leakage, safety, and behind the gate a candidate that may become champion."""
    parts.evaluate(graph)
    parts.audit(graph)
    parts.judge_safety(graph)
    parts.promote_if_gates_pass(graph)


PLAN = Plan(
    "evaluation", "Measure a model; if it passes the gates, register it and make it champion.",
    parts.sections(*parts.each("evaluate", of=parts.EVALUATED), "benchmark", "score", "audit", "evaluate_safety",
                   "register", "promote"),
    parts.imported("assets", "model", "guard", "data_safety", "figures_safety", "baselines", "media_human", *parts.each("features"),
                   *parts.each("shards"), *parts.each("statistics"),
                   *parts.each("instructions", of=parts.ORIGINS)), evaluation)
