"""Benchmarks of a given model, their samples shared out to tasks that run side by side, then scored with what was measured before.

How many tasks there are is settled when the pipeline is compiled: a container component cannot take the list that a ParallelFor collects, so each
task is one of its own, with the section `benchmark` and its share of the work (`part`) as its argument (docs/decisions/0010).
"""

from kfp.dsl import Dataset

from components.benchmark import benchmark as benchmark_stage
from components.score_benchmarks import score_benchmarks as score_benchmarks_stage
from pipelines import parts
from pipelines.tasks import Graph, Plan

ORDINALS = ("first", "second", "third", "fourth")
"""The tasks that share the work: as many inputs as `components/score_benchmarks.py` takes."""
SHARES = {f"benchmark_{ordinal}": (index, len(ORDINALS)) for index, ordinal in enumerate(ORDINALS)}
"""Argument -> which share of the work its section asks for, and of how many."""


def benchmarks(graph: Graph) -> None:
    """Predictions of all parts, then figures and report."""
    made = graph.made
    asked = {}
    for ordinal in ORDINALS:
        task = graph.run(benchmark_stage, f"benchmark_{ordinal}", note=f"{ordinal} part", checkpoints=made["model"], assets=made["assets"])
        asked[f"benchmarks_{ordinal}"] = task.outputs["predictions"]
    measured = parts.among(graph, "baselines", *parts.each("predictions", of=parts.EVALUATED))
    graph.run(score_benchmarks_stage, "score", **measured, **asked)


PLAN = Plan(
    "benchmarks", "Ask a model what public benchmarks ask, in parallel, and score it with what was measured before.",
    dict.fromkeys(SHARES, "benchmark") | parts.sections("score"),
    parts.imported("assets", "model", "baselines") | dict.fromkeys(parts.each("predictions", of=parts.EVALUATED), Dataset), benchmarks, SHARES)
