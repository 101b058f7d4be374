"""Component of the stage register."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Metrics, Model, Output

from components import images


@dsl.container_component
def register(
    config: str, checkpoints: Input[Model], statistics_image: Input[Metrics], statistics_audio: Input[Metrics], statistics_video: Input[Metrics],
    statistics_imu: Input[Metrics], evaluation: Input[Metrics], samples: Input[Artifact], leakage: Input[Metrics], safety: Input[Metrics],
    integrity: Input[Metrics], assets: Input[Artifact], bundle: Output[Model], registration: Output[Metrics],
):
    """The bundle of all modalities, registered as a candidate."""
    return dsl.ContainerSpec(
        image=images.TRAIN, command=["anymal", "register"],
        args=["--config", config, "--checkpoints", checkpoints.path, "--statistics", statistics_image.path, "--statistics", statistics_audio.path,
              "--statistics", statistics_video.path, "--statistics", statistics_imu.path, "--evaluation", evaluation.path, "--samples", samples.path,
              "--leakage", leakage.path, "--safety", safety.path, "--integrity", integrity.path, "--assets", assets.path, "--bundle", bundle.path,
              "--registration", registration.path, "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER])
