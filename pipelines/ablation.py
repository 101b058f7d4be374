"""An ablation on Kubeflow: its variants trained side by side from what an earlier run of the training pipeline left, then compared.

The variants are branches of their own, as modalities are (docs/decisions/0007): a container component cannot take the list that a
ParallelFor collects. Each entry of `ablations.yaml` is compiled to a pipeline with as many branches as it has variants.
"""

from inspect import Parameter, Signature
from typing import Any

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Model

from components.align import align as align_stage
from components.compare import compare as compare_stage
from components.compare_three import compare_three as compare_three_stage
from components.evaluate import evaluate as evaluate_stage
from components.evaluate_mixed import evaluate_mixed as evaluate_mixed_stage
from components.finetune import finetune as finetune_stage
from components.score import score as score_stage
from pipelines.ablations import ORDINALS, Ablation
from pipelines.training import tracked

MODALITIES = ("image", "audio", "video", "imu")
EVALUATED = (*MODALITIES, "mixed")
COMPARE = {2: compare_stage, 3: compare_three_stage}
"""Number of variants -> component."""


def imported(ablation: Ablation) -> dict[str, type[Artifact]]:
    """Argument -> type of the artifact whose URI it is: what the variants start from."""
    if ablation.stage == "align":
        return {"assets": Artifact, "features": Dataset}
    kinds: dict[str, type[Artifact]] = {"checkpoints": Model, "features": Dataset, "shards": Dataset}
    named = {f"{kind}_{modality}": type_ for kind, type_ in kinds.items() for modality in MODALITIES}
    instructions = {f"instructions_{origin}": Dataset for origin in ("templates", "synthetic", "human")}
    return {"assets": Artifact, **named, **instructions, "baselines": Dataset}


def ablation_pipeline(name: str, ablation: Ablation) -> Any:
    """The pipeline of an ablation.

    Its arguments are `variant_first`, `variant_second`, … (whole sections), `compare`, for fine-tuning `score` and `evaluate_MODALITY`,
    and the URIs of `imported`.
    """
    ordinals = ORDINALS[: len(ablation.variants["demo"])]
    uris = imported(ablation)
    sections = [*(f"variant_{ordinal}" for ordinal in ordinals), "compare"]
    if ablation.stage == "finetune":
        sections += [*(f"evaluate_{part}" for part in EVALUATED), "score"]
    names = [*sections, *uris]

    def graph(*values):
        given = dict(zip(names, values, strict=True))
        artifacts = {uri: dsl.importer(artifact_uri=given[uri], artifact_class=kind, reimport=False).output for uri, kind in uris.items()}
        branch = _aligned if ablation.stage == "align" else _tuned
        compared = {}
        for ordinal in ordinals:
            compared[f"results_{ordinal}"], compared[f"plots_{ordinal}"] = branch(given, artifacts, ordinal)
        tracked(COMPARE[len(ordinals)](config=given["compare"], **compared))

    graph.__signature__ = Signature([  # type: ignore[attr-defined]
        Parameter(entry, Parameter.POSITIONAL_OR_KEYWORD, annotation=str if entry in uris else dict) for entry in names])
    return dsl.pipeline(name=f"anymal-ablation-{name}", description=f"{ablation.title}.")(graph)


def _run(stage, ordinal, **inputs):
    """A task that says which variant it belongs to."""
    task = tracked(stage(**inputs))
    return task.set_display_name(f"{stage.name} ({ordinal} variant)")


def _aligned(given, artifacts, ordinal):
    """Results and loss curves of a variant's alignment."""
    task = _run(align_stage, ordinal, config=given[f"variant_{ordinal}"], features=artifacts["features"], assets=artifacts["assets"])
    return task.outputs["metrics"], task.outputs["plots"]


def _tuned(given, artifacts, ordinal):
    """Scores and loss curves of a variant's fine-tuning."""
    assets = artifacts["assets"]
    inputs = {name: artifact for name, artifact in artifacts.items() if name.startswith(("checkpoints_", "features_", "instructions_"))}
    tuned = _run(finetune_stage, ordinal, config=given[f"variant_{ordinal}"], assets=assets, **inputs)
    model = tuned.outputs["model"]
    predictions = {f"predictions_{modality}": _run(
        evaluate_stage, ordinal, config=given[f"evaluate_{modality}"], checkpoints=model, features=artifacts[f"features_{modality}"],
        shards=artifacts[f"shards_{modality}"], assets=assets).outputs["predictions"] for modality in MODALITIES}
    predictions["predictions_mixed"] = _run(
        evaluate_mixed_stage, ordinal, config=given["evaluate_mixed"], checkpoints=model,
        features_first=artifacts["features_image"], shards_first=artifacts["shards_image"],
        features_second=artifacts["features_imu"], shards_second=artifacts["shards_imu"], assets=assets).outputs["predictions"]
    scored = _run(score_stage, ordinal, config=given["score"], baselines=artifacts["baselines"], **predictions)
    return scored.outputs["metrics"], tuned.outputs["plots"]
