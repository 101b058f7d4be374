"""Component of the stage evaluate_safety."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Model, Output

from components import images


@dsl.container_component
def evaluate_safety(
    config: str, guard: Input[Model], safety: Input[Dataset], checkpoints: Input[Model], assets: Input[Artifact], answers: Output[Dataset],
    metrics: Output[Metrics], report: Output[HTML],
):
    """What the model does with harmful and harmless prompts, alone and behind the guard."""
    return dsl.ContainerSpec(
        image=images.DATA, command=["anymal", "evaluate-safety"],
        args=["--config", config, "--guard", guard.path, "--safety", safety.path, "--checkpoints", checkpoints.path, "--assets", assets.path,
              "--answers", answers.path, "--metrics", metrics.path, "--report", report.path,
              "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER])
