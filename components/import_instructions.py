"""Component of the stage import_instructions."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from components import images


@dsl.container_component
def import_instructions(
    config: str, assets: Input[Artifact], shards_image: Input[Dataset], shards_audio: Input[Dataset], shards_video: Input[Dataset],
    shards_imu: Input[Dataset], guard: Input[Model], instructions: Output[Dataset], media: Output[Dataset], report: Output[HTML],
    statistics: Output[Metrics],
):
    """Human instructions, checked, and the media that came with them."""
    return dsl.ContainerSpec(
        image=images.DATA, command=["anymal", "import-instructions"],
        args=[
            "--config", config, "--assets", assets.path, "--shards", shards_image.path, "--shards", shards_audio.path,
            "--shards", shards_video.path, "--shards", shards_imu.path, "--guard", guard.path, "--instructions", instructions.path,
            "--media", media.path, "--report", report.path, "--statistics", statistics.path,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )
