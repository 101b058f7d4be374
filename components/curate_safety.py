"""Component of the stage curate_safety."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Output

from components import images


@dsl.container_component
def curate_safety(config: str, assets: Input[Artifact], safety: Output[Dataset], report: Output[HTML], statistics: Output[Metrics]):
    """Harmful and harmless texts, pictures and pairs, with splits."""
    return dsl.ContainerSpec(
        image=images.DATA, command=["anymal", "curate-safety"],
        args=["--config", config, "--assets", assets.path, "--safety", safety.path, "--report", report.path, "--statistics", statistics.path,
              "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER])
