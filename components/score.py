"""Component of the stage score."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Output

from components import images


@dsl.container_component
def score(
    config: str, predictions_image: Input[Dataset], predictions_audio: Input[Dataset], predictions_video: Input[Dataset],
    predictions_imu: Input[Dataset], predictions_mixed: Input[Dataset], baselines: Input[Dataset], benchmarks: Input[Dataset],
    metrics: Output[Metrics], samples: Output[Artifact], report: Output[HTML], figures: Output[Artifact],
):
    """Figures and report of all predictions."""
    return dsl.ContainerSpec(image=images.EVAL, command=["anymal", "score"], args=[
        "--config", config, "--predictions", predictions_image.path, "--predictions", predictions_audio.path,
        "--predictions", predictions_video.path, "--predictions", predictions_imu.path, "--predictions", predictions_mixed.path,
        "--baselines", baselines.path, "--benchmarks", benchmarks.path, "--metrics", metrics.path, "--samples", samples.path,
        "--report", report.path, "--figures", figures.path, "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
    ])  # fmt: skip
