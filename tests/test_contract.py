"""One stage, four writings: the function's signature, its component, its runs in dvc.yaml and its sections in both profiles must agree.

The component's command line is filled in by kfp's own code for the local runner, which does what Kubeflow's launcher does, and
is then run through the command line's parser, and as a process up to the point where the inputs are missing.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
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
from anymal.config import as_text, read_document
from anymal.errors import ConfigError
from anymal.model.modalities import modality_of
from anymal.profile import read_config, section_problems
from anymal.stage import load_stage, stage_names
from components import images
from pipelines.ablations import CONFIGURED_HERE
from pipelines.arguments import read_arguments
from tests.graph import (
    COMPONENTS,
    ON_NODES,
    PROFILES,
    ROOT,
    closure,
    command,
    component,
    component_ports,
    component_stage,
    document_of,
    expand,
    fill,
    needed_code,
    parse,
    pipeline_spec,
    producers,
    profile_of,
    runs,
    tasks,
)

STAGES = 22
"""How many there are; raise it with each new stage, so that none is lost from sight."""
GRAPH = [name for name in stage_names() if name not in CONFIGURED_HERE]
"""Stages that dvc.yaml runs and profiles have sections for; the others belong to ablations (`tests/test_ablations.py`)."""
OF_PIPELINES = {"score_benchmarks"}
"""Components whose stage dvc.yaml runs with fewer inputs."""
LOCK = f"s3://bucket/{'0' * 64}.yaml"
OPEN = {"labels", "architecture", "settings", "answer_forms", "held_out", "questions", "captions", "kinds", "mixing", "in_process", "server",
        "thresholds", "benchmarks", "classes"}
"""Knobs whose value is a mapping with names of its own (data, not knobs), or null where another stands in."""

each_stage = pytest.mark.parametrize("name", stage_names())
each_run = pytest.mark.parametrize("name", runs())
each_component = pytest.mark.parametrize("name", COMPONENTS)
each_stage_of_the_graph = pytest.mark.parametrize("name", GRAPH)
each_component_of_the_graph = pytest.mark.parametrize(
    "name", [name for name in COMPONENTS if component_stage(name).name in GRAPH and name not in {*ON_NODES, *OF_PIPELINES}])
each_profile = pytest.mark.parametrize("profile", PROFILES)


def sections(profile: str) -> dict[str, Any]:
    """`align.audio` -> that section, for all of a profile."""
    found = {}
    for name, section in profile_of(profile).items():
        found |= {f"{name}.{modality}": part for modality, part in section.items()} if load_stage(name).per_modality else {name: section}
    return found


@functools.cache
def arguments_of(profile: str) -> dict[str, Any]:
    """What the pipeline is called with."""
    return read_arguments("training", document_of(profile), profile, {"lock": LOCK})


def test_every_stage_is_found_in_every_place():
    names = stage_names()
    assert len(names) == STAGES
    assert set(names) > CONFIGURED_HERE
    assert {run.stage.name for run in runs().values()} == set(GRAPH)
    assert {component_stage(name).name for name in COMPONENTS} == set(names)
    for profile in PROFILES:
        assert set(profile_of(profile)) == set(GRAPH), profile


@each_profile
def test_every_section_has_its_run(profile):
    """No section lies idle, none is taken twice, and a run's name says what it runs."""
    assert sorted(run.section for run in runs().values()) == sorted(sections(profile))
    for run in runs().values():
        assert run.name == (run.entry if run.key is None else f"{run.entry}@{run.modality}")
        assert run.entry == run.stage.name or run.name == run.argument
        assert (run.modality is not None) == run.stage.per_modality


@each_stage_of_the_graph
@each_profile
def test_profile_section_is_valid(name, profile):
    assert section_problems(load_stage(name), profile_of(profile)[name]) == []


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
    assert all(port.default is inspect.Parameter.empty for port in ports)
    assert stage.inputs
    assert stage.outputs
    assert ("modality" in stage.config.model_fields) == stage.per_modality


@each_component
def test_component_has_the_ports_of_the_signature(name):
    """`PORT` feeds the port, or `PORT_suffix` where it takes several paths and there are more than one."""
    stage, spec = component_stage(name), component(name).component_spec
    assert name == stage.name or name.startswith(f"{stage.name}_")
    config = spec.inputs["config"]
    assert (config.type, config.optional) == ("String", False)
    assert next(iter(spec.inputs)) == "config"
    for port, fed in component_ports(name).items():
        assert fed == [port] or (stage.inputs[port] and len(fed) > 1 and port not in fed), port
    assert list(spec.outputs) == list(stage.outputs)
    entries = [entry for given, entry in (*spec.inputs.items(), *spec.outputs.items()) if given not in {"config", "job"}]
    assert all(entry.type.startswith("system.") for entry in entries)
    assert not any(entry.optional for entry in spec.inputs.values())


@each_component
def test_component_is_short_and_plain(name):
    text = (ROOT / "components" / f"{name}.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 25
    container = component(name).component_spec.implementation.container
    assert container.command == ["anymal", *(["trainjob"] if name in ON_NODES else []), command(component_stage(name).name)]
    assert container.image in {images.DATA, images.TRAIN, images.EVAL}


@pytest.mark.parametrize("name", ON_NODES)
def test_component_on_nodes_is_the_plain_one_with_a_job(name):
    """Only what starts the processes differs; everything that the stage is told is the same, in the same order."""
    stage = component_stage(name)
    many, one = component(name).component_spec, component(stage.name).component_spec
    assert stage.distributed
    assert {given: entry for given, entry in many.inputs.items() if given != "job"} == one.inputs
    assert many.inputs["job"].type == "Dict"
    assert many.outputs == one.outputs
    words, plain = (list(map(str, spec.implementation.container.args)) for spec in (many, one))
    assert words[:4] == ["--job", words[1], "--image", images.TRAIN]
    assert words[4:] == plain


def test_every_distributed_stage_has_a_component_on_nodes():
    assert {component_stage(name).name for name in ON_NODES} == {name for name in stage_names() if load_stage(name).distributed}


@each_run
def test_dvc_run_has_the_ports_of_the_signature(name):
    run = runs()[name]
    stage, options, definition = run.stage, run.options, run.definition
    given = {port for port, value in options.items() if value not in (None, ())}
    assert given - {"stage", "config", "modality"} == {*stage.inputs, *stage.outputs}
    assert options["config"] == "params.yaml"
    assert definition["params"] == [run.section]
    assert set(definition) <= {"cmd", "params", "deps", "outs", "metrics", "plots"}
    read = [path for port in stage.inputs for path in run.paths(port)]
    assert sorted(set(read)) == sorted(dep for dep in definition["deps"] if not dep.startswith("anymal/"))
    assert len(set(definition["deps"])) == len(definition["deps"])
    assert set(run.written) == set(run.outputs.values())
    assert len(run.written) == len(stage.outputs)
    assert not any(settings.get("persist") for settings in run.written.values())
    for path, settings in run.written.items():
        assert (settings.get("cache", True) is False) == (path.startswith("results/") or path == "data/assets"), path
    metrics = {path for entry in definition.get("metrics", []) for path in entry}
    assert {path for path in run.written if path.startswith("results/")} == metrics


@each_run
def test_dvc_run_depends_on_all_code_that_it_runs(name):
    """Every module of `anymal` that the stage imports, at any depth, and those of the encoders that its knobs name."""
    run = runs()[name]
    deps = {dep for dep in run.definition["deps"] if dep.startswith("anymal/")}
    for dep in deps:
        assert (ROOT / dep).exists(), dep
    needed = needed_code(run, profile_of("params.yaml"))
    folders = {dep for dep in deps if (ROOT / dep).is_dir()}
    assert {file for file in needed if file not in deps and not any(file.startswith(f"{folder}/") for folder in folders)} == set(), "forgotten"
    empty = {str(folder / "__init__.py") for file in needed for folder in Path(file).parents}
    idle = {dep for dep in deps - needed - empty if not any(file.startswith(f"{dep}/") for file in needed)}
    assert idle == set(), "named as a dependency, but nothing there is imported"


def test_code_of_a_run_reaches_through_packages_templates_and_encoders(tmp_path):
    """What `needed_code` sees, on a small tree and on the real one."""
    package = tmp_path / "anymal" / "tools"
    package.mkdir(parents=True)
    texts = {"__init__.py": "import anymal.tools.base", "base.py": "", "empty.py": "", "page.html": "<p>", "hint.py": "",
             "use.py": "def f():\n    from anymal.tools import late\n    return 'page.html', 'gone.html'\n",
             "late.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import anymal.tools.hint\nimport anymal.errors\n"}
    for name, text in texts.items():
        (package / name).write_text(text or "X = 1\n")
    assert {Path(file).name for file in closure(["anymal/tools/use.py"], tmp_path)} == {"use.py", "late.py", "__init__.py", "base.py", "page.html"}
    profile = profile_of("params.yaml")
    encoders = "anymal/model/encoders"
    assert {f"{encoders}/imu.py", f"{encoders}/image.py", "anymal/media/motion.py"} <= needed_code(runs()["evaluate_mixed"], profile)
    assert {f"{encoders}/video.py", f"{encoders}/image.py"} <= needed_code(runs()["encode@video"], profile)
    assert f"{encoders}/audio.py" not in needed_code(runs()["evaluate@imu"], profile)
    assert "anymal/evaluation/report.html" in needed_code(runs()["score"], profile)


def test_entries_are_expanded_as_dvc_does():
    from dvc.repo import Repo

    known = {stage.addressing: stage for stage in Repo(str(ROOT)).index.stages if stage.addressing in runs()}
    assert set(known) == set(runs())
    for name, run in runs().items():
        assert known[name].cmd == run.definition["cmd"], name
        assert {dep.def_path for dep in known[name].deps} == {*run.definition["deps"], "params.yaml"}, name
        assert {out.def_path for out in known[name].outs} == set(run.written), name


def test_an_unknown_interpolation_is_an_error():
    with pytest.raises(KeyError, match="medium"):
        expand({"x": {"foreach": ["a"], "do": {"cmd": "${medium}"}}})
    assert fill({"${key}": ["${item.a}-${key}"]}, {"key": "k", "item": {"a": 1}}) == {"k": ["1-k"]}


def test_pipeline_covers_all_runs_and_takes_the_profiles_sections():
    by_place = {run.place: run for run in runs().values()}
    assert set(tasks()) == set(by_place)
    parameters = pipeline_spec()["root"]["inputDefinitions"]["parameters"]
    sections_of_runs = {run.argument: "STRING" for run in by_place.values()}
    assert {name: entry["parameterType"] for name, entry in parameters.items()} == {"lock": "STRING"} | sections_of_runs
    for place, task in tasks().items():
        assert task.definition["inputs"]["parameters"] == {"config": {"componentInputParameter": place[1]}}
        assert task.container["command"] == ["anymal", command(by_place[place].stage.name)]
    for profile in PROFILES:
        assert set(arguments_of(profile)) == set(parameters), profile


def test_pipeline_wires_the_ports_as_dvc_does():
    """Each input comes from the same run and port as in dvc.yaml; where a port takes several, in the same order."""
    makers = {task.name: place for place, task in tasks().items()}
    written = producers()
    places = {name: run.place for name, run in runs().items()}
    compared = 0
    for run in runs().values():
        task = tasks()[run.place]
        given = task.definition["inputs"]["artifacts"]
        fed = component_ports(task.component)
        assert {name for names in fed.values() for name in names} == set(given)
        for port, names in fed.items():
            paths = run.paths(port)
            assert len(paths) == len(names), f"{run.name}.{port}"
            for path, name in zip(paths, names, strict=True):
                if path == "assets.lock.yaml":
                    continue
                origin = given[name]["taskOutputArtifact"]
                maker, made = written[path]
                assert (makers[origin["producerTask"]], origin["outputArtifactKey"]) == (places[maker], made), f"{run.name}.{name}"
                compared += 1
    assert compared == sum(len(run.paths(port)) for run in runs().values() for port in run.stage.inputs) - 1


def test_what_belongs_together_is_given_in_one_order():
    """evaluate takes several folders of each kind; the first of each is of the first modality, and so on."""
    orders = [[Path(path).stem for path in runs()["evaluate_mixed"].paths(port)] for port in ("features", "shards")]
    assert orders[0] == orders[1]
    assert len(set(orders[0])) == len(orders[0]) > 1


def launched(name: str, folder: Path, config: str) -> list[str]:
    """The container's command line of a run after kfp has put the values in: config as JSON, paths below `folder`, the executor input."""
    from google.protobuf import json_format
    from kfp import dsl
    from kfp.local import config as local_config
    from kfp.local import executor_input_utils, placeholder_utils
    from kfp.pipeline_spec import pipeline_spec_pb2

    task = tasks()[runs()[name].place]
    definition = json_format.ParseDict(task.specification, pipeline_spec_pb2.ComponentSpec())
    fed = [given for names in component_ports(task.component).values() for given in names]
    inputs = {given: dsl.Artifact(name=given, uri=str(folder / "inputs" / given), metadata={}) for given in fed}
    message = executor_input_utils.construct_executor_input(
        definition, {"config": config, **inputs}, task_root=str(folder / name), block_input_artifact=False
    )
    local_config.init(local_config.SubprocessRunner(use_venv=False), pipeline_root=str(folder))
    words = placeholder_utils.replace_placeholders(
        [*task.container["command"], *task.container["args"]], json_format.MessageToDict(message), pipeline_resource_name="training",
        task_resource_name=name, pipeline_root=str(folder), unique_pipeline_id="1",
    )
    assert not any("{{$" in word for word in words)
    return words


@each_run
@each_profile
def test_component_command_line_as_launched(name, profile, tmp_path):
    """The section goes through Kubeflow as text and argv, and is the same config at the end, with its keys in their order."""
    run = runs()[name]
    section = arguments_of(profile)[run.argument]
    program, *words = launched(name, tmp_path, section)
    assert program == "anymal"
    parsed = parse(words)
    carried, plain = read_config(run.stage, parsed["config"]), read_config(run.stage, str(ROOT / profile), run.modality)
    assert carried.model_dump_json() == plain.model_dump_json()
    for port, names in component_ports(run.entry).items():
        paths = tuple(tmp_path / "inputs" / given for given in names)
        assert parsed[port] == (paths if run.stage.inputs[port] else paths[0])
    for port in run.stage.outputs:
        assert parsed[port] == tmp_path / name / port
    declared = json.loads(parsed["executor_input"])["outputs"]
    assert set(declared["artifacts"]) == set(run.stage.outputs)
    assert Path(declared["outputFile"]).is_relative_to(tmp_path)


@each_component_of_the_graph
def test_component_command_line_runs(name, tmp_path):
    """As a process: the command exists and takes the line; it stops at the first thing that is truly missing, its inputs."""
    run = next(run for run in runs().values() if run.entry == name)
    _, *words = launched(run.name, tmp_path, arguments_of("params.yaml")[run.argument])
    done = subprocess.run([sys.executable, "-m", "anymal", *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    wanted = ", ".join(f"--{command(port)} {tmp_path / 'inputs' / given}" for port, names in component_ports(name).items() for given in names)
    assert done.returncode == 2
    assert done.stderr == f"anymal: error: {run.stage.name}: input not found: {wanted}; run the stage that makes it, or correct the path\n"
    assert list(tmp_path.iterdir()) == []


def test_ingest_as_launched_leaves_what_the_next_step_needs(tmp_path):
    """The cheapest stage for real: a lock that names a local folder, from the launcher's line to the launcher's output file."""
    from anymal.data.manifest import fingerprint

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "words.txt").write_text("hello\n")
    entry = {"kind": "file", "path": str(tmp_path / "mine"), "sha256": fingerprint(tmp_path / "mine"), "licence": {"id": "CC0-1.0"}}
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / "lock").write_text(json.dumps({"words": entry}))
    _, *words = launched("ingest", tmp_path, as_text({"seed": 0, "assets": ["words"], "sources": {}}))
    done = subprocess.run([sys.executable, "-m", "anymal", *words], cwd=tmp_path, capture_output=True, text=True, check=False, env=_quiet(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ingest" / "assets" / "words" / "words.txt").read_text() == "hello\n"
    reported = json.loads((tmp_path / "ingest" / "executor_output.json").read_text())["artifacts"]["assets"]["artifacts"][0]
    assert reported["uri"] == str(tmp_path / "ingest" / "assets")


def _quiet(folder: Path) -> dict[str, str]:
    return os.environ | {"ANYMAL_TRACKING": "off", "HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}


@each_profile
def test_what_a_stage_reads_is_brought_in_by_ingest(profile):
    """Every asset that a later section names, and no other; encoders that are trained here are named where they are trained."""
    document = profile_of(profile)
    wanted = {source["asset"] for name in document if name.startswith("curate_") for source in document[name]["sources"].values()} - {None}
    wanted |= {source["asset"] for source in document["import_instructions"]["sources"].values()}
    wanted |= {section["llm"] for section in document["align"].values()}
    guard = document["train_safety"]
    wanted |= {guard["words"], guard["text"]["encoder"], guard["image"]["backbone"], guard["pair"]["backbone"], guard["pair"]["encoder"]}
    for section in document["pretrain_encoder"].values():
        wanted.add(section["text_encoder"] if section["pretrained"] is None else section["pretrained"])
    for run in runs().values():
        if run.stage.name != "encode":
            continue
        assert run.modality is not None
        section = document["encode"][run.modality]
        if run.paths("encoders") == ["data/assets"]:
            wanted.add(section["encoder"])
        else:
            assert run.paths("encoders") == [runs()[f"pretrain_encoder@{run.modality}"].outputs["encoders"]]
            trained = document["pretrain_encoder"][run.modality]
            assert section["encoder"] == (trained["pretrained"] or trained["encoder"]), run.name
            assert trained["pretrained"] is not None or section["kind"] == trained["kind"], run.name
    named = set(document["ingest"]["assets"])
    assert wanted <= named
    assert named - wanted <= {section["text_encoder"] for section in document["pretrain_encoder"].values()}


@each_profile
def test_sections_agree_about_modality_and_model(profile):
    """All modalities align against one LLM, and what is registered answers as it was measured."""
    document = profile_of(profile)
    assert len({section["llm"] for section in document["align"].values()}) == 1
    inference = document["register"]["inference"]
    for modality, section in document["evaluate"].items():
        for knob in ("dtype", "quantization", "attention"):
            assert section[knob] == inference[knob], f"{modality}.{knob}"
    for modality, section in document["encode"].items():
        assert modality_of(section["kind"]) == modality
    parts = [part["modality"] for part in document["evaluate"]["mixed"]["mixed"]["parts"]]
    assert parts == [Path(path).name for path in runs()["evaluate_mixed"].paths("features")]
    for modality in document["align"]:
        assert modality in document["encode"] and modality in document["evaluate"]


def test_demo_assets_are_in_the_lock():
    assert set(profile_of("params.yaml")["ingest"]["assets"]) <= set(read_document(ROOT / "assets.lock.yaml"))


def test_arguments_of_a_run_are_checked_all_at_once():
    document = read_document(ROOT / "params.yaml")
    document["enkode"] = document.pop("encode")
    for modality in ("image", "imu"):
        document["align"][modality]["learnin_rate"] = document["align"][modality].pop("learning_rate")
    document["align"]["video"]["modality"] = "audio"
    document["evaluate"]["sound"] = document["evaluate"].pop("audio")
    document["pretrain_encoder"] = {}
    document["kubeflow"] = document["kubeflow"] | {"retry": 1}
    with pytest.raises(ConfigError) as caught:
        read_arguments("training", document, "mine.yaml", {"lock": LOCK, "features": "s3://bucket/features"})
    assert sorted(str(caught.value).split("\n")) == sorted([
        *(f"align.{modality}.learnin_rate: unknown knob; did you mean 'learning_rate'?" for modality in ("image", "imu")),
        *(f"align.{modality}.learning_rate: missing; add it to the profile's section 'align.{modality}'" for modality in ("image", "imu")),
        "align.video.modality = audio: the section of a modality is called after it; say video, or call it audio_…",
        "evaluate.sound.modality = audio: the section of a modality is called after it; say sound, or call it audio_…",
        "features: is no input of the pipeline training; remove it",
        "kubeflow.retry: unknown knob; did you mean 'retries'?",
        "mine.yaml: has no section 'encode'; it has " + ", ".join(document),
        "mine.yaml: has no section 'evaluate.audio', which the pipeline training runs; 'evaluate' has image, video, imu, mixed, image_aligned, sound",
        "mine.yaml: section 'enkode' belongs to no stage; did you mean 'encode'?",
        "pretrain_encoder: must hold a section per modality",
    ])


def test_addresses_of_a_run_are_checked():
    """What the pipeline takes must be given; Kubeflow's cache goes by the lock's address, so that must change with its content."""
    document = document_of("params.yaml")
    with pytest.raises(ConfigError, match=r"^lock: missing; name the URI of this input of the pipeline alignment$"):
        read_arguments("alignment", document, "params.yaml", {})
    with pytest.raises(ConfigError, match=r"lock = s3://bucket/lock\.yaml: .* such as s3://bucket/SHA256\.yaml"):
        read_arguments("alignment", document, "params.yaml", {"lock": "s3://bucket/lock.yaml"})
    assert read_arguments("alignment", document, "params.yaml", {"lock": "/here/lock.yaml"})["lock"] == "/here/lock.yaml"
    with pytest.raises(ConfigError, match=r"evaluate: no such pipeline; there are training, .*, benchmarks, safety, ablation-"):
        read_arguments("evaluate", document, "params.yaml", {})


def test_two_profiles_name_the_same_knobs():
    """Per modality; the names of sources are data, and so is what an open mapping holds."""

    def keys(tree: Any) -> Any:
        if not isinstance(tree, dict):
            return None
        return {name: None if name in OPEN else keys(child) for name, child in tree.items()}

    def every(section: dict[str, Any]) -> dict[str, Any]:
        if not section.get("sources"):
            return section
        by_reader: dict[str, Any] = {}
        for source in section["sources"].values():
            assert by_reader.setdefault(source["reader"], keys(source)) == keys(source)
        first, *others = by_reader.values()
        return section | {"sources": {"NAME": first} if all(other == first for other in others) else None}

    demo, production = ({name: keys(every(section)) for name, section in sections(profile).items()} for profile in PROFILES)
    assert set(demo) == set(production)
    for name, section in demo.items():
        if not section.get("sources", True) or not production[name].get("sources", True):  # with no source there is nothing to compare
            section["sources"] = production[name]["sources"]
        assert section == production[name], name


@each_stage
def test_stage_type_is_what_the_parser_uses(name):
    """All ports are required; those that take several paths may be repeated."""
    stage = load_stage(name)
    subcommand = cli.get_command(click.Context(cli), command(name))
    assert subcommand is not None
    options = {option.name: (option.required, getattr(option, "multiple", False)) for option in subcommand.params}
    expected = {"config": (True, False), "executor_input": (False, False)} | ({"modality": (False, False)} if stage.per_modality else {})
    assert options == expected | {port: (True, several) for port, several in stage.inputs.items()} | dict.fromkeys(stage.outputs, (True, False))
