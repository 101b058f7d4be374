"""Component of the stage benchmark."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components import images


@dsl.container_component
def benchmark(config: str, checkpoints: Input[Model], assets: Input[Artifact], predictions: Output[Dataset]):
    """What the model says to one part of each benchmark."""
    return dsl.ContainerSpec(
        image=images.EVAL,
        command=["anymal", "benchmark"],
        args=[
            "--config", config, "--checkpoints", checkpoints.path, "--assets", assets.path, "--predictions", predictions.path,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )
