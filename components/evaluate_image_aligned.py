"""Component of the stage evaluate, for the model before fine-tuning."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components import images


@dsl.container_component
def evaluate_image_aligned(
    config: str,
    checkpoints: Input[Model], features: Input[Dataset], shards: Input[Dataset], assets: Input[Artifact],
    predictions: Output[Dataset],
):
    """What the model says of held-out samples with the right input."""
    return dsl.ContainerSpec(
        image=images.EVAL,
        command=["anymal", "evaluate"],
        args=[
            "--config", config, "--modality", "image_aligned",
            "--checkpoints", checkpoints.path, "--features", features.path, "--shards", shards.path, "--assets", assets.path,
            "--predictions", predictions.path,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )
