"""`ablations.yaml` against both profiles, and the pipelines that are made of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from kfp import dsl
from kfp.local import config as local_config
from kfp.local import executor_input_utils, placeholder_utils
from kfp.pipeline_spec import pipeline_spec_pb2
from ruamel.yaml import YAML

from anymal.cluster import cluster_of
from anymal.config import as_text, validate
from anymal.errors import ConfigError
from anymal.profile import read_config
from anymal.stage import load_stage
from anymal.training.plots import HISTORY, write_history
from pipelines import ablate
from pipelines.ablation import EVALUATED, MODALITIES, imported, plan
from pipelines.ablations import ORDINALS, PROFILES, ablation_arguments, compare_section, read_ablation, read_ablations, variant_sections
from pipelines.tasks import build
from tests.graph import ROOT, document_of, pipeline_spec, profile_of, runs, section_of

ABLATIONS = read_ablations(ROOT / "ablations.yaml")
each_ablation = pytest.mark.parametrize("name", ABLATIONS)
each_profile = pytest.mark.parametrize("profile", PROFILES)


def test_the_papers_ablations_are_there():
    assert set(ABLATIONS) == {"lora", "instructions", "layers", "tokens", "batch", "quantization"}
    production = {name: variant_sections(ablation, "production", ROOT) for name, ablation in ABLATIONS.items()}
    knobs = {name: [section[knob] for section in production[name].values()]
             for name, knob in (("layers", "layers"), ("tokens", "tokens"), ("batch", "batch_size"))}
    assert knobs == {"layers": [2, 6], "tokens": [64, 256], "batch": [2048, 16384]}
    assert [section["adapter"] is None for section in production["lora"].values()] == [True, False]
    assert [section["quantization"] for section in production["quantization"].values()] == ["none", "int8", "nf4"]


@each_ablation
@each_profile
def test_variants_are_sections_that_their_stage_takes(name, profile):
    """Each differs from the profile in what it says and nothing else, and one of them is the profile itself."""
    ablation = ABLATIONS[name]
    sections = variant_sections(ablation, profile, ROOT)
    assert list(sections) == list(ablation.variants[profile])
    base = section_of(profile_of(PROFILES[profile].name), ablation.trains)
    for variant, section in sections.items():
        assert section.keys() == base.keys()
        told = {knob.removeprefix(f"{ablation.trains}.").partition(".")[0] for knob in ablation.variants[profile][variant]}
        assert {knob for knob in section if section[knob] != base[knob]} <= told
    assert list(sections.values()).count(base) == 1
    assert validate(load_stage("compare").config, compare_section(ablation, profile), "compare")


@each_ablation
def test_files_of_a_run_are_where_the_graph_writes_them(name):
    """What the local command takes out of an experiment are outputs of dvc.yaml."""
    ablation = ABLATIONS[name]
    if ablation.modality is None:
        assert runs()["score"].outputs["metrics"] == "results/evaluate.json"
        assert runs()["finetune"].outputs["plots"] == "reports/finetune"
    else:
        outputs = runs()[f"align@{ablation.modality}"].outputs
        assert (outputs["metrics"], outputs["plots"]) == (f"results/align/{ablation.modality}.json", f"reports/align/{ablation.modality}")
    assert ablate.HISTORY == HISTORY


def entry(**changes: Any) -> dict[str, Any]:
    demo = {"2 layers": {"align.image.layers": 2}, "6 layers": {"align.image.layers": 6}}
    return {"title": "Layers", "trains": "align.image", "variants": {"demo": demo, "production": demo}, "figures": {"loss": "train_loss"}} | changes


def written(tmp_path: Path, document: Any) -> Path:
    YAML().dump(document, tmp_path / "ablations.yaml")
    return tmp_path / "ablations.yaml"


@pytest.mark.parametrize(("changes", "complaint"), [
    ({"trains": "score"}, "trains: String should match"),
    ({"variants": {"demo": {}}}, "name the variants for demo and production"),
    ({"variants": {"demo": {"a": {}}, "production": {"a": {}}}}, "demo has 1 variants; name 2 to 3"),
    ({"variants": {"demo": {"a": {}, "b": {}}, "production": {"a": {}, "b": {}, "c": {}}}}, "equally many"),
    ({"variants": {"demo": {"a|": {}, "b": {}}, "production": {"a": {}, "b": {}}}}, r"demo\.a\|: a variant's name"),
    ({"variants": {"demo": {"a": {"finetune.steps": 1}, "b": {}}, "production": {"a": {}, "b": {}}}}, "finetune.steps is no knob of align.image"),
    ({"variants": {"demo": {"a": {"align.image.layers": [1]}, "b": {}}, "production": {"a": {}, "b": {}}}}, r"demo\.a\.align\.image\.layers"),
    ({"figures": {}}, "figures"),
    ({"figure": {}}, "figure: Extra inputs"),
])  # fmt: skip
def test_a_malformed_ablation_is_refused(tmp_path, changes, complaint):
    path = written(tmp_path, {"layers": entry(**changes)})
    with pytest.raises(ConfigError, match=complaint) as caught:
        read_ablations(path)
    assert str(caught.value).startswith(f"{path}: layers")


def test_names_of_ablations_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="Two Layers: an ablation's name"):
        read_ablations(written(tmp_path, {"Two Layers": entry()}))
    with pytest.raises(ConfigError, match=r"tokens: .*has no such ablation; it has layers"):
        read_ablation("tokens", written(tmp_path, {"layers": entry()}))
    (tmp_path / "ablations.yaml").write_text("layers: {}\nlayers: {}\n")
    with pytest.raises(ConfigError, match="duplicate key"):
        read_ablations(tmp_path / "ablations.yaml")


@pytest.mark.parametrize(("overrides", "complaint"), [
    ({"align.image.layer": 2}, r"demo\.other: align\.image\.layer: .*params\.yaml has no such knob; did you mean 'align\.image\.layers'\?"),
    ({"align.image.layers": 0}, r"demo\.other: align\.image\.layers = 0: Input should be greater than 0"),
    ({"align.image.layers": "two"}, r"align\.image\.layers = two"),
    ({"align.image.caption": "Look!"}, r"is a group of knobs in .*params\.yaml; name one of system, user"),
    ({"align.image.layers": 6}, "is the same as 6 layers; change a knob"),
    ({"align.image.seed.x": 1}, r"seed\.x: .* has no such knob; align\.image\.seed has no knobs below it"),
])  # fmt: skip
def test_wrong_overrides_are_named(tmp_path, overrides, complaint):
    variants = {"6 layers": {"align.image.layers": 6}, "other": overrides}
    ablation = read_ablation("layers", written(tmp_path, {"layers": entry(variants={"demo": variants, "production": variants})}))
    with pytest.raises(ConfigError, match=complaint):
        variant_sections(ablation, "demo", ROOT)


# --- Kubeflow
def spec_of(name: str) -> dict[str, Any]:
    """The pipeline without its exit task, so that all tasks lie at the root."""
    cluster = cluster_of(document_of("params.yaml"), "params.yaml")
    spec: dict[str, Any] = json_format.MessageToDict(build(plan(name, ABLATIONS[name]), cluster, outcome=False).pipeline_spec)
    return spec


def uris_of(name: str) -> dict[str, str]:
    return {argument: f"s3://bucket/{argument}" for argument in imported(ABLATIONS[name])}


@each_ablation
@each_profile
def test_arguments_are_what_the_pipeline_takes(name, profile):
    ablation = ABLATIONS[name]
    arguments = ablation_arguments(ablation, profile, uris_of(name), ROOT)
    parameters = spec_of(name)["root"]["inputDefinitions"]["parameters"]
    assert dict.fromkeys(arguments, "STRING") == {argument: declared["parameterType"] for argument, declared in parameters.items()}
    stage = load_stage(ablation.stage)
    for ordinal, section in zip(ORDINALS, variant_sections(ablation, profile, ROOT).values(), strict=False):
        assert read_config(stage, arguments[f"variant_{ordinal}"]) == validate(stage.config, section, ablation.trains)


def test_uris_are_checked_all_at_once():
    uris = uris_of("layers")
    del uris["assets"]
    with pytest.raises(ConfigError) as caught:
        ablation_arguments(ABLATIONS["layers"], "demo", uris | {"shards": "s3://bucket/shards"}, ROOT)
    assert str(caught.value) == "assets: missing; name the URI of this input\nshards: is no input of this ablation; remove it"


def wiring(spec: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Task -> input -> `task.output` or the argument that it comes from."""
    found = {}
    for task, definition in spec["root"]["dag"]["tasks"].items():
        given = definition.get("inputs", {})
        origins = {port: source["taskOutputArtifact"] for port, source in given.get("artifacts", {}).items()}
        found[task] = {port: f"{origin['producerTask']}.{origin['outputArtifactKey']}" for port, origin in origins.items()}
        found[task] |= {port: source["componentInputParameter"] for port, source in given.get("parameters", {}).items()}
    return found


@each_ablation
def test_each_variant_is_a_branch_and_all_meet_in_the_comparison(name):
    ablation = ABLATIONS[name]
    wires = wiring(spec_of(name))
    importers = {task: entry["uri"] for task, entry in wires.items() if task.startswith("importer")}
    assert sorted(importers.values()) == sorted(imported(ablation))
    ordinals = ORDINALS[: len(ablation.variants["demo"])]
    (final,) = [entry for task, entry in wires.items() if task.startswith("compare")]
    assert set(final) == {"config", *(f"{port}_{ordinal}" for port in ("results", "plots") for ordinal in ordinals)}
    for ordinal in ordinals:
        trained, kind = final[f"plots_{ordinal}"].split(".")
        assert kind == "plots"
        assert wires[trained]["config"] == f"variant_{ordinal}"
        maker, made = final[f"results_{ordinal}"].split(".")
        assert made == "metrics"
        given = {port: importers.get(source.partition(".")[0], source) for port, source in wires[trained].items() if port != "config"}
        assert all(port == source or (port, source) == ("features", "features") for port, source in given.items())
        if ablation.stage == "align":
            assert maker == trained
            continue
        scored = wires[maker]
        assert importers[scored["baselines"].partition(".")[0]] == "baselines"
        for modality in EVALUATED:
            evaluated = wires[scored[f"predictions_{modality}"].removesuffix(".predictions")]
            assert evaluated["checkpoints"] == f"{trained}.model"
            assert evaluated["config"] == f"evaluate_{modality}"
            for kind in ("features", "shards"):
                parts = {kind: modality} if modality != "mixed" else {f"{kind}_first": "image", f"{kind}_second": "imu"}
                assert {port: importers[evaluated[port].partition(".")[0]] for port in parts} == {p: f"{kind}_{m}" for p, m in parts.items()}


@pytest.mark.parametrize("name", ["lora", "layers"])
def test_a_branch_is_wired_as_in_training(name):
    """The same inputs, component by component, as the training pipeline gives them."""
    full = wiring(pipeline_spec())
    for task, given in wiring(spec_of(name)).items():
        if not task.startswith(("importer", "compare", "preflight")):
            assert set(given) == set(full[task if task in full else task.rpartition("-")[0]]), task
    assert [f"align@{modality}" for modality in MODALITIES] == [name for name in runs() if name.startswith("align@")]


@pytest.mark.parametrize("name", ["layers", "instructions"])
def test_compare_as_launched_writes_table_and_picture(name, tmp_path):
    """The component's line as Kubeflow's launcher fills it in, run as a process on real files."""
    ablation, spec = ABLATIONS[name], spec_of(name)
    ordinals = ORDINALS[: len(ablation.variants["demo"])]
    inputs = {}
    for number, ordinal in enumerate(ordinals):
        write_history([{"step": 1, "loss": 2.0, "validation": {"right": 1.0 + number, "shuffled": 3.0}}], tmp_path / ordinal / HISTORY)
        (tmp_path / f"{ordinal}.json").write_text(json.dumps({"train_loss": 0.5 + number}))
        inputs[f"plots_{ordinal}"] = dsl.Artifact(name="plots", uri=str(tmp_path / ordinal), metadata={})
        inputs[f"results_{ordinal}"] = dsl.Metrics(name="results", uri=str(tmp_path / f"{ordinal}.json"), metadata={})
    (task,) = [key for key in spec["components"] if key.startswith("comp-compare")]
    definition = json_format.ParseDict(spec["components"][task], pipeline_spec_pb2.ComponentSpec())
    container = spec["deploymentSpec"]["executors"][definition.executor_label]["container"]
    message = executor_input_utils.construct_executor_input(
        definition, {"config": as_text(compare_section(ablation, "demo")), **inputs}, task_root=str(tmp_path / "out"), block_input_artifact=False)
    local_config.init(local_config.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path))
    words = placeholder_utils.replace_placeholders(
        [*container["command"], *container["args"]], json_format.MessageToDict(message), pipeline_resource_name=name,
        task_resource_name="compare", pipeline_root=str(tmp_path), unique_pipeline_id="1")
    assert words[:2] == ["anymal", "compare"]
    done = subprocess.run([sys.executable, "-m", "anymal", *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False,
                          env={"ANYMAL_TRACKING": "off", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1].strip() for line in (tmp_path / "out" / "table").read_text().splitlines() if line.startswith("| ")]
    assert rows == ["", *ablation.variants["demo"]]
    assert (tmp_path / "out" / "figure").read_bytes().startswith(b"\x89PNG")
    reported = json.loads((tmp_path / "out" / "executor_output.json").read_text())["artifacts"]["metrics"]["artifacts"][0]["metadata"]
    first = next(iter(ablation.variants["demo"]))
    column = "training loss" if name == "layers" else "held-out loss"
    assert reported[f"variants.{first}.{column}.value"] == (0.5 if name == "layers" else 1.0)
