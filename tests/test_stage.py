"""The stage mechanism, exercised by a small stage of its own: outputs, resuming, refusals, Kubeflow's executor output."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field, model_validator

from anymal.config import read_document, validate, with_nulls, without_nulls
from anymal.errors import AnymalError, ConfigError, DataError
from anymal.executor import flatten, write_executor_output
from anymal.profile import read_config, section_problems
from anymal.stage import Config, In, Ins, Out, Stage, label, load_stage, per_modality, resumable, run_stage


class Optimiser(Config):
    learning_rate: float = Field(gt=0)


class ToyConfig(Config):
    learning_rate: float = Field(gt=0)
    steps: int = Field(gt=0)
    optimiser: Optimiser | None = None
    parts: tuple[Optimiser, ...] = ()


VALID = {"seed": 0, "learning_rate": 0.001, "steps": 4}


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], Stage]:
    """Make a function the stage `toy`, found as any other stage is."""

    def install(function: Callable[..., None]) -> Stage:
        module = types.ModuleType("anymal.stages.toy")
        module.toy = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "anymal.stages.toy", module)
        return load_stage("toy")

    return install


@pytest.fixture
def ports(tmp_path: Path) -> dict[str, Path]:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.txt").write_text("one")
    return {"source": source, "model": tmp_path / "out" / "model", "metrics": tmp_path / "out" / "metrics.json"}


def copy(config: ToyConfig, *, source: In, model: Out, metrics: Out) -> None:
    """Copy the source."""
    model.mkdir()
    (model / "weights.txt").write_text((source / "a.txt").read_text() * config.steps)
    metrics.write_text(json.dumps({"loss": 0.5, "bad": float("nan"), "deep": {"n": 3, "name": "x", "yes": True}}))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_ports_are_read_from_the_signature(install):
    def toy(config: ToyConfig, *, source: In, extras: Ins, model: Out) -> None:
        """First line."""

    stage = install(toy)
    assert (stage.inputs, stage.outputs, stage.summary) == ({"source": False, "extras": True}, ("model",), "First line.")
    assert (stage.resumable, stage.per_modality) == (False, False)
    assert install(per_modality(resumable(toy))).per_modality
    assert load_stage("toy").resumable


def test_port_without_direction_is_refused(install):
    def toy(config: ToyConfig, *, source: Path) -> None: ...

    with pytest.raises(TypeError, match="port source must be annotated In, Ins or Out"):
        install(toy)


def test_optional_port_is_refused(install):
    def toy(config: ToyConfig, *, source: In | None = None) -> None: ...

    with pytest.raises(TypeError, match="port source must be annotated In, Ins or Out"):
        install(toy)


def test_outputs_appear_with_manifest_and_nothing_else(install, ports):
    run_stage(install(copy), ToyConfig(**VALID), ports)
    assert (ports["model"] / "weights.txt").read_text() == "one" * 4
    assert names(ports["model"]) == ["manifest.json", "weights.txt"]
    assert names(ports["model"].parent) == ["metrics.json", "model"]


def test_failure_keeps_the_former_outputs_and_leaves_no_half(install, ports):
    run_stage(install(copy), ToyConfig(**VALID), ports)

    def toy(config: ToyConfig, *, source: In, model: Out, metrics: Out) -> None:
        model.mkdir()
        (model / "weights.txt").write_text("half")
        raise DataError("a.txt: is damaged")

    with pytest.raises(DataError, match="damaged"):
        run_stage(install(toy), ToyConfig(**VALID), ports)
    assert (ports["model"] / "weights.txt").read_text() == "one" * 4
    assert names(ports["model"].parent) == ["metrics.json", "model"]


def test_second_run_replaces_folders_and_files(install, ports):
    stage = install(copy)
    run_stage(stage, ToyConfig(**VALID), ports)
    run_stage(stage, ToyConfig(**VALID | {"steps": 2}), ports)
    assert (ports["model"] / "weights.txt").read_text() == "one" * 2


def test_forgotten_output_is_an_error(install, ports):
    def toy(config: ToyConfig, *, source: In, model: Out, metrics: Out) -> None:
        model.mkdir()

    with pytest.raises(RuntimeError, match="did not write metrics"):
        run_stage(install(toy), ToyConfig(**VALID), ports)
    assert names(ports["model"].parent) == []


def interrupted_once(steps: list[int]) -> Callable[..., None]:
    """A stage that stops after two steps of its first call, and notes which steps it did."""

    @resumable
    def toy(config: ToyConfig, *, source: In, model: Out, metrics: Out) -> None:
        model.mkdir(exist_ok=True)
        for step in range(config.steps):
            if (model / f"{step}").exists():
                continue
            if len(steps) == 2:
                steps.append(-1)
                raise AnymalError("stopped")
            (model / f"{step}").write_text("done")
            steps.append(step)
        metrics.write_text("{}")

    return toy


def test_resumable_goes_on_where_it_stopped(install, ports):
    steps: list[int] = []
    stage = install(interrupted_once(steps))
    with pytest.raises(AnymalError, match="stopped"):
        run_stage(stage, ToyConfig(**VALID), ports)
    assert not ports["model"].exists()
    run_stage(stage, ToyConfig(**VALID), ports)
    assert steps == [0, 1, -1, 2, 3]
    assert names(ports["model"].parent) == ["metrics.json", "model"]


@pytest.mark.parametrize("change", ["knob", "input"])
def test_partial_work_of_other_knobs_or_inputs_is_dropped(install, ports, change):
    steps: list[int] = []
    stage = install(interrupted_once(steps))
    with pytest.raises(AnymalError, match="stopped"):
        run_stage(stage, ToyConfig(**VALID), ports)
    if change == "input":
        (ports["source"] / "a.txt").write_text("two")
    run_stage(stage, ToyConfig(**VALID | ({"learning_rate": 0.5} if change == "knob" else {})), ports)
    assert steps == [0, 1, -1, 0, 1, 2, 3]


def join(config: ToyConfig, *, parts: Ins, model: Out) -> None:
    """Join the parts in the order given."""
    model.write_text("".join((part / "a.txt").read_text() for part in parts))


@pytest.fixture
def several(tmp_path: Path) -> dict[str, Any]:
    """Two inputs of one port, and an output."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    return {"parts": (tmp_path / "one", tmp_path / "two"), "model": tmp_path / "model.txt"}


def test_a_port_of_several_paths_gets_them_in_order(install, several):
    stage = install(join)
    run_stage(stage, ToyConfig(**VALID), several)
    assert several["model"].read_text() == "onetwo"
    run_stage(stage, ToyConfig(**VALID), several | {"parts": several["parts"][::-1]})
    assert several["model"].read_text() == "twoone"


def test_the_command_line_repeats_the_option_of_such_a_port(install, several, tmp_path):
    from anymal.__main__ import _stage_command

    install(join)
    words = [word for part in several["parts"] for word in ("--parts", str(part))]
    _stage_command("toy").main(["--config", json.dumps(VALID), *words, "--model", str(several["model"])], standalone_mode=False)
    assert several["model"].read_text() == "onetwo"


def test_each_of_several_inputs_is_checked(install, several, tmp_path):
    with pytest.raises(DataError, match=r"toy: input not found: --parts .*nowhere; run the stage that makes it"):
        run_stage(install(join), ToyConfig(**VALID), several | {"parts": (several["parts"][0], tmp_path / "nowhere")})
    with pytest.raises(ConfigError, match=r"--model .*two: would replace parts"):
        run_stage(install(join), ToyConfig(**VALID), several | {"model": several["parts"][1]})
    assert (several["parts"][1] / "a.txt").read_text() == "two"


@pytest.mark.parametrize("change", ["second", "order", "number"])
def test_partial_work_of_other_several_inputs_is_dropped(install, several, change):
    started: list[bool] = []

    @resumable
    def toy(config: ToyConfig, *, parts: Ins, model: Out) -> None:
        started.append(model.exists())
        model.mkdir(exist_ok=True)
        if len(started) < 2:
            raise AnymalError("stopped")

    stage = install(toy)
    with pytest.raises(AnymalError, match="stopped"):
        run_stage(stage, ToyConfig(**VALID), several)
    first, second = several["parts"]
    if change == "second":
        (second / "a.txt").write_text("other")
    parts = {"second": (first, second), "order": (second, first), "number": (first,)}[change]
    run_stage(stage, ToyConfig(**VALID), several | {"parts": parts})
    assert started == [False, False]


class SenseConfig(ToyConfig):
    modality: str


def sense_stage(install) -> Stage:
    @per_modality
    def toy(config: SenseConfig, *, source: In, model: Out) -> None: ...

    return install(toy)


def test_a_section_per_modality_is_read(install, tmp_path):
    stage, profile = sense_stage(install), tmp_path / "params.yaml"
    profile.write_text(json.dumps({"toy": {name: VALID | {"modality": name, "steps": steps} for name, steps in (("audio", 1), ("imu", 2))}}))
    config = read_config(stage, str(profile), "imu")
    assert (config.modality, config.steps, label(stage, config)) == ("imu", 2, "toy.imu")
    assert label(stage, config, "imu_aligned") == "toy.imu_aligned"
    assert read_config(stage, json.dumps(VALID | {"modality": "audio"})).modality == "audio"
    assert label(install(copy), ToyConfig(**VALID)) == "toy"
    with pytest.raises(ConfigError, match=r"^toy: runs once per modality; add --modality with one of audio, imu$"):
        read_config(stage, str(profile))
    with pytest.raises(ConfigError, match=r"--modality smell: .*params.yaml has no section 'toy.smell'; 'toy' has audio, imu$"):
        read_config(stage, str(profile), "smell")
    profile.write_text("toy: 3\n")
    with pytest.raises(ConfigError, match=r"has no section 'toy.imu'; 'toy' has none"):
        read_config(stage, str(profile), "imu")


def test_a_section_says_the_modality_that_it_is_called_by(install):
    sections = {"audio": VALID | {"modality": "imu"}, "imu": VALID | {"modality": "imu", "steps": 0}, "video": VALID | {"modality": "video"}}
    assert section_problems(sense_stage(install), sections) == [
        "toy.audio.modality = imu: the section of a modality is called after it; say audio, or call it imu_…",
        "toy.imu.steps = 0: Input should be greater than 0",
    ]
    for nothing in ({}, None, 3):
        assert section_problems(sense_stage(install), nothing) == ["toy: must hold a section per modality"]
    assert section_problems(install(copy), VALID) == []
    assert section_problems(install(copy), VALID | {"steps": 0}) == ["toy.steps = 0: Input should be greater than 0"]


def executor_input(folder: Path) -> dict:
    def entry(name: str, kind: str) -> dict:
        return {"artifacts": [{"name": name, "type": {"schemaTitle": kind}, "uri": f"minio://bucket/{name}", "metadata": {"kept": "yes"}}]}

    return {
        "inputs": {"parameterValues": {"config": VALID}},
        "outputs": {
            "artifacts": {"model": entry("model", "system.Model"), "metrics": entry("metrics", "system.Metrics")},
            "outputFile": str(folder / "gen" / "executor_output.json"),
        },
    }


def test_executor_output_names_every_artifact_and_leaves_nan_out(install, ports, tmp_path):
    run_stage(install(copy), ToyConfig(**VALID), ports, json.dumps(executor_input(tmp_path)))
    text = (tmp_path / "gen" / "executor_output.json").read_text()
    artifacts = json.loads(text)["artifacts"]
    assert "NaN" not in text
    metadata = {"kept": "yes", "loss": 0.5, "deep.n": 3.0}
    assert artifacts["metrics"]["artifacts"][0] == {"name": "metrics", "uri": "minio://bucket/metrics", "metadata": metadata}
    assert artifacts["model"]["artifacts"][0]["metadata"] == {"kept": "yes"}


def test_executor_output_is_what_kfp_reads(install, ports, tmp_path):
    """The message type that Kubeflow's launcher and local runner parse the file into refuses unknown fields."""
    from google.protobuf import json_format
    from kfp.pipeline_spec import pipeline_spec_pb2

    run_stage(install(copy), ToyConfig(**VALID), ports, json.dumps(executor_input(tmp_path)))
    message = json_format.Parse((tmp_path / "gen" / "executor_output.json").read_text(), pipeline_spec_pb2.ExecutorOutput())
    assert set(message.artifacts) == {"model", "metrics"}
    assert message.artifacts["metrics"].artifacts[0].metadata["loss"] == 0.5


def test_json_lines_output_has_no_metrics(tmp_path):
    lines = tmp_path / "model"
    lines.write_text('{"a": 1}\n{"a": 2}\n')
    write_executor_output(executor_input(tmp_path), {"model": lines})
    assert json.loads((tmp_path / "gen" / "executor_output.json").read_text())["artifacts"]["model"]["artifacts"][0]["metadata"] == {"kept": "yes"}


def test_flatten_keeps_finite_numbers_only():
    tree = {"a": {"b": 1, "inf": float("inf"), "nan": float("nan"), "no": None, "list": [1]}, "c": 2.5, "flag": False}
    assert flatten(tree) == {"a.b": 1.0, "c": 2.5}


def test_missing_input_names_the_option(install, ports):
    with pytest.raises(DataError, match=r"toy: input not found: --source .*nowhere; run the stage that makes it"):
        run_stage(install(copy), ToyConfig(**VALID), ports | {"source": Path("nowhere")})


@pytest.mark.parametrize("place", ["source", "parent", "working folder", "other output"])
def test_output_that_would_delete_something_is_refused(install, ports, tmp_path, monkeypatch, place):
    monkeypatch.chdir(ports["source"])
    target = {"source": ports["source"], "parent": tmp_path, "working folder": Path(), "other output": ports["metrics"].parent}[place]
    with pytest.raises(ConfigError, match="would replace"):
        run_stage(install(copy), ToyConfig(**VALID), ports | {"model": target})
    assert (ports["source"] / "a.txt").read_text() == "one"


def test_folder_that_no_stage_wrote_is_not_replaced(install, ports):
    ports["model"].mkdir(parents=True)
    (ports["model"] / "holiday.jpg").write_text("precious")
    with pytest.raises(ConfigError, match=r"no stage wrote \(it has no manifest.json\); move it away"):
        run_stage(install(copy), ToyConfig(**VALID), ports)
    assert (ports["model"] / "holiday.jpg").read_text() == "precious"


FULL_DISK = """
    import json, os, sys
    os.environ["ANYMAL_TRACKING"] = "off"
    from pathlib import Path
    import numpy as np
    from safetensors.numpy import save_file
    from anymal.errors import AnymalError
    from anymal.stage import Config, In, Out, Stage, run_stage

    def plain(config, *, source, model):
        model.mkdir()
        (model / "weights.bin").write_bytes(bytes(4 * 2**20))

    def rust(config, *, source, model):
        model.mkdir()
        save_file({"w": np.zeros(2**20, dtype=np.float32)}, model / "w.safetensors")

    stage = Stage("toy", {"plain": plain, "rust": rust}[sys.argv[1]], Config, {"source": False}, ("model",),
                  resumable=False, per_modality=False, distributed=False)
    try:
        run_stage(stage, Config(seed=0), {"source": Path(sys.argv[2]), "model": Path("disk/model")})
    except AnymalError as error:
        print(error)
    print(sorted(os.listdir("disk")))
"""


@pytest.mark.parametrize("writer", ["plain", "rust"])
def test_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, ports, writer):
    """On a real file system of 1 MiB, in a mount namespace that ends with the process; for Python's and safetensors' own errors."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "full.py").write_text(textwrap.dedent(FULL_DISK))
    mount = 'mount -t tmpfs -o size=1m none disk && exec "$@"'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh", sys.executable, "full.py", writer, str(ports["source"])]
    if subprocess.run([*command[:3], "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets no process have a mount namespace of its own")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "toy: disk full while writing to disk; free some space" in done.stdout
    assert done.stdout.endswith("[]\n")


def test_refused_permission_is_one_sentence(install, ports):
    def toy(config: ToyConfig, *, source: In, model: Out, metrics: Out) -> None:
        raise PermissionError(13, "Permission denied", "/data/locked")

    with pytest.raises(AnymalError, match="toy: may not use /data/locked: Permission denied; change its permissions"):
        run_stage(install(toy), ToyConfig(**VALID), ports)


def refused(install, section: object) -> str:
    with pytest.raises(ConfigError) as caught:
        read_config(install(copy), json.dumps(section))
    return str(caught.value)


def test_unknown_knob_is_refused_with_a_suggestion(install):
    assert refused(install, VALID | {"learnin_rate": 1}) == "toy.learnin_rate: unknown knob; did you mean 'learning_rate'?"
    assert "known knobs: learning_rate, optimiser, parts, seed, steps" in refused(install, VALID | {"zzz": 1})


def test_suggestions_come_from_the_nested_knobs(install):
    nested = {"seed": 0, "learning_rate": 1, "zzz": 2}
    assert refused(install, VALID | {"optimiser": nested}) == "toy.optimiser.zzz: unknown knob; known knobs: learning_rate, seed"
    nested = {"seed": 0, "learning_rate": 1, "sed": 2}
    assert refused(install, VALID | {"parts": [nested]}) == "toy.parts.0.sed: unknown knob; did you mean 'seed'?"


def test_every_problem_is_named_at_once(install):
    assert refused(install, {"learning_rate": -0.1, "steps": "many"}).split("\n") == [
        "toy.seed: missing; add it to the profile's section 'toy'",
        "toy.learning_rate = -0.1: Input should be greater than 0",
        "toy.steps = many: Input should be a valid integer, unable to parse string as an integer",
    ]


def test_rule_between_knobs_is_told_without_the_whole_section(install):
    class Pair(Config):
        low: int
        high: int

        @model_validator(mode="after")
        def _ordered(self) -> Pair:
            if self.low > self.high:
                raise ValueError(f"low = {self.low} exceeds high = {self.high}")
            return self

    with pytest.raises(ConfigError, match=r"^toy: low = 2 exceeds high = 1$"):
        validate(Pair, {"seed": 0, "low": 2, "high": 1}, "toy")


def test_section_must_be_a_mapping(install, tmp_path):
    (tmp_path / "p.yaml").write_text("toy: 3\n")
    with pytest.raises(ConfigError, match="toy = 3"):
        read_config(install(copy), str(tmp_path / "p.yaml"))


def test_inline_json_takes_kubeflows_floats(install):
    config = read_config(install(copy), '{"seed": 0.0, "learning_rate": 1, "steps": 40.0}')
    assert config == ToyConfig(seed=0, learning_rate=1.0, steps=40)


class Part(BaseModel):
    size: int
    limit: int | None


class Layered(Config):
    layer: int | None
    parts: dict[str, tuple[Part, ...]]


def test_null_knobs_survive_kubeflow():
    section = {"seed": 0, "layer": None, "parts": {"a": [{"size": 1, "limit": None}, {"size": 2, "limit": 3}]}}
    sent = without_nulls(section)
    assert sent == {"seed": 0, "parts": {"a": [{"size": 1}, {"size": 2, "limit": 3}]}}
    assert with_nulls(Layered, sent) == section


def test_only_knobs_that_may_be_null_can_be_missing():
    assert with_nulls(Layered, {"parts": {"a": [{}]}}) == {"layer": None, "parts": {"a": [{"limit": None}]}}
    with pytest.raises(ConfigError, match=r"toy.seed: missing.*\ntoy.parts.a.0.size: missing"):
        validate(Layered, {"layer": None, "parts": {"a": [{"limit": None}]}}, "toy")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [('{"seed": 0,', "not valid JSON"), ('{"seed": 0, "seed": 1}', "key 'seed' comes twice"),
     ('{"seed": 0, "learning_rate": NaN, "steps": 1}', "learning_rate")],
)
def test_bad_inline_json(install, text, sentence):
    with pytest.raises(ConfigError, match=sentence):
        read_config(install(copy), text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("toy:\n  seed: 0\n  seed: 1\n", "duplicate key"), ("- 1\n", "must be a mapping of sections, found list"),
     ("toy: [\n", "cannot be read as YAML"),
     ("other: {}\n", "has no section 'toy'; it has other")],
)
def test_bad_profile(install, tmp_path, text, sentence):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_config(install(copy), str(path))
    assert str(path) in str(caught.value)


def test_missing_profile(install):
    with pytest.raises(ConfigError, match=r"nowhere.yaml: no such file; --config takes a YAML profile"):
        read_config(install(copy), "nowhere.yaml")


def test_profiles_are_yaml_1_2(tmp_path):
    """As DVC reads them: 1e-3 is a number and `no` is a word."""
    path = tmp_path / "params.yaml"
    path.write_text("a: 1e-3\nb: no\n")
    assert read_document(path) == {"a": 0.001, "b": "no"}
