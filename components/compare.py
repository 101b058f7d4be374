"""Component of the stage compare, for two runs."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Markdown, Metrics, Output

from components import images


@dsl.container_component
def compare(
    config: str, results_first: Input[Metrics], results_second: Input[Metrics], plots_first: Input[Artifact], plots_second: Input[Artifact],
    table: Output[Markdown], metrics: Output[Metrics], figure: Output[Artifact],
):
    """One table and one picture of two runs."""
    return dsl.ContainerSpec(
        image=images.EVAL, command=["anymal", "compare"],
        args=[
            "--config", config, "--results", results_first.path, "--results", results_second.path,
            "--plots", plots_first.path, "--plots", plots_second.path,
            "--table", table.path, "--metrics", metrics.path, "--figure", figure.path,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )
