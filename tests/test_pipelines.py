"""The compiled pipelines: the same bytes each time, valid against the protobuf schemas, every reference resolved, every setting in its place."""

from __future__ import annotations

import copy
import functools
import json
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

from anymal.cluster import cluster_of
from anymal.stage import stage_names
from components import images
from pipelines.ablations import PROFILES, read_ablations
from pipelines.arguments import read_arguments, uris_of
from pipelines.compile import compile_one, plans
from pipelines.tasks import argument_of, section_of
from tests.graph import ROOT, document_of

NAMES = tuple(plans())
BOTH = tuple(path.name for path in PROFILES.values())
Spec = dict[str, Any]

each_pipeline = pytest.mark.parametrize("name", NAMES)
each_profile = pytest.mark.parametrize("profile", BOTH)


def compile_into(folder: Path, profile: str, hash_seed: str) -> dict[str, bytes]:
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    words = [sys.executable, "-m", "pipelines.compile", str(folder), "--profile", profile]
    subprocess.run(words, cwd=ROOT, env=environment, check=True, capture_output=True)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Profile -> file -> what the command wrote."""
    return {profile: compile_into(tmp_path_factory.mktemp("dist"), profile, "1") for profile in BOTH}


@functools.cache
def parsed(content: bytes) -> tuple[Spec, Spec]:
    loaded = list(YAML(typ="safe", pure=True).load_all(content))
    assert len(loaded) == 2
    return loaded[0], loaded[1]


@pytest.fixture
def documents(compiled: dict[str, dict[str, bytes]], name: str, profile: str) -> tuple[Spec, Spec]:
    """Pipeline spec and platform spec."""
    return parsed(compiled[profile][f"{name}.yaml"])


def test_all_pipelines_are_compiled(compiled):
    """The six of the graph, one for each ablation; nothing is left behind by the way."""
    ablations = {f"ablation-{name}" for name in read_ablations(ROOT / "ablations.yaml")}
    assert len(ablations) == 6
    assert set(NAMES) == {"training", "alignment", "instruction", "evaluation", "benchmarks", "safety"} | ablations
    assert set(compiled["params.yaml"]) == {f"{name}.yaml" for name in NAMES}


def test_compiling_again_gives_the_same_bytes(compiled, tmp_path):
    assert compile_into(tmp_path, "params.production.yaml", "2") == compiled["params.production.yaml"]


def test_a_wrong_section_of_the_profile_stops_it(tmp_path):
    """One sentence per problem, and no file."""
    text = (ROOT / "params.yaml").read_text().replace("  service_account: anymal-pipeline", "  account: anymal-pipeline")
    (tmp_path / "mine.yaml").write_text(text)
    words = [sys.executable, "-m", "pipelines.compile", str(tmp_path / "dist"), "--profile", str(tmp_path / "mine.yaml")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("compile: error: kubeflow.")
    assert "kubeflow.account: unknown knob" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "dist").glob("*"))


# --- validity
def check(pipeline: Spec, platform: Spec) -> None:
    """All that must hold of a compiled pipeline; protobuf's parser refuses unknown fields and wrong types."""
    message = json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())
    assert message.schema_version == "2.1.0"
    json_format.ParseDict(pipeline["deploymentSpec"], pipeline_spec_pb2.PipelineDeploymentConfig())
    json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    settings = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for entry in settings.values():
        json_format.ParseDict(entry, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
    containers = {name for name, executor in pipeline["deploymentSpec"]["executors"].items() if "container" in executor}
    assert set(settings) == containers
    check_references(pipeline)


def dags(spec: Spec) -> Iterator[tuple[str, Spec]]:
    """Name of the component ("" for the root) and the component, of each that holds tasks."""
    yield "", spec["root"]
    yield from ((name, entry) for name, entry in spec["components"].items() if "dag" in entry)


def check_references(spec: Spec) -> None:
    executors, components = spec["deploymentSpec"]["executors"], spec["components"]
    used: set[str] = set()
    for _, parent in dags(spec):
        siblings = parent["dag"]["tasks"]
        for name, task in siblings.items():
            reference = task["componentRef"]["name"]
            used.add(reference)
            definitions = components[reference].get("inputDefinitions", {})
            given = task.get("inputs", {})
            assert set(task.get("dependentTasks", [])) <= set(siblings), name
            for kind in ("artifacts", "parameters"):
                declared = definitions.get(kind, {})
                assert set(given.get(kind, {})) <= set(declared), name
                assert {key for key, entry in declared.items() if not entry.get("isOptional")} <= set(given.get(kind, {})), name
            for port, source in given.get("artifacts", {}).items():
                wanted = definitions["artifacts"][port]["artifactType"]["schemaTitle"]
                assert artifact_type(spec, parent, source) == wanted, f"{name}.{port}"
            for port, source in given.get("parameters", {}).items():
                check_parameter(spec, parent, source, f"{name}.{port}")
    assert used == set(components)
    labels = {entry["executorLabel"] for entry in components.values() if "executorLabel" in entry}
    assert labels == set(executors)


def artifact_type(spec: Spec, parent: Spec, source: Spec) -> str:
    """Of what feeds an artifact input: a task beside it, or an input of the group it lies in."""
    if "componentInputArtifact" in source:
        found = parent["inputDefinitions"]["artifacts"][source["componentInputArtifact"]]
    else:
        origin = source["taskOutputArtifact"]
        producer = spec["components"][parent["dag"]["tasks"][origin["producerTask"]]["componentRef"]["name"]]
        found = producer["outputDefinitions"]["artifacts"][origin["outputArtifactKey"]]
    title: str = found["artifactType"]["schemaTitle"]
    return title


def check_parameter(spec: Spec, parent: Spec, source: Spec, where: str) -> None:
    tasks = parent["dag"]["tasks"]
    if "componentInputParameter" in source:
        assert source["componentInputParameter"] in parent["inputDefinitions"]["parameters"], where
    elif "taskOutputParameter" in source:
        origin = source["taskOutputParameter"]
        producer = spec["components"][tasks[origin["producerTask"]]["componentRef"]["name"]]
        assert origin["outputParameterKey"] in producer["outputDefinitions"]["parameters"], where
    elif "taskFinalStatus" in source:
        assert source["taskFinalStatus"]["producerTask"] in tasks, where
    else:
        assert "constant" in source["runtimeValue"], where


@each_pipeline
@each_profile
def test_specs_are_valid_and_every_reference_resolves(documents):
    check(*documents)


def places(tree: Any, *path: Any) -> Iterator[tuple[Any, ...]]:
    """Every mapping of a tree."""
    if isinstance(tree, dict):
        yield path
        for key, child in tree.items():
            yield from places(child, *path, key)
    elif isinstance(tree, list):
        for index, child in enumerate(tree):
            yield from places(child, *path, index)


NAMED = {"tasks", "components", "executors", "parameters", "artifacts"}
"""Mappings whose keys are names of ours: of what lies in them, one of a kind will do."""


def test_a_key_too_many_is_refused_wherever_it_is(compiled):
    """In each kind of mapping of both documents in turn, but for the constants that the profile gives, which are data."""
    both = parsed(compiled["params.production.yaml"]["instruction.yaml"])
    kinds: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for number, document in enumerate(both):
        for place in places(document, number):
            if "constant" not in place:
                kinds.setdefault(tuple("*" if before in NAMED else key for before, key in zip((None, *place), place, strict=False)), place)
    assert len(kinds) > 50
    for place in kinds.values():
        changed = copy.deepcopy(both)
        functools.reduce(lambda tree, key: tree[key], place, changed)["surprise"] = 1
        with pytest.raises((json_format.ParseError, TypeError)):
            check(*changed)


SCORE = "components/comp-exit-handler-1/dag/tasks/score"


@pytest.mark.parametrize(("path", "value"), [
    ("root/dag/tasks/exit-handler-1/componentRef/name", "comp-gone"),
    ("components/comp-score/executorLabel", "exec-gone"),
    (f"{SCORE}/inputs/artifacts/baselines/taskOutputArtifact/producerTask", "gone"),
    (f"{SCORE}/inputs/artifacts/baselines/taskOutputArtifact/outputArtifactKey", "gone"),
    (f"{SCORE}/inputs/parameters/config/componentInputParameter", "gone"),
    (f"{SCORE}/dependentTasks", ["gone"]),
])
def test_a_reference_to_nothing_is_found(compiled, path, value):
    pipeline, platform = copy.deepcopy(parsed(compiled["params.yaml"]["evaluation.yaml"]))
    *parents, last = path.split("/")
    owner = functools.reduce(lambda tree, key: tree[key], parents, pipeline)
    assert last in owner
    owner[last] = value
    with pytest.raises((AssertionError, KeyError)):
        check(pipeline, platform)


# --- what every pipeline has
def located(spec: Spec) -> dict[str, tuple[Spec, Spec]]:
    """Task -> its definition and container, for all tasks that run one, wherever they lie."""
    found = {}
    for group, parent in dags(spec):
        for name, task in parent["dag"]["tasks"].items():
            component = spec["components"][task["componentRef"]["name"]]
            executor = spec["deploymentSpec"]["executors"].get(component.get("executorLabel"), {})
            if "container" in executor:
                found[f"{group}/{name}"] = (task, executor["container"])
    return found


def command_of(container: Spec) -> str:
    """The stage or command that a container runs."""
    return str(container["command"][-1])


def settings_of(platform: Spec, spec: Spec, task: Spec) -> Spec:
    label = spec["components"][task["componentRef"]["name"]]["executorLabel"]
    found: Spec = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][label]
    return found


@each_pipeline
@each_profile
def test_preflight_comes_before_everything(documents):
    """All tasks of the graph descend from it, but the importer of the lock, which it reads."""
    spec, _ = documents
    graph = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    roots = {name for name, task in graph.items() if not task.get("dependentTasks")}
    (first,) = [name for name in graph if name == "preflight"]
    lock = set(graph[first].get("dependentTasks", []))
    assert roots == (lock or {first})
    assert all("importer" in spec["deploymentSpec"]["executors"][spec["components"][graph[name]["componentRef"]["name"]]["executorLabel"]]
               for name in lock)
    reached = {first}
    for _ in graph:
        reached |= {name for name, task in graph.items() if reached & set(task.get("dependentTasks", []))}
    assert reached | lock == set(graph)
    assert not graph[first].get("retryPolicy")
    assert not graph[first].get("cachingOptions", {}).get("enableCache")


@each_pipeline
@each_profile
def test_preflight_is_given_what_the_pipeline_takes(documents, name, profile):
    """Every section by its name, every address, the section `kubeflow`, and all variables that secrets set."""
    spec, platform = documents
    plan = plans()[name]
    task, container = located(spec)["comp-exit-handler-1/preflight"]
    words = container["args"]
    sections = {(words[i + 1], words[i + 2]) for i, word in enumerate(words) if word == "--section"}
    cluster = cluster_of(document_of(profile), profile)
    told = {json.loads(text)["service_account"] for section, text in sections if section == "kubeflow"}
    assert told == {cluster.service_account}
    assert {(section, text) for section, text in sections if section != "kubeflow"} == {
        (section, f"{{{{$.inputs.parameters['{argument}']}}}}") for argument, section in plan.sections.items()}
    assert [words[i + 1] for i, word in enumerate(words) if word == "--input"] == [
        f"{{{{$.inputs.parameters['{uri}']}}}}" for uri in plan.uris if uri != "lock"]
    assert ("--lock" in words) == ("lock" in plan.uris)
    wanted = {variable for section in plan.sections.values() for variables in cluster.of(argument_of(section)).secrets.values()
              for variable in variables.values()}
    assert {words[i + 1] for i, word in enumerate(words) if word == "--secret"} == wanted
    given = settings_of(platform, spec, task).get("secretAsEnv", [])
    assert {item["envVar"] for secret in given for item in secret["keyToEnv"]} == wanted
    assert container["image"] == images.TRAIN


@each_pipeline
@each_profile
def test_the_outcome_is_recorded_whatever_happens(documents):
    spec, platform = documents
    tasks = spec["root"]["dag"]["tasks"]
    assert set(tasks) == {"exit-handler-1", "outcome"}
    last = tasks["outcome"]
    assert last["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    assert last["inputs"]["parameters"] == {"status": {"taskFinalStatus": {"producerTask": "exit-handler-1"}}}
    assert located(spec)["/outcome"][1]["args"] == ["--status", "{{$.inputs.parameters['status']}}"]
    assert {entry["name"] for entry in settings_of(platform, spec, last)["fieldPathAsEnv"]} == {"ANYMAL_GRAPH_RUN", "KFP_RUN_ID"}


@each_pipeline
@each_profile
def test_tasks_are_tried_again_and_cached(documents, profile):
    spec, _ = documents
    retries = cluster_of(document_of(profile), profile).retries
    policy = {"maxRetryCount": retries.count, "backoffDuration": f"{retries.wait_seconds}s", "backoffFactor": retries.factor,
              "backoffMaxDuration": f"{retries.longest_wait_seconds}s"}
    for name, (task, _) in located(spec).items():
        once = name in {"/outcome", "comp-exit-handler-1/preflight"}
        assert task.get("retryPolicy") == (None if once else policy), name
        assert task["cachingOptions"] == ({} if once or name.endswith(("/promote", "/promote-guard")) else {"enableCache": True}), name


def asked(container: Spec) -> dict[str, Any]:
    """Resources of a container in words of the profile."""
    resources = container["resources"]
    gpus = resources.get("accelerator", {})
    assert resources["resourceMemoryLimit"] == resources["resourceMemoryRequest"]
    assert "resourceCpuLimit" not in resources
    return {"cpu": resources["resourceCpuRequest"], "memory": resources["resourceMemoryLimit"], "gpus": int(gpus.get("resourceCount", 0)),
            "gpu": gpus.get("resourceType")}


def mine(settings: Spec) -> dict[str, Any]:
    """Platform settings of a task in words of the profile."""
    volumes = {entry["mountPath"]: entry for entry in settings.get("emptyDirMounts", [])}
    shared = volumes.pop("/dev/shm", None)
    assert not volumes
    assert shared is None or shared["medium"] == "Memory"
    return {
        "shared_memory": None if shared is None else shared["sizeLimit"],
        "node_selector": settings.get("nodeSelector", {}).get("labels", {}),
        "tolerations": settings.get("tolerations", []),
        "secrets": {entry["secretName"]: {item["secretKey"]: item["envVar"] for item in entry["keyToEnv"]}
                    for entry in settings.get("secretAsEnv", [])},
        "workspace": [(entry["constant"], entry["mountPath"]) for entry in settings.get("pvcMount", [])],
    }


@each_pipeline
@each_profile
def test_every_task_gets_what_the_profile_says(documents, name, profile):
    """Cores, memory, GPUs, /dev/shm, labels, taints, secrets and the volume; a job's task asks for little, its job for the rest."""
    spec, platform = documents
    plan, cluster = plans()[name], cluster_of(document_of(profile), profile)
    volume = [] if cluster.workspace is None else [(cluster.workspace.claim, cluster.workspace.path)]
    seen = 0
    for place, (task, container) in located(spec).items():
        settings = settings_of(platform, spec, task)
        # A pod that lacks a secret never starts: the first and the last must, to say so.
        first_or_last = place.rpartition("/")[2] in {"preflight", "outcome"}
        assert all(bool(secret.get("optional")) is first_or_last for secret in settings.get("secretAsEnv", []))
        assert settings["imagePullPolicy"] == cluster.image_pull_policy
        assert settings["securityContext"] == {"runAsNonRoot": True}
        (config_map,) = settings["configMapAsEnv"]
        assert config_map["configMapName"] == "anymal"
        assert {item["envVar"] for item in config_map["keyToEnv"]} == {"MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"}
        assert mine(settings)["workspace"] == volume
        if command_of(container).replace("-", "_") not in stage_names():
            continue
        argument = task["inputs"]["parameters"]["config"]["componentInputParameter"].removeprefix("pipelinechannel--")
        resources = cluster.of(argument_of(plan.sections[argument]))
        own = cluster.defaults.model_copy(update={"secrets": resources.secrets}) if resources.distributed else resources
        assert asked(container) == {"cpu": own.cpu, "memory": own.memory, "gpus": own.gpus, "gpu": own.gpu if own.gpus else None}
        assert mine(settings) == {
            "shared_memory": own.shared_memory, "node_selector": own.node_selector, "secrets": own.secrets, "workspace": volume,
            "tolerations": [taint.model_dump(exclude_none=True) for taint in own.tolerations]}
        assert (container["command"][1] == "trainjob") == resources.distributed
        if resources.distributed:
            job = task["inputs"]["parameters"]["job"]["runtimeValue"]["constant"]
            assert (job["nodes"], job["processes"], job["gpus"], job["memory"]) == (
                resources.nodes, resources.processes, resources.gpus, resources.memory)
            assert job["workspace"] == volume[0][1]
        seen += 1
    assert seen >= {"training": 31, "alignment": 17, "instruction": 3, "evaluation": 8, "safety": 4}.get(name, 3)


def test_production_asks_for_gpus_and_the_demo_for_none(compiled):
    """So that the test above compares something."""
    counts = {}
    for profile in BOTH:
        spec, platform = parsed(compiled[profile]["training.yaml"])
        tasks = located(spec).values()
        kinds = [mine(settings_of(platform, spec, task)) for task, _ in tasks]
        counts[profile] = [sum(bool(kind[word]) for kind in kinds) for word in kinds[0]]
        counts[profile] += [sum(asked(container)["gpus"] for _, container in tasks),
                            sum(container["command"][1] == "trainjob" for _, container in tasks)]
    assert counts["params.yaml"] == [0] * 7
    assert all(count > 0 for count in counts["params.production.yaml"])


@each_pipeline
def test_tasks_are_told_apart_by_their_names(compiled, name):
    """By section, as MLflow's runs are called, and by variant."""
    spec, _ = parsed(compiled["params.production.yaml"][f"{name}.yaml"])
    names = [task["taskInfo"]["name"] for task, _ in located(spec).values()]
    assert len(set(names)) == len(names)
    wanted = {"training": {"align.image", "evaluate.image_aligned", "evaluate.mixed", "curate_image"},
              "ablation-layers": {"align.image (first variant)"}}
    assert wanted.get(name, {"preflight"}) <= set(names)


@each_pipeline
def test_images_come_from_the_one_file(compiled, name):
    spec, _ = parsed(compiled["params.yaml"][f"{name}.yaml"])
    assert {container["image"] for _, container in located(spec).values()} <= {images.DATA, images.TRAIN, images.EVAL}


@each_pipeline
@each_profile
def test_arguments_are_what_the_pipeline_takes(documents, name, profile):
    spec, _ = documents
    lock = f"s3://bucket/{'0' * 64}.yaml"
    uris = {uri: lock if uri == "lock" else f"s3://bucket/{uri}" for uri in uris_of(name)}
    given = read_arguments(name, document_of(profile), str(ROOT / profile), uris)
    declared = {argument: entry["parameterType"] for argument, entry in spec["root"]["inputDefinitions"]["parameters"].items()}
    assert dict.fromkeys(given, "STRING") == declared
    assert all(isinstance(value, str) for value in given.values())


def test_importers_find_the_lock_by_its_address_and_read_all_else_anew(compiled):
    for name in NAMES:
        spec, _ = parsed(compiled["params.yaml"][f"{name}.yaml"])
        for label, executor in spec["deploymentSpec"]["executors"].items():
            if "importer" in executor:
                of_the_lock = name in {"training", "alignment"}
                assert bool(executor["importer"].get("reimport")) is not of_the_lock, f"{name}: {label}"


def test_sections_and_arguments_are_named_alike():
    for argument, section in {"align_image": "align.image", "curate_image": "curate_image", "pretrain_encoder_imu": "pretrain_encoder.imu",
                              "score": "score", "evaluate_mixed": "evaluate.mixed"}.items():
        assert section_of(argument) == section
        assert argument_of(section) == argument


# --- the gate
def test_a_model_is_registered_and_promoted_behind_the_gate_only(compiled):
    spec, _ = parsed(compiled["params.yaml"]["evaluation.yaml"])
    graph = spec["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    (branch,) = [task for task in graph.values() if "triggerPolicy" in task]
    assert branch["triggerPolicy"]["condition"] == "inputs.parameter_values['pipelinechannel--gate-verdict'] == 'passed'"
    assert branch["inputs"]["parameters"]["pipelinechannel--gate-verdict"]["taskOutputParameter"] == {
        "producerTask": "gate", "outputParameterKey": "verdict"}
    inside = spec["components"][branch["componentRef"]["name"]]["dag"]["tasks"]
    assert set(inside) == {"register", "promote"}
    assert not set(inside) & set(graph)
    assert inside["promote"]["inputs"]["artifacts"]["registration"]["taskOutputArtifact"]["producerTask"] == "register"
    for task in (graph["gate"], inside["promote"]):
        assert task["inputs"]["parameters"]["config"]["componentInputParameter"].endswith("promote")


def test_without_the_outcome_a_pipeline_is_flat(tmp_path):
    """kfp's local runners know no exit tasks, and conditions at the root only."""
    for name in ("training", "evaluation", "ablation-layers"):
        compile_one(name, document_of("params.yaml"), "params.yaml", tmp_path / f"{name}.yaml", outcome=False)
        spec, platform = parsed((tmp_path / f"{name}.yaml").read_bytes())
        assert {group for group, _ in dags(spec)} - {"", "comp-condition-1"} == set()
        assert "outcome" not in spec["root"]["dag"]["tasks"]
        assert spec["root"]["dag"]["tasks"]["preflight"]
        check(spec, platform)
