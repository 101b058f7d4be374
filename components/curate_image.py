"""Component of the stage curate_image."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from components import images


@dsl.container_component
def curate_image(
    config: str, assets: Input[Artifact], guard: Input[Model], shards: Output[Dataset], stamps: Output[Dataset], report: Output[HTML],
    statistics: Output[Metrics],
):
    """Cleaned, captioned images, composed scenes, and the cut-outs they are made of."""
    return dsl.ContainerSpec(
        image=images.DATA,
        command=["anymal", "curate-image"],
        args=[
            "--config", config,
            "--assets", assets.path, "--guard", guard.path,
            "--shards", shards.path, "--stamps", stamps.path, "--report", report.path, "--statistics", statistics.path,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )
