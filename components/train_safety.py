"""Component of the stage train_safety."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components import images


@dsl.container_component
def train_safety(
    config: str, safety: Input[Dataset], assets: Input[Artifact], guard: Output[Model], plots: Output[Artifact], metrics: Output[Metrics]
):
    """The guard's classifiers of texts, pictures and both together."""
    return dsl.ContainerSpec(
        image=images.DATA, command=["anymal", "train-safety"],
        args=["--config", config, "--safety", safety.path, "--assets", assets.path, "--guard", guard.path, "--plots", plots.path,
              "--metrics", metrics.path, "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER])
