"""Component of the stage register."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Metrics, Model, Output

from components import images


@dsl.container_component
def register(
    config: dict,
    checkpoint: Input[Model], assets: Input[Artifact], evaluation: Input[Metrics], statistics: Input[Metrics],
    bundle: Output[Model], registration: Output[Artifact],
):
    """Write the model bundle and register it as a candidate."""
    return dsl.ContainerSpec(
        image=images.TRAIN,
        command=["anymal", "register"],
        args=[
            "--config", config,
            "--checkpoint", checkpoint.path, "--assets", assets.path, "--evaluation", evaluation.path, "--statistics", statistics.path,
            "--bundle", bundle.path, "--registration", registration.path,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )
