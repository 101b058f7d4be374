"""Component of `anymal gate`."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Markdown, Metrics, Output

from components import images


@dsl.container_component
def gate(config: str, evaluation: Input[Metrics], samples: Input[Artifact], leakage: Input[Metrics], safety: Input[Metrics],
         integrity: Input[Metrics], report: Output[Markdown], verdict: dsl.OutputPath(str)):
    """Whether what was measured passes the gates that need no champion: `passed` or `failed`."""
    return dsl.ContainerSpec(
        image=images.EVAL, command=["anymal", "gate"],
        args=[
            "--config", config, "--evaluation", evaluation.path, "--samples", samples.path, "--leakage", leakage.path, "--safety", safety.path,
            "--integrity", integrity.path, "--report", report.path, "--verdict", verdict,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )
