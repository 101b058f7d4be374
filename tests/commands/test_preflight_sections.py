"""`anymal preflight` as the first task of pipelines: sections one by one, addresses of any kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner
from google.protobuf import json_format
from kfp import dsl
from kfp.local import config as local_config
from kfp.local import executor_input_utils, placeholder_utils
from kfp.pipeline_spec import pipeline_spec_pb2

from anymal.__main__ import cli
from anymal.cluster import SECTION, cluster_of
from anymal.config import as_text
from anymal.data.manifest import fingerprint
from pipelines.arguments import read_arguments, uris_of
from pipelines.compile import plan_of
from pipelines.tasks import build
from tests.graph import ROOT, document_of


def preflight(*words: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit status and findings."""
    done = CliRunner().invoke(cli, ["preflight", "--json", *words])
    return done.exit_code, json.loads(done.output)["findings"] if done.output.startswith("{") else []


def given(name: str, section: Any) -> list[str]:
    return ["--section", name, as_text(section)]


def problems(findings: list[dict[str, Any]]) -> list[str]:
    return [finding["problem"] for finding in findings if finding["problem"] is not None]


def test_sections_are_a_profile():
    demo = document_of("params.yaml")
    status, findings = preflight(*given("evaluate.image", demo["evaluate"]["image"]), *given("score", demo["score"]), *given(SECTION, demo[SECTION]))
    assert (status, problems(findings)) == (0, [])
    assert findings[0]["subject"] == "--section: 3 sections"


def test_a_section_that_comes_again_is_checked_as_well():
    """The second variant of an ablation."""
    section = document_of("params.yaml")["align"]["image"]
    status, findings = preflight(*given("align.image", section), *given("align.image", section | {"layrs": 2}))
    assert status == 2
    assert problems(findings) == ["align.image.layrs: unknown knob; did you mean 'layers'?"]


def test_other_stores_than_s3_are_not_looked_at():
    status, findings = preflight(*given("score", document_of("params.yaml")["score"]), "--input", "minio://mlpipeline/v2/artifacts/model")
    assert (status, problems(findings)) == (0, [])
    assert "minio://mlpipeline/v2/artifacts/model: not looked at; only paths and s3:// are" in [finding["subject"] for finding in findings]


def test_a_profile_or_sections():
    for words in ([], ["--config", "params.yaml", *given("score", {})]):
        done = CliRunner().invoke(cli, ["preflight", *words])
        assert done.exit_code == 2
        assert "give either --config or --section" in done.output


@pytest.mark.parametrize("name", ["alignment", "evaluation", "instruction", "ablation-layers"])
def test_the_task_as_launched_finds_no_fault_with_the_demo(name, tmp_path):
    """The component's line as Kubeflow's launcher fills it in, run as a process; its assets are on this machine."""
    document = document_of("params.yaml")
    lock = {"lock": str(tmp_path / "lock")}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "words.txt").write_text("hello\n")
    entry = {"kind": "file", "path": str(tmp_path / "mine"), "sha256": fingerprint(tmp_path / "mine"), "licence": {"id": "CC0-1.0"}}
    (tmp_path / "lock").write_text(json.dumps({"words": entry}))
    uris = {uri: f"minio://bucket/{uri}" for uri in uris_of(name)} | (lock if "lock" in uris_of(name) else {})
    arguments = read_arguments(name, document, "params.yaml", uris)
    if "ingest" in arguments:
        arguments["ingest"] = as_text(document["ingest"] | {"assets": ["words"]})
    spec = json_format.MessageToDict(build(plan_of(name), cluster_of(document, "params.yaml"), outcome=False).pipeline_spec)
    definition = json_format.ParseDict(spec["components"]["comp-preflight"], pipeline_spec_pb2.ComponentSpec())
    container = spec["deploymentSpec"]["executors"][definition.executor_label]["container"]
    values = {argument: value for argument, value in arguments.items() if argument in definition.input_definitions.parameters}
    artifacts = {uri: dsl.Artifact(name=uri, uri=uris[uri], metadata={}) for uri in definition.input_definitions.artifacts}
    message = executor_input_utils.construct_executor_input(definition, values | artifacts, task_root=str(tmp_path), block_input_artifact=False)
    local_config.init(local_config.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path))
    words = placeholder_utils.replace_placeholders(
        [*container["command"], *container["args"]], json_format.MessageToDict(message), pipeline_resource_name=name,
        task_resource_name="preflight", pipeline_root=str(tmp_path), unique_pipeline_id="1")
    assert words[:2] == ["anymal", "preflight"]
    environment = os.environ | {"ANYMAL_TRACKING": "off", "ANYMAL_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "anymal", *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.splitlines()[-1].startswith("0 problems in "), done.stdout + done.stderr
    assert done.returncode == 0
    assert {path.name for path in tmp_path.iterdir()} <= {"cache", "lock", "mine"}
