"""Component of the stage encode."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output

from components import images


@dsl.container_component
def encode(
    config: dict,
    shards: Input[Dataset], encoders: Input[Artifact],
    features: Output[Dataset],
):
    """Encoder features of curated media."""
    return dsl.ContainerSpec(
        image=images.TRAIN,
        command=["anymal", "encode"],
        args=[
            "--config", config,
            "--shards", shards.path, "--encoders", encoders.path,
            "--features", features.path,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )
