"""Component of `anymal promote --guard`."""

from kfp import dsl
from kfp.dsl import Input, Markdown, Metrics, Output

from components import images


@dsl.container_component
def promote_guard(config: str, registration: Input[Metrics], decision: Output[Metrics], report: Output[Markdown], verdict: dsl.OutputPath(str)):
    """Whether the registered guard became champion: `promoted` or `refused`."""
    return dsl.ContainerSpec(
        image=images.EVAL, command=["anymal", "promote"],
        args=[
            "--guard", "--config", config, "--registration", registration.path, "--decision", decision.path, "--report", report.path,
            "--verdict", verdict, "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )
