"""Component of the stage evaluate."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from components import images


@dsl.container_component
def evaluate(
    config: dict,
    checkpoint: Input[Model], features: Input[Dataset], shards: Input[Dataset], assets: Input[Artifact],
    predictions: Output[Dataset], report: Output[HTML], metrics: Output[Metrics],
):
    """Measure captions and answers, with grounding controls."""
    return dsl.ContainerSpec(
        image=images.EVAL,
        command=["anymal", "evaluate"],
        args=[
            "--config", config,
            "--checkpoint", checkpoint.path, "--features", features.path, "--shards", shards.path, "--assets", assets.path,
            "--predictions", predictions.path, "--report", report.path, "--metrics", metrics.path,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )
