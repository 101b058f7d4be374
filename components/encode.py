"""Component of the stage encode."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output

from components import images


@dsl.container_component
def encode(
    config: dict,
    shards: Input[Dataset], assets: Input[Artifact],
    features: Output[Dataset],
):
    """Run the frozen encoder over the shards once."""
    return dsl.ContainerSpec(
        image=images.TRAIN,
        command=["anymal", "encode"],
        args=[
            "--config", config,
            "--shards", shards.path, "--assets", assets.path,
            "--features", features.path,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )
