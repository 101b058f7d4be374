"""Component of the stage score, for benchmarks that four tasks asked."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Metrics, Output

from components import images


@dsl.container_component
def score_benchmarks(
    config: str, predictions_image: Input[Dataset], predictions_audio: Input[Dataset], predictions_video: Input[Dataset],
    predictions_imu: Input[Dataset], predictions_mixed: Input[Dataset], baselines: Input[Dataset],
    benchmarks_first: Input[Dataset], benchmarks_second: Input[Dataset], benchmarks_third: Input[Dataset], benchmarks_fourth: Input[Dataset],
    metrics: Output[Metrics], samples: Output[Artifact], report: Output[HTML], figures: Output[Artifact],
):
    """Figures and report of all predictions, and of the four parts of the benchmarks."""
    return dsl.ContainerSpec(image=images.EVAL, command=["anymal", "score"], args=[
        "--config", config, "--predictions", predictions_image.path, "--predictions", predictions_audio.path,
        "--predictions", predictions_video.path, "--predictions", predictions_imu.path, "--predictions", predictions_mixed.path,
        "--baselines", baselines.path, "--benchmarks", benchmarks_first.path, "--benchmarks", benchmarks_second.path,
        "--benchmarks", benchmarks_third.path, "--benchmarks", benchmarks_fourth.path, "--metrics", metrics.path, "--samples", samples.path,
        "--report", report.path, "--figures", figures.path, "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
    ])  # fmt: skip
