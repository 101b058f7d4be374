"""Measure a given model; register it if it uses its inputs."""

from pipelines import parts
from pipelines.tasks import Graph, Plan


def evaluation(graph: Graph) -> None:
    """Predictions, figures, and behind the gate a candidate."""
    parts.evaluate(graph)
    parts.register_if_grounded(graph)


PLAN = Plan(
    "evaluation", "Measure a model and, if it uses its inputs, register it.",
    parts.sections(*parts.each("evaluate", of=parts.EVALUATED), "score", "register"),
    parts.imported("assets", "model", "baselines", *parts.each("features"), *parts.each("shards"), *parts.each("statistics")), evaluation)
