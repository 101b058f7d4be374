"""Component of the stage compose_instructions."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Output

from components import images


@dsl.container_component
def compose_instructions(
    config: str, features_image: Input[Dataset], features_audio: Input[Dataset], features_video: Input[Dataset], features_imu: Input[Dataset],
    instructions: Output[Dataset], statistics: Output[Metrics],
):
    """Instructions filled into forms from what curation knows."""
    return dsl.ContainerSpec(
        image=images.TRAIN, command=["anymal", "compose-instructions"],
        args=[
            "--config", config, "--features", features_image.path, "--features", features_audio.path, "--features", features_video.path,
            "--features", features_imu.path, "--instructions", instructions.path, "--statistics", statistics.path,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )
