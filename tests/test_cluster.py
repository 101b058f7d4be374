"""The section `kubeflow` of profiles: what it refuses, and how a stage's settings come about."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from anymal.cluster import SECTION, cluster_of, cluster_problems
from anymal.errors import ConfigError
from anymal.profile import profile_problems
from tests.graph import PROFILES, document_of

TRAINING = {"gpus": 2, "processes": 2}


def section(profile: str = "params.yaml", **changes: Any) -> dict[str, Any]:
    return copy.deepcopy(document_of(profile)[SECTION]) | changes


@pytest.mark.parametrize("profile", PROFILES)
def test_both_profiles_hold_a_valid_one(profile):
    assert cluster_problems(document_of(profile)[SECTION]) == []
    assert document_of(profile)[SECTION].keys() == section().keys()
    assert document_of(profile)[SECTION]["defaults"].keys() == section()["defaults"].keys()


def test_what_a_stage_asks_for_is_laid_over_the_defaults():
    """Stage, then stage and modality; mappings are merged, all else is replaced."""
    taint = {"key": "nvidia.com/gpu"}
    tree = section(workspace={"claim": "workspace", "path": "/workspace"}, stages={
        "align_image": {"nodes": 4, "node_selector": {"pool": "large"}},
        "align": {"memory": "64Gi", "gpus": 8, "processes": 8, "node_selector": {"gpu": "true"}, "tolerations": [taint]},
        "ingest": {"secrets": {"hub": {"token": "HF_TOKEN"}}}})  # fmt: skip
    tree["defaults"] |= {"secrets": {"s3": {"key": "AWS_ACCESS_KEY_ID"}}}
    cluster = cluster_of({SECTION: tree}, "mine.yaml")
    image, audio = cluster.of("align_image"), cluster.of("align_audio")
    assert (image.nodes, image.processes, image.gpus, image.memory) == (4, 8, 8, "64Gi")
    assert image.node_selector == {"gpu": "true", "pool": "large"}
    assert (audio.nodes, audio.node_selector) == (1, {"gpu": "true"})
    assert image.distributed
    assert cluster.of("ingest").secrets == {"s3": {"key": "AWS_ACCESS_KEY_ID"}, "hub": {"token": "HF_TOKEN"}}
    assert cluster.of("score") == cluster.defaults
    assert image.tolerations[0].model_dump(exclude_none=True) == {"key": "nvidia.com/gpu", "operator": "Exists"}


def test_a_number_is_a_quantity_as_well():
    assert cluster_of({SECTION: section(stages={"score": {"cpu": 2}})}, "mine.yaml").of("score").cpu == "2"


@pytest.mark.parametrize(("changes", "sentence"), [
    ({"cachin": True}, "kubeflow.cachin: unknown knob; did you mean 'caching'?"),
    ({"stages": {"alig": {}}}, "kubeflow.stages.alig: belongs to no stage; did you mean 'align'?"),
    ({"stages": {"score_image": {}}}, "kubeflow.stages.score_image: belongs to no stage"),
    ({"stages": {"score": {"memry": "1Gi"}}}, "kubeflow.stages.score.memry: unknown knob; did you mean 'memory'?"),
    ({"stages": {"score": {"memory": "8 GB"}}}, "kubeflow.stages.score.memory = 8 GB: is no amount of memory; write it as Kubernetes does"),
    ({"stages": {"score": {"cpu": "two"}}}, "kubeflow.stages.score.cpu = two: is no number of CPU cores"),
    ({"stages": {"score": {"cpu": "0"}}}, "kubeflow.stages.score.cpu = 0: is no number of CPU cores"),
    ({"stages": {"score": {"shared_memory": "0Gi"}}}, "kubeflow.stages.score.shared_memory = 0Gi: is no amount of memory"),
    ({"stages": {"score": {"gpus": -1}}}, "kubeflow.stages.score.gpus = -1"),
    ({"stages": {"score": {"nodes": 2}}}, "kubeflow.stages.score: score runs in one process; set nodes and processes to 1"),
    ({"stages": {"align": {"gpus": 1, "processes": 2}}}, "processes = 2 is more than gpus = 1; lower it, or ask for more GPUs"),
    ({"stages": {"align": TRAINING}}, "kubeflow.workspace = None: align trains on several processes"),
    ({"stages": {"score": {"secrets": {"s3": {"key": "AWS-KEY"}}}}}, "kubeflow.stages.score.secrets.s3.key = AWS-KEY"),
    ({"stages": {"score": {"tolerations": [{"key": "gpu", "operator": "Equal"}]}}}, "operator Equal needs a value"),
    ({"stages": {"score": {"tolerations": [{"key": "gpu", "value": "yes"}]}}}, "operator Exists takes no value"),
    ({"workspace": {"claim": "Work Space", "path": "/workspace"}}, "kubeflow.workspace.claim = Work Space"),
    ({"workspace": {"claim": "workspace", "path": "workspace"}}, "kubeflow.workspace.path = workspace"),
    ({"image_pull_policy": "Sometimes"}, "kubeflow.image_pull_policy = Sometimes"),
    ({"retries": {"count": 1}}, "kubeflow.retries.wait_seconds: missing; add it to the profile's section 'kubeflow'"),
])  # fmt: skip
def test_what_is_wrong_is_said(changes, sentence):
    problems = cluster_problems(section(**changes))
    assert any(problem.startswith(sentence) or sentence in problem for problem in problems), problems
    with pytest.raises(ConfigError):
        cluster_of({SECTION: section(**changes)}, "mine.yaml")
    assert set(problems) <= set(profile_problems(document_of("params.yaml") | {SECTION: section(**changes)}, "mine.yaml"))


def test_most_stages_run_in_one_process():
    tree = section()
    tree["defaults"] |= {"nodes": 2}
    assert [problem for problem in cluster_problems(tree) if problem.startswith("kubeflow.defaults: nodes = 2, processes = 1: most stages")]


def test_a_profile_without_one_is_told_so():
    with pytest.raises(ConfigError, match=r"^mine\.yaml: has no section 'kubeflow'; copy the one of params\.yaml$"):
        cluster_of({"align": {}}, "mine.yaml")
