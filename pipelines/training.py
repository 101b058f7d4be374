"""The graph on Kubeflow: the same stages, ports and order as dvc.yaml; its arguments are the sections of a profile.

What runs once per modality is one branch each, side by side; all branches align against the same LLM and meet in fine-tuning.
"""

from kfp import dsl, kubernetes

from components.align import align as align_stage
from components.compose_instructions import compose_instructions as compose_instructions_stage
from components.curate_audio import curate_audio as curate_audio_stage
from components.curate_image import curate_image as curate_image_stage
from components.curate_imu import curate_imu as curate_imu_stage
from components.curate_video import curate_video as curate_video_stage
from components.encode import encode as encode_stage
from components.evaluate import evaluate as evaluate_stage
from components.evaluate_aligned import evaluate_aligned as evaluate_aligned_stage
from components.evaluate_mixed import evaluate_mixed as evaluate_mixed_stage
from components.finetune import finetune as finetune_stage
from components.import_instructions import import_instructions as import_instructions_stage
from components.ingest import ingest as ingest_stage
from components.pretrain_encoder import pretrain_encoder as pretrain_encoder_stage
from components.register import register as register_stage
from components.score import score as score_stage
from components.synthesize import synthesize as synthesize_stage

SETTINGS = "anymal"
"""ConfigMap of the namespace that names the shared MLflow server; without it a stage's records end with its pod."""


def tracked(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """Tell a task where MLflow is."""
    return kubernetes.use_config_map_as_env(
        task, config_map_name=SETTINGS, config_map_key_to_env={"MLFLOW_TRACKING_URI": "MLFLOW_TRACKING_URI"}, optional=True
    )


@dsl.pipeline(name="anymal-training", description="From raw packages to a measured multimodal LLM in the model registry.")
def training(
    lock: str,
    ingest: dict,
    curate_image: dict, curate_audio: dict, curate_video: dict, curate_imu: dict,
    pretrain_encoder_audio: dict, pretrain_encoder_imu: dict,
    encode_image: dict, encode_audio: dict, encode_video: dict, encode_imu: dict,
    align_image: dict, align_audio: dict, align_video: dict, align_imu: dict,
    import_instructions: dict, compose_instructions: dict, synthesize_image: dict,
    finetune: dict,
    evaluate_image: dict, evaluate_audio: dict, evaluate_video: dict, evaluate_imu: dict, evaluate_mixed: dict,
    score: dict,
    register: dict,
):
    """`lock` is the URI of the asset lock (docs/decisions/0004); every other argument is a section of the profile: `align_audio` is `align.audio`."""
    lock_file = dsl.importer(artifact_uri=lock, artifact_class=dsl.Artifact, reimport=True)
    assets = tracked(ingest_stage(config=ingest, lock=lock_file.output)).outputs["assets"]

    images = tracked(curate_image_stage(config=curate_image, assets=assets))
    sounds = tracked(curate_audio_stage(config=curate_audio, assets=assets))
    clips = tracked(curate_video_stage(config=curate_video, stamps=images.outputs["stamps"], assets=assets))
    motions = tracked(curate_imu_stage(config=curate_imu, assets=assets))

    human = tracked(import_instructions_stage(
        config=import_instructions, assets=assets, shards_image=images.outputs["shards"], shards_audio=sounds.outputs["shards"],
        shards_video=clips.outputs["shards"], shards_imu=motions.outputs["shards"],
    ))

    def pretrained(config, curated):
        """An encoder of its own for a modality."""
        return tracked(pretrain_encoder_stage(config=config, shards=curated.outputs["shards"], assets=assets)).outputs["encoders"]

    def aligned(curated, encoders, encode, align):
        """Features and checkpoint of a modality."""
        features = tracked(encode_stage(
            config=encode, shards_curated=curated.outputs["shards"], shards_human=human.outputs["media"], encoders=encoders,
        )).outputs["features"]
        return features, tracked(align_stage(config=align, features=features, assets=assets)).outputs["checkpoint"]

    sound_encoder, motion_encoder = pretrained(pretrain_encoder_audio, sounds), pretrained(pretrain_encoder_imu, motions)
    image_features, image = aligned(images, assets, encode_image, align_image)
    audio_features, audio = aligned(sounds, sound_encoder, encode_audio, align_audio)
    video_features, video = aligned(clips, assets, encode_video, align_video)
    imu_features, imu = aligned(motions, motion_encoder, encode_imu, align_imu)
    features = {"features_image": image_features, "features_audio": audio_features, "features_video": video_features, "features_imu": imu_features}

    templates = tracked(compose_instructions_stage(config=compose_instructions, **features)).outputs["instructions"]
    synthetic = tracked(synthesize_stage(config=synthesize_image, shards=images.outputs["shards"], assets=assets)).outputs["instructions"]
    tuned = tracked(finetune_stage(
        config=finetune, checkpoints_image=image, checkpoints_audio=audio, checkpoints_video=video, checkpoints_imu=imu, **features,
        instructions_templates=templates, instructions_synthetic=synthetic, instructions_human=human.outputs["instructions"], assets=assets,
    )).outputs["model"]

    def evaluated(stage, config, checkpoints, features, curated):
        """Predictions for a modality."""
        shards = curated.outputs["shards"]
        return tracked(stage(config=config, checkpoints=checkpoints, features=features, shards=shards, assets=assets)).outputs["predictions"]

    mixed = tracked(evaluate_mixed_stage(
        config=evaluate_mixed, checkpoints=tuned, features_first=image_features, shards_first=images.outputs["shards"],
        features_second=imu_features, shards_second=motions.outputs["shards"], assets=assets,
    ))
    scored = tracked(score_stage(
        config=score,
        predictions_image=evaluated(evaluate_stage, evaluate_image, tuned, image_features, images),
        predictions_audio=evaluated(evaluate_stage, evaluate_audio, tuned, audio_features, sounds),
        predictions_video=evaluated(evaluate_stage, evaluate_video, tuned, video_features, clips),
        predictions_imu=evaluated(evaluate_stage, evaluate_imu, tuned, imu_features, motions),
        predictions_mixed=mixed.outputs["predictions"],
        baselines=evaluated(evaluate_aligned_stage, evaluate_image, image, image_features, images),
    ))
    tracked(register_stage(
        config=register, checkpoints=tuned,
        statistics_image=images.outputs["statistics"], statistics_audio=sounds.outputs["statistics"],
        statistics_video=clips.outputs["statistics"], statistics_imu=motions.outputs["statistics"],
        evaluation=scored.outputs["metrics"], assets=assets,
    ))
