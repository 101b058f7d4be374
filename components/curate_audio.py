"""Component of the stage curate_audio."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Output

from components import images


@dsl.container_component
def curate_audio(
    config: str,
    assets: Input[Artifact],
    shards: Output[Dataset], report: Output[HTML], statistics: Output[Metrics],
):
    """Cleaned, captioned sounds."""
    return dsl.ContainerSpec(
        image=images.DATA,
        command=["anymal", "curate-audio"],
        args=[
            "--config", config,
            "--assets", assets.path,
            "--shards", shards.path, "--report", report.path, "--statistics", statistics.path,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )
