"""The guard by itself: its data and classifiers, measured with a model of an earlier run behind it, registered, and promoted if it may be."""

from pipelines import parts
from pipelines.tasks import Graph, Plan


def safety(graph: Graph) -> None:
    """Data, classifiers, figures, and a candidate that may become champion."""
    parts.guard(graph)
    parts.judge_safety(graph)
    parts.promote_guard(graph)


PLAN = Plan(
    "safety", "Train the guard, measure it with a model behind it, register it, and make it champion if it passes the gates.",
    parts.sections("curate_safety", "train_safety", "evaluate_safety", "register_guard", "promote_guard"),
    parts.imported("assets", "model"), safety)
