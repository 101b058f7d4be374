"""Component of the stage finetune."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components import images


@dsl.container_component
def finetune(
    config: str, checkpoints_image: Input[Model], checkpoints_audio: Input[Model], checkpoints_video: Input[Model], checkpoints_imu: Input[Model],
    features_image: Input[Dataset], features_audio: Input[Dataset], features_video: Input[Dataset], features_imu: Input[Dataset],
    instructions_templates: Input[Dataset], instructions_synthetic: Input[Dataset], instructions_human: Input[Dataset], assets: Input[Artifact],
    model: Output[Model], plots: Output[Artifact], metrics: Output[Metrics],
):
    """Instruction tuning of all projectors together, with or without LoRA."""
    checkpoints = ("--checkpoints", checkpoints_image.path, "--checkpoints", checkpoints_audio.path, "--checkpoints", checkpoints_video.path)
    features = ("--features", features_image.path, "--features", features_audio.path, "--features", features_video.path)
    return dsl.ContainerSpec(image=images.TRAIN, command=["anymal", "finetune"], args=[
        "--config", config, *checkpoints, "--checkpoints", checkpoints_imu.path, *features, "--features", features_imu.path,
        "--instructions", instructions_templates.path, "--instructions", instructions_synthetic.path,
        "--instructions", instructions_human.path, "--assets", assets.path, "--model", model.path, "--plots", plots.path, "--metrics", metrics.path,
        "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER])  # fmt: skip
