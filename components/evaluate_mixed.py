"""Component of the stage evaluate."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components import images


@dsl.container_component
def evaluate_mixed(
    config: str, checkpoints: Input[Model], features_first: Input[Dataset], shards_first: Input[Dataset],
    features_second: Input[Dataset], shards_second: Input[Dataset], assets: Input[Artifact], predictions: Output[Dataset],
):
    """What the model says of prompts that hold media of two modalities."""
    return dsl.ContainerSpec(
        image=images.EVAL, command=["anymal", "evaluate"],
        args=[
            "--config", config, "--checkpoints", checkpoints.path, "--features", features_first.path, "--shards", shards_first.path,
            "--features", features_second.path, "--shards", shards_second.path, "--assets", assets.path,
            "--predictions", predictions.path, "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )
