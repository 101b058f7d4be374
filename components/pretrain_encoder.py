"""Component of the stage pretrain_encoder."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Output

from components import images


@dsl.container_component
def pretrain_encoder(
    config: str,
    shards: Input[Dataset], assets: Input[Artifact],
    encoders: Output[Artifact], plots: Output[Artifact], metrics: Output[Metrics],
):
    """Contrastive training of an encoder that has no pre-trained weights."""
    return dsl.ContainerSpec(
        image=images.TRAIN,
        command=["anymal", "pretrain-encoder"],
        args=[
            "--config", config,
            "--shards", shards.path, "--assets", assets.path,
            "--encoders", encoders.path, "--plots", plots.path, "--metrics", metrics.path,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )
