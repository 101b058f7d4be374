"""The compiled pipelines: the same bytes each time, valid against the protobuf schemas, every reference resolved."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2
from ruamel.yaml import YAML

from pipelines.ablations import read_ablations
from pipelines.compile import pipelines

ROOT = Path(__file__).parent.parent
PIPELINES = tuple(pipelines())


def compile_into(folder: Path, hash_seed: str) -> dict[str, bytes]:
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    subprocess.run([sys.executable, "-m", "pipelines.compile", str(folder)], cwd=ROOT, env=environment, check=True, capture_output=True)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return compile_into(tmp_path_factory.mktemp("dist"), "1")


@pytest.fixture(scope="module", params=PIPELINES)
def documents(request: pytest.FixtureRequest, compiled: dict[str, bytes]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pipeline spec and platform spec of one compiled pipeline."""
    loaded = list(YAML(typ="safe", pure=True).load_all(compiled[f"{request.param}.yaml"]))
    assert len(loaded) == 2
    return loaded[0], loaded[1]


def test_all_pipelines_of_the_folder_are_compiled(compiled):
    """One for each module that has a pipeline, and one for each ablation."""
    modules = {path.stem for path in (ROOT / "pipelines").glob("*.py") if "@dsl.pipeline" in path.read_text()}
    ablations = {f"ablation-{name}" for name in read_ablations(ROOT / "ablations.yaml")}
    assert len(ablations) == 6
    assert modules | ablations == set(PIPELINES)
    assert set(compiled) == {f"{name}.yaml" for name in PIPELINES}


def test_compiling_again_gives_the_same_bytes(compiled, tmp_path):
    assert compile_into(tmp_path, "2") == compiled


def test_specs_are_valid(documents):
    """Protobuf's parser refuses unknown fields and wrong types."""
    pipeline, platform = documents
    message = json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())
    assert message.schema_version == "2.1.0"
    json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(executors) <= set(pipeline["deploymentSpec"]["executors"])
    for settings in executors.values():
        json_format.ParseDict(settings, kubernetes_executor_config_pb2.KubernetesExecutorConfig())


def test_unknown_fields_are_refused(documents):
    with pytest.raises(json_format.ParseError, match="no field named"):
        json_format.ParseDict(documents[0] | {"surprise": 1}, pipeline_spec_pb2.PipelineSpec())


def dags(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield spec["root"]
    yield from (entry for entry in spec["components"].values() if "dag" in entry)


def test_every_reference_resolves(documents):
    spec, _ = documents
    executors, components = spec["deploymentSpec"]["executors"], spec["components"]
    used_components: set[str] = set()
    for parent in dags(spec):
        siblings = parent["dag"]["tasks"]
        for name, task in siblings.items():
            reference = task["componentRef"]["name"]
            used_components.add(reference)
            definitions = components[reference].get("inputDefinitions", {})
            given = task.get("inputs", {})
            assert set(task.get("dependentTasks", [])) <= set(siblings), name
            for kind in ("artifacts", "parameters"):
                declared = definitions.get(kind, {})
                assert set(given.get(kind, {})) <= set(declared), name
                required = {key for key, entry in declared.items() if not entry.get("isOptional")}
                assert required <= set(given.get(kind, {})), name
            for port, source in given.get("artifacts", {}).items():
                origin = source["taskOutputArtifact"]
                producer = components[siblings[origin["producerTask"]]["componentRef"]["name"]]
                made = producer["outputDefinitions"]["artifacts"][origin["outputArtifactKey"]]
                assert made["artifactType"]["schemaTitle"] == definitions["artifacts"][port]["artifactType"]["schemaTitle"], f"{name}.{port}"
            for source in given.get("parameters", {}).values():
                if "componentInputParameter" in source:
                    assert source["componentInputParameter"] in parent["inputDefinitions"]["parameters"]
    assert used_components == set(components)
    assert {entry["executorLabel"] for entry in components.values() if "executorLabel" in entry} == set(executors)


def test_images_are_named_in_full_by_the_prefix(tmp_path):
    """One setting points all components at a registry; nothing else changes."""
    environment = os.environ | {"ANYMAL_IMAGE_PREFIX": "registry.example/team/"}
    subprocess.run([sys.executable, "-m", "pipelines.compile", str(tmp_path)], cwd=ROOT, env=environment, check=True, capture_output=True)
    for name in PIPELINES:
        images = [line.split(": ", 1)[1] for line in (tmp_path / f"{name}.yaml").read_text().splitlines() if line.strip().startswith("image:")]
        assert images
        assert all(image.startswith("registry.example/team/anymal-") for image in images)
