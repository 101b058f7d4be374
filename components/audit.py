"""Component of the stage audit."""

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Metrics, Output

from components import images


@dsl.container_component
def audit(
    config: str, shards_image: Input[Dataset], shards_audio: Input[Dataset], shards_video: Input[Dataset], shards_imu: Input[Dataset],
    shards_human: Input[Dataset], features_image: Input[Dataset], features_audio: Input[Dataset], features_video: Input[Dataset],
    features_imu: Input[Dataset], instructions_templates: Input[Dataset], instructions_synthetic: Input[Dataset],
    instructions_human: Input[Dataset], benchmarks: Input[Dataset], leakage: Output[Metrics], report: Output[HTML],
):
    """Fails if training data hold what the model is tested on."""
    return dsl.ContainerSpec(image=images.EVAL, command=["anymal", "audit"], args=[
        "--config", config, "--shards", shards_image.path, "--shards", shards_audio.path, "--shards", shards_video.path,
        "--shards", shards_imu.path, "--shards", shards_human.path, "--features", features_image.path, "--features", features_audio.path,
        "--features", features_video.path, "--features", features_imu.path, "--instructions", instructions_templates.path,
        "--instructions", instructions_synthetic.path, "--instructions", instructions_human.path, "--benchmarks", benchmarks.path,
        "--leakage", leakage.path, "--report", report.path, "--executor-input", dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER,
    ])  # fmt: skip
