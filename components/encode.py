"""Component of the stage encode."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output

from components import images


@dsl.container_component
def encode(
    config: str, shards_curated: Input[Dataset], shards_human: Input[Dataset], encoders: Input[Artifact], features: Output[Dataset],
):
    """Encoder features of curated media and of those that came with human instructions."""
    return dsl.ContainerSpec(
        image=images.TRAIN,
        command=["anymal", "encode"],
        args=[
            "--config", config,
            "--shards", shards_curated.path, "--shards", shards_human.path, "--encoders", encoders.path,
            "--features", features.path,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )
