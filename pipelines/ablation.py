"""An ablation on Kubeflow: its variants trained side by side from what an earlier run of the training pipeline left, then compared.

The variants are branches of their own, as modalities are (docs/decisions/0007): a container component cannot take the list that a
ParallelFor collects. Each entry of `ablations.yaml` is a pipeline with as many branches as it has variants.
"""

from typing import Any

from kfp.dsl import Artifact, Dataset

from components.align import align as align_stage
from components.benchmark import benchmark as benchmark_stage
from components.compare import compare as compare_stage
from components.compare_three import compare_three as compare_three_stage
from components.evaluate import evaluate as evaluate_stage
from components.evaluate_mixed import evaluate_mixed as evaluate_mixed_stage
from components.finetune import finetune as finetune_stage
from components.score import score as score_stage
from pipelines import parts
from pipelines.ablations import ORDINALS, Ablation
from pipelines.parts import EVALUATED, MODALITIES
from pipelines.tasks import Graph, Plan

COMPARE = {2: compare_stage, 3: compare_three_stage}
"""Number of variants -> component."""


def imported(ablation: Ablation) -> dict[str, type[Artifact]]:
    """Argument -> type of the artifact whose URI it is: what the variants start from."""
    if ablation.stage == "align":
        return {"assets": Artifact, "features": Dataset}
    names = [name for kind in ("checkpoints", "features", "shards") for name in parts.each(kind)]
    return parts.imported("assets", *names, *parts.each("instructions", of=parts.ORIGINS), "baselines")


def plan(name: str, ablation: Ablation) -> Plan:
    """The pipeline of an ablation.

    Its arguments are `variant_first`, `variant_second`, … (whole sections), `compare`, for fine-tuning `score`, `benchmark` and `evaluate_MODALITY`,
    and the URIs of `imported`.
    """
    ordinals = ORDINALS[: len(ablation.variants["demo"])]
    sections = {f"variant_{ordinal}": ablation.trains for ordinal in ordinals}
    if ablation.stage == "finetune":
        sections |= parts.sections(*parts.each("evaluate", of=EVALUATED), "benchmark", "score")

    def graph(graph: Graph) -> None:
        branch = _aligned if ablation.stage == "align" else _tuned
        compared = {}
        for ordinal in ordinals:
            compared[f"results_{ordinal}"], compared[f"plots_{ordinal}"] = branch(graph, ordinal)
        graph.run(COMPARE[len(ordinals)], "compare", **compared)

    return Plan(f"ablation-{name}", f"{ablation.title}.", sections | {"compare": "compare"}, imported(ablation), graph)


def _aligned(graph: Graph, ordinal: str) -> tuple[Any, Any]:
    """Results and loss curves of a variant's alignment."""
    task = graph.run(align_stage, f"variant_{ordinal}", note=f"{ordinal} variant", **parts.among(graph, "features", "assets"))
    return task.outputs["metrics"], task.outputs["plots"]


def _tuned(graph: Graph, ordinal: str) -> tuple[Any, Any]:
    """Scores and loss curves of a variant's fine-tuning."""
    made, note = graph.made, f"{ordinal} variant"
    inputs = parts.among(graph, *parts.each("checkpoints"), *parts.each("features"), *parts.each("instructions", of=parts.ORIGINS), "assets")
    tuned = graph.run(finetune_stage, f"variant_{ordinal}", note=note, **inputs)
    given = {"checkpoints": tuned.outputs["model"], "assets": made["assets"]}
    tasks = {modality: graph.run(evaluate_stage, f"evaluate_{modality}", note=note, features=made[f"features_{modality}"],
                                 shards=made[f"shards_{modality}"], **given) for modality in MODALITIES}
    tasks["mixed"] = graph.run(evaluate_mixed_stage, "evaluate_mixed", note=note, **given, **parts.mixed_inputs(graph))
    predictions = {f"predictions_{modality}": task.outputs["predictions"] for modality, task in tasks.items()}
    asked = graph.run(benchmark_stage, "benchmark", note=note, **given).outputs["predictions"]
    scored = graph.run(score_stage, "score", note=note, baselines=made["baselines"], benchmarks=asked, **predictions)
    return scored.outputs["metrics"], tuned.outputs["plots"]
