"""Component of the stage ingest."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Output

from components import images


@dsl.container_component
def ingest(
    config: str,
    lock: Input[Artifact],
    assets: Output[Artifact],
):
    """Fetch the assets that a lock file names, verified by SHA-256."""
    return dsl.ContainerSpec(
        image=images.TRAIN,
        command=["anymal", "ingest"],
        args=[
            "--config", config,
            "--lock", lock.path,
            "--assets", assets.path,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )
