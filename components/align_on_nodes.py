"""Component of the stage align, run as a job of Kubeflow Trainer by several processes."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components import images


@dsl.container_component
def align_on_nodes(
    config: str, job: dict,
    features: Input[Dataset], assets: Input[Artifact],
    checkpoint: Output[Model], plots: Output[Artifact], metrics: Output[Metrics],
):
    """Alignment pre-training of one modality's projector, on several GPUs or nodes."""
    return dsl.ContainerSpec(
        image=images.TRAIN,
        command=["anymal", "trainjob", "align"],
        args=[
            "--job", job, "--image", images.TRAIN, "--config", config, "--features", features.path, "--assets", assets.path,
            "--checkpoint", checkpoint.path, "--plots", plots.path, "--metrics", metrics.path,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )
