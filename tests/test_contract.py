"""One stage, four writings: the function's signature, its component, its entry in dvc.yaml and its section in both profiles must agree.

The component's command line is filled in by kfp's own code for the local runner, which does what Kubeflow's launcher does, and
is then run through the command line's parser, and as a process up to the point where the inputs are missing.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import os
import shlex
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from pydantic import BaseModel

from anymal.__main__ import cli
from anymal.errors import ConfigError
from anymal.stage import Stage, load_stage, read_config, read_document, stage_names
from pipelines.arguments import read_arguments

ROOT = Path(__file__).parent.parent
STAGES = 6
"""How many there are; raise it with each new stage, so that none is lost from sight."""
PROFILES = ("params.yaml", "params.production.yaml")
MACHINERY = {"anymal/__init__.py", "anymal/__main__.py", "anymal/errors.py", "anymal/progress.py", "anymal/stage.py", "anymal/tracking.py"}
"""What runs a stage or shows its progress; a change there makes no result obsolete."""

each_stage = pytest.mark.parametrize("name", stage_names())


def command(name: str) -> str:
    return name.replace("_", "-")


@functools.cache
def dvc_stages() -> dict[str, Any]:
    stages: dict[str, Any] = read_document(ROOT / "dvc.yaml")["stages"]
    return stages


@functools.cache
def pipeline_spec() -> dict[str, Any]:
    from google.protobuf import json_format

    spec: dict[str, Any] = json_format.MessageToDict(importlib.import_module("pipelines.training").training.pipeline_spec)
    return spec


def component(name: str) -> Any:
    return getattr(importlib.import_module(f"components.{name}"), name)


def paths(entries: list[Any]) -> dict[str, dict[str, Any]]:
    """dvc.yaml's lists of paths: each is a path or a path with settings."""
    return {path: settings for entry in entries for path, settings in (entry.items() if isinstance(entry, dict) else [(entry, {})])}


def dvc_ports(name: str) -> dict[str, str]:
    """Port -> path of one dvc.yaml entry, its command line parsed as `anymal` does."""
    program, *words = shlex.split(dvc_stages()[name]["cmd"])
    assert (program, words[0]) == ("anymal", command(name))
    parsed = parse(words)
    assert str(parsed.pop("config")) == "params.yaml"
    return {port: str(path) for port, path in parsed.items() if path is not None}


def parse(words: list[str]) -> dict[str, Any]:
    """The options of a stage's command line, by parameter name."""
    context = cli.make_context("anymal", list(words), resilient_parsing=False)
    subcommand = cli.get_command(context, words[0])
    assert subcommand is not None, words[0]
    return dict(subcommand.make_context(words[0], list(words[1:]), parent=context).params)


def test_every_stage_is_found_in_every_place():
    names = stage_names()
    assert len(names) == STAGES
    assert set(dvc_stages()) == set(names)
    assert {path.stem for path in (ROOT / "components").glob("*.py")} - {"__init__", "images"} == set(names)
    for profile in PROFILES:
        assert set(read_document(ROOT / profile)) == set(names), profile


@each_stage
@pytest.mark.parametrize("profile", PROFILES)
def test_profile_section_is_valid(name, profile):
    read_config(load_stage(name), str(ROOT / profile))


@each_stage
def test_no_knob_has_a_default_in_the_code(name):
    """Neither DVC nor Kubeflow's cache sees a default that is hidden in a schema."""
    for model in models(load_stage(name).config):
        hidden = [field for field, info in model.model_fields.items() if not info.is_required()]
        assert hidden == [], f"{model.__name__}: {hidden}"
        assert model.model_config.get("extra") == "forbid", model.__name__


def models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A config class and all that are nested in it."""
    yield model
    pending: list[Any] = [field.annotation for field in model.model_fields.values()]
    while pending:
        kind = pending.pop()
        pending.extend(typing.get_args(kind))
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from models(kind)


@each_stage
def test_signature_is_config_then_keyword_ports(name):
    stage = load_stage(name)
    first, *ports = inspect.signature(stage.function).parameters.values()
    assert first.name == "config"
    assert all(port.kind is inspect.Parameter.KEYWORD_ONLY for port in ports)
    assert stage.inputs
    assert stage.outputs


@each_stage
def test_component_has_the_ports_of_the_signature(name):
    stage, spec = load_stage(name), component(name).component_spec
    inputs = dict(spec.inputs)
    config = inputs.pop("config")
    assert (config.type, config.optional) == ("Dict", False)
    assert next(iter(spec.inputs)) == "config"
    assert {port: not entry.optional for port, entry in inputs.items()} == stage.inputs
    assert list(spec.outputs) == list(stage.outputs)
    assert all(entry.type.startswith("system.") for entry in [*inputs.values(), *spec.outputs.values()])


@each_stage
def test_component_is_short_and_plain(name):
    text = (ROOT / "components" / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 25
    container = component(name).component_spec.implementation.container
    assert container.command == ["anymal", command(name)]
    assert container.image.partition(":")[0].endswith(("anymal-data", "anymal-train", "anymal-eval"))


@each_stage
def test_dvc_entry_has_the_ports_of_the_signature(name):
    stage, entry, ports = load_stage(name), dvc_stages()[name], dvc_ports(name)
    assert set(ports) == {*stage.inputs, *stage.outputs}
    assert entry["params"] == [name]
    assert set(entry) <= {"cmd", "params", "deps", "outs", "metrics", "plots"}
    assert {ports[port] for port in stage.inputs} <= set(entry["deps"])
    written = {**paths(entry.get("outs", [])), **paths(entry.get("metrics", [])), **paths(entry.get("plots", []))}
    assert set(written) == {ports[port] for port in stage.outputs}
    assert not any(settings.get("persist") for settings in written.values())
    for path, settings in written.items():
        assert (settings.get("cache", True) is False) == (path.startswith("results/") or path == "data/assets"), path
    assert {path for path in written if path.startswith("results/")} == set(paths(entry.get("metrics", [])))


@each_stage
def test_dvc_entry_depends_on_all_code_that_the_stage_runs(name):
    """Every module of `anymal` that the stage imports, at any depth, is among its deps or below a folder that is."""
    deps = [dep for dep in dvc_stages()[name]["deps"] if dep.startswith("anymal/")]
    for dep in deps:
        assert (ROOT / dep).exists(), dep
    needed = closure(f"anymal/stages/{name}.py") - MACHINERY
    forgotten = {module for module in needed if not any(module == dep or module.startswith(f"{dep}/") for dep in deps)}
    assert forgotten == set()
    idle = {dep for dep in deps if not any(module == dep or module.startswith(f"{dep}/") for module in needed)}
    assert idle == set(), "named as a dependency, but nothing there is imported"


def closure(start: str) -> set[str]:
    """Files of `anymal` that a file imports, directly or not; imports inside functions count. The machinery is not looked into."""
    seen: set[str] = set()
    pending = [start]
    while pending:
        file = pending.pop()
        if file in seen:
            continue
        seen.add(file)
        if file in MACHINERY:
            continue
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for imported in names:
                path = Path(*imported.split("."))
                pending.extend(str(module) for module in [path.with_suffix(".py")] if imported.startswith("anymal.") and (ROOT / module).is_file())
    return seen


def tasks() -> dict[str, Any]:
    """Stage -> its task in the training pipeline."""
    spec = pipeline_spec()
    found = {}
    for task in spec["root"]["dag"]["tasks"].values():
        label = spec["components"][task["componentRef"]["name"]]["executorLabel"]
        container = spec["deploymentSpec"]["executors"][label].get("container")
        if container is not None:
            found[container["command"][1].replace("-", "_")] = task
    return found


def test_pipeline_covers_all_stages_and_takes_the_profiles_sections():
    assert set(tasks()) == set(stage_names())
    parameters = pipeline_spec()["root"]["inputDefinitions"]["parameters"]
    assert {name: entry["parameterType"] for name, entry in parameters.items()} == {"lock": "STRING"} | dict.fromkeys(stage_names(), "STRUCT")
    for name, task in tasks().items():
        assert task["inputs"]["parameters"] == {"config": {"componentInputParameter": name}}


def test_pipeline_wires_the_ports_as_dvc_does():
    producers = {path: (name, port) for name in stage_names() for port, path in dvc_ports(name).items() if port in load_stage(name).outputs}
    compared = 0
    for name, task in tasks().items():
        for port, source in task["inputs"]["artifacts"].items():
            path = dvc_ports(name)[port]
            if path == "assets.lock.yaml":
                continue
            origin = source["taskOutputArtifact"]
            assert (origin["producerTask"], origin["outputArtifactKey"]) == producers[path], f"{name}.{port}"
            compared += 1
    assert compared == sum(len(load_stage(name).inputs) for name in stage_names()) - 1


def launched(name: str, folder: Path, config: dict[str, Any]) -> list[str]:
    """The container's command line after kfp has put the values in: config as JSON, paths below `folder`, the executor input."""
    from google.protobuf import json_format
    from kfp import dsl
    from kfp.local import config as local_config
    from kfp.local import executor_input_utils, placeholder_utils
    from kfp.pipeline_spec import pipeline_spec_pb2

    spec = pipeline_spec()
    task = tasks()[name]
    definition = json_format.ParseDict(spec["components"][task["componentRef"]["name"]], pipeline_spec_pb2.ComponentSpec())
    container = spec["deploymentSpec"]["executors"][definition.executor_label]["container"]
    inputs = {port: dsl.Artifact(name=port, uri=str(folder / "inputs" / port), metadata={}) for port in load_stage(name).inputs}
    message = executor_input_utils.construct_executor_input(
        definition, {"config": config, **inputs}, task_root=str(folder / name), block_input_artifact=False
    )
    local_config.init(local_config.SubprocessRunner(use_venv=False), pipeline_root=str(folder))
    words = placeholder_utils.replace_placeholders(
        [*container["command"], *container["args"]], json_format.MessageToDict(message), pipeline_resource_name="training", task_resource_name=name,
        pipeline_root=str(folder), unique_pipeline_id="1",
    )
    assert not any("{{$" in word for word in words)
    return words


@each_stage
@pytest.mark.parametrize("profile", PROFILES)
def test_component_command_line_as_launched(name, profile, tmp_path):
    """The section goes through Kubeflow's number type (40 becomes 40.0), JSON and argv, and is the same config at the end."""
    stage = load_stage(name)
    section = read_arguments(ROOT / profile, "s3://bucket/lock")[name]
    program, *words = launched(name, tmp_path, section)
    assert program == "anymal"
    parsed = parse(words)
    assert read_config(stage, parsed["config"]) == read_config(stage, str(ROOT / profile))
    for port in stage.inputs:
        assert parsed[port] == tmp_path / "inputs" / port
    for port in stage.outputs:
        assert parsed[port] == tmp_path / name / port
    declared = json.loads(parsed["executor_input"])["outputs"]
    assert set(declared["artifacts"]) == set(stage.outputs)
    assert Path(declared["outputFile"]).is_relative_to(tmp_path)


@each_stage
def test_component_command_line_runs(name, tmp_path):
    """As a process: the command exists and takes the line; it stops at the first thing that is truly missing, its inputs."""
    _, *words = launched(name, tmp_path, read_arguments(ROOT / "params.yaml", "s3://bucket/lock")[name])
    done = subprocess.run([sys.executable, "-m", "anymal", *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    wanted = ", ".join(f"--{command(port)} {tmp_path / 'inputs' / port}" for port in load_stage(name).inputs)
    assert done.returncode == 2
    assert done.stderr == f"anymal: error: {name}: input not found: {wanted}; run the stage that makes it, or correct the path\n"
    assert list(tmp_path.iterdir()) == []


def test_ingest_as_launched_leaves_what_the_next_step_needs(tmp_path):
    """The cheapest stage for real: a lock that names a local folder, from the launcher's line to the launcher's output file."""
    from anymal.stage import fingerprint

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "words.txt").write_text("hello\n")
    entry = {"kind": "file", "path": str(tmp_path / "mine"), "sha256": fingerprint(tmp_path / "mine"), "licence": {"id": "CC0-1.0"}}
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / "lock").write_text(json.dumps({"words": entry}))
    _, *words = launched("ingest", tmp_path, {"seed": 0, "assets": ["words"], "sources": {}})
    done = subprocess.run([sys.executable, "-m", "anymal", *words], cwd=tmp_path, capture_output=True, text=True, check=False, env=_quiet(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ingest" / "assets" / "words" / "words.txt").read_text() == "hello\n"
    reported = json.loads((tmp_path / "ingest" / "executor_output.json").read_text())["artifacts"]["assets"]["artifacts"][0]
    assert reported["uri"] == str(tmp_path / "ingest" / "assets")


def _quiet(folder: Path) -> dict[str, str]:
    return os.environ | {"ANYMAL_TRACKING": "off", "HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize("profile", PROFILES)
def test_stages_agree_about_assets_and_model(profile):
    """What a later stage reads is brought in by ingest, and what is registered answers as it was measured."""
    document = read_document(ROOT / profile)
    brought = set(document["ingest"]["assets"])
    wanted = {document["encode"]["encoder"], document["align"]["llm"], *(source["asset"] for source in document["curate"]["sources"].values())}
    assert wanted == brought
    assert {document[name]["modality"] for name in ("encode", "align", "evaluate")} == {"image"}
    measured, registered = document["evaluate"], document["register"]["inference"]
    for knob in ("dtype", "quantization", "attention"):
        assert measured[knob] == registered[knob], knob


def test_demo_assets_are_in_the_lock():
    assert set(read_document(ROOT / "params.yaml")["ingest"]["assets"]) <= set(read_document(ROOT / "assets.lock.yaml"))


def test_arguments_of_a_run_are_checked_all_at_once(tmp_path):
    text = (ROOT / "params.yaml").read_text().replace("  learning_rate: ", "  learnin_rate: ").replace("encode:\n", "enkode:\n")
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_arguments(tmp_path / "params.yaml", "s3://bucket/lock")
    problems = str(caught.value).split("\n")
    assert "align.learnin_rate: unknown knob; did you mean 'learning_rate'?" in problems
    assert f"{tmp_path / 'params.yaml'}: has no section 'encode'" in problems
    assert f"{tmp_path / 'params.yaml'}: section 'enkode' belongs to no stage" in problems
    assert len(problems) == 4


def test_two_profiles_name_the_same_knobs():
    def keys(tree: Any) -> Any:
        return {name: keys(child) for name, child in tree.items()} if isinstance(tree, dict) else None

    demo, production = (read_document(ROOT / profile) for profile in PROFILES)
    # The names of sources are data, not knobs; what is said of each source is the same everywhere.
    for document in (demo, production):
        document["ingest"]["sources"] = None
        document["curate"]["sources"] = next(keys(source) for source in document["curate"]["sources"].values())
    assert keys(demo) == keys(production)


def test_stage_type_is_what_the_parser_uses():
    """Required inputs are required options, optional ones are not."""
    for name in stage_names():
        stage: Stage = load_stage(name)
        subcommand = cli.get_command(click.Context(cli), command(name))
        assert subcommand is not None
        required = {option.name: option.required for option in subcommand.params}
        assert required == {"config": True, "executor_input": False} | stage.inputs | dict.fromkeys(stage.outputs, True)
