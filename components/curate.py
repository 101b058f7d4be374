"""Component of the stage curate."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Output

from components import images


@dsl.container_component
def curate(
    config: dict,
    assets: Input[Artifact],
    shards: Output[Dataset], report: Output[HTML], statistics: Output[Metrics],
):
    """Clean, filter, deduplicate and split the raw images into shards."""
    return dsl.ContainerSpec(
        image=images.DATA,
        command=["anymal", "curate"],
        args=[
            "--config", config,
            "--assets", assets.path,
            "--shards", shards.path, "--report", report.path, "--statistics", statistics.path,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )
