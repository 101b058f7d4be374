"""Component of the stage register_guard."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components import images


@dsl.container_component
def register_guard(
    config: str, guard: Input[Model], data: Input[Dataset], safety: Input[Metrics], integrity: Input[Metrics], registration: Output[Metrics]
):
    """The guard, registered as a candidate."""
    return dsl.ContainerSpec(
        image=images.TRAIN, command=["anymal", "register-guard"],
        args=["--config", config, "--guard", guard.path, "--data", data.path, "--safety", safety.path, "--integrity", integrity.path,
              "--registration", registration.path, "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER])
