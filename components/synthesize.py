"""Component of the stage synthesize."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from components import images


@dsl.container_component
def synthesize(
    config: str, shards: Input[Dataset], assets: Input[Artifact], guard: Input[Model], instructions: Output[Dataset], report: Output[HTML],
    statistics: Output[Metrics],
):
    """Instructions written by an LLM from text-only descriptions, checked."""
    return dsl.ContainerSpec(
        image=images.TRAIN,
        command=["anymal", "synthesize"],
        args=[
            "--config", config,
            "--shards", shards.path, "--assets", assets.path, "--guard", guard.path,
            "--instructions", instructions.path, "--report", report.path, "--statistics", statistics.path,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )
