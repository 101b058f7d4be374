"""Component of the stage curate_video."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Output

from components import images


@dsl.container_component
def curate_video(
    config: str,
    stamps: Input[Dataset], assets: Input[Artifact],
    shards: Output[Dataset], report: Output[HTML], statistics: Output[Metrics],
):
    """Captioned clips, composed from cut-outs or taken from sources."""
    return dsl.ContainerSpec(
        image=images.DATA,
        command=["anymal", "curate-video"],
        args=[
            "--config", config,
            "--stamps", stamps.path, "--assets", assets.path,
            "--shards", shards.path, "--report", report.path, "--statistics", statistics.path,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )
