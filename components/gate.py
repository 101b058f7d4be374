"""Component of `anymal gate`."""

from kfp import dsl
from kfp.dsl import Input, Markdown, Metrics, Output

from components import images


@dsl.container_component
def gate(evaluation: Input[Metrics], report: Output[Markdown], verdict: dsl.OutputPath(str)):
    """Whether the figures show that the model uses its inputs: `passed` or `failed`."""
    return dsl.ContainerSpec(
        image=images.EVAL, command=["anymal", "gate"],
        args=[
            "--evaluation", evaluation.path, "--report", report.path, "--verdict", verdict,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )
