"""Component of the stage score."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Metrics, Output

from components import images


@dsl.container_component
def score(
    config: str, predictions_image: Input[Dataset], predictions_audio: Input[Dataset], predictions_video: Input[Dataset],
    predictions_imu: Input[Dataset], predictions_mixed: Input[Dataset], baselines: Input[Dataset],
    metrics: Output[Metrics], report: Output[HTML],
):
    """Figures and report of all predictions."""
    return dsl.ContainerSpec(
        image=images.EVAL, command=["anymal", "score"],
        args=[
            "--config", config, "--predictions", predictions_image.path, "--predictions", predictions_audio.path,
            "--predictions", predictions_video.path, "--predictions", predictions_imu.path, "--predictions", predictions_mixed.path,
            "--baselines", baselines.path, "--metrics", metrics.path, "--report", report.path,
            "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
        ],
    )
