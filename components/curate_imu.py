"""Component of the stage curate_imu."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Output

from components import images


@dsl.container_component
def curate_imu(
    config: str,
    assets: Input[Artifact],
    shards: Output[Dataset], report: Output[HTML], statistics: Output[Metrics],
):
    """Captioned windows of wearable motion."""
    return dsl.ContainerSpec(
        image=images.DATA,
        command=["anymal", "curate-imu"],
        args=[
            "--config", config,
            "--assets", assets.path,
            "--shards", shards.path, "--report", report.path, "--statistics", statistics.path,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )
