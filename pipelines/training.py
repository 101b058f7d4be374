"""From packages to a measured model in the registry: the same stages, ports and order as dvc.yaml."""

from kfp.dsl import Artifact

from pipelines import alignment, parts
from pipelines.tasks import Graph, Plan

EVALUATIONS = parts.each("evaluate", of=(*parts.EVALUATED, "image_aligned"))


def training(graph: Graph) -> None:
    """All parts."""
    alignment.alignment(graph)
    parts.instruct(graph)
    parts.tune(graph)
    parts.measure_baseline(graph)
    parts.evaluate(graph)
    parts.audit(graph)
    parts.judge_safety(graph)
    parts.register(graph)
    parts.register_guard(graph)


PLAN = Plan(
    "training", "From raw packages to a measured multimodal LLM in the model registry.",
    dict(alignment.PLAN.sections)
    | parts.sections("compose_instructions", "synthesize_image", "finetune", *EVALUATIONS, "benchmark", "score", "audit", "evaluate_safety",
                     "register", "register_guard"),
    {"lock": Artifact}, training)
