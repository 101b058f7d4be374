"""The graph on Kubeflow: the same stages, ports and order as dvc.yaml; its arguments are the sections of a profile."""

from kfp import dsl, kubernetes

from components.align import align as align_stage
from components.curate import curate as curate_stage
from components.encode import encode as encode_stage
from components.evaluate import evaluate as evaluate_stage
from components.ingest import ingest as ingest_stage
from components.register import register as register_stage

SETTINGS = "anymal"
"""ConfigMap of the namespace that names the shared MLflow server; without it a stage's records end with its pod."""


@dsl.pipeline(name="anymal-training", description="From raw packages to a measured multimodal LLM in the model registry.")
def training(lock: str, ingest: dict, curate: dict, encode: dict, align: dict, evaluate: dict, register: dict):
    """`lock` is the URI of the asset lock (docs/decisions/0004); every other argument is the profile's section of that name."""
    lock_file = dsl.importer(artifact_uri=lock, artifact_class=dsl.Artifact, reimport=True)
    ingested = ingest_stage(config=ingest, lock=lock_file.output)
    assets = ingested.outputs["assets"]
    curated = curate_stage(config=curate, assets=assets)
    shards = curated.outputs["shards"]
    encoded = encode_stage(config=encode, shards=shards, assets=assets)
    features = encoded.outputs["features"]
    aligned = align_stage(config=align, features=features, assets=assets)
    checkpoint = aligned.outputs["checkpoint"]
    evaluated = evaluate_stage(config=evaluate, checkpoint=checkpoint, features=features, shards=shards, assets=assets)
    registered = register_stage(
        config=register,
        checkpoint=checkpoint,
        assets=assets,
        evaluation=evaluated.outputs["metrics"],
        statistics=curated.outputs["statistics"],
    )
    for task in (ingested, curated, encoded, aligned, evaluated, registered):
        kubernetes.use_config_map_as_env(
            task, config_map_name=SETTINGS, config_map_key_to_env={"MLFLOW_TRACKING_URI": "MLFLOW_TRACKING_URI"}, optional=True
        )
