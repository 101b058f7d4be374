"""Training as a job: with the SDK's local processes and with a stand-in for a cluster (tests/trainer_server.py), both with real torchrun."""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from anymal.data.manifest import fingerprint, write_manifest
from anymal.errors import ConfigError, DataError
from anymal.jobs import Job, JobError, State, job_name, run_job
from tests.tiny import ALIGN, make_assets, make_features
from tests.trainer_server import TrainerServer, refused

JOB = {"cpu": "1", "memory": "2Gi", "gpus": 0, "gpu": "nvidia.com/gpu", "nodes": 1, "processes": 2}


KNOBS = {"batch_size": 4, "micro_batch_size": 2, "learning_rate": 0.001, "steps": 60, "validate_every": 60, "checkpoint_every": 1}
"""Of alignment: long enough to be stopped in the middle."""


# --- the way of a job, with a trainer that follows a script


class Scripted:
    """A trainer whose jobs write their outputs, or do what they are told."""

    def __init__(self, *statuses: str, log: Sequence[str] = ()) -> None:
        self.statuses, self.log = list(statuses), list(log)
        self.job: str | None = None
        self.words: list[list[str]] = []
        self.calls: list[str] = []
        self.away = 0

    def find(self, name: str) -> State | None:
        if self.away:
            self.away -= 1
            raise JobError("the API is away")
        if self.job is None:
            return None
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if status == "Gone":
            return None
        if status == "Complete" and self.words:
            for word in self.words[-1]:
                if word.startswith(("--checkpoint=", "--metrics=")):
                    Path(word.partition("=")[2]).write_text("made")
        return State(status, {"node-0": ("pod", status)})

    def start(self, name: str, words: Sequence[str], job: Job, image: str | None) -> None:
        self.calls.append("start")
        self.job = name
        self.words.append(list(words))

    def lines(self, name: str, node: str, *, follow: bool) -> Iterator[str]:
        yield from self.log

    def remove(self, name: str) -> None:
        self.calls.append("remove")
        self.job = None


class Setting:
    """A workspace, an input and the paths of two outputs."""

    def __init__(self, folder: Path) -> None:
        self.workspace, self.features = folder / "workspace", folder / "in" / "features"
        self.outputs = {"checkpoint": folder / "out" / "checkpoint", "metrics": folder / "out" / "metrics"}
        self.workspace.mkdir()
        self.features.mkdir(parents=True)
        (self.features / "rows").write_text("1 2 3")
        write_manifest(self.features)

    def run(self, trainer: Scripted, knobs: Mapping[str, Any] = {"seed": 1}, **more: Any) -> None:
        run_job("align.image", "align", knobs, {"features": self.features}, self.outputs,
                job=Job(**JOB, workspace=str(self.workspace)), trainer=trainer, pause=0.01, **more)


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    return Setting(tmp_path)


def test_a_job_gets_its_inputs_by_content_and_its_outputs_come_back(setting, capsys):
    trainer = Scripted("Created", "Running", "Running", "Complete", log=["step 1", "step 2"])
    setting.run(trainer, {"seed": 1, "answer": "$(HOME)", "a": None})
    ((stage, option, knobs, *ports),) = trainer.words
    assert (stage, option, list(json.loads(knobs).items())) == ("align", "--config", [("seed", 1), ("answer", "$(HOME)"), ("a", None)])
    features = Path(ports[0].removeprefix("--features="))
    assert features.is_relative_to(setting.workspace / "inputs")
    assert (features / "rows").read_text() == "1 2 3"
    assert all(path.read_text() == "made" for path in setting.outputs.values())
    assert trainer.calls == ["start", "remove"]
    shown = capsys.readouterr().err
    assert shown.count("step 1\nstep 2\n") == 1
    assert "Running, node-0 Running" in shown


def test_what_was_done_is_not_done_again(setting):
    setting.run(Scripted("Complete"))
    idle = Scripted("Complete")
    setting.outputs["metrics"].unlink()
    setting.run(idle)
    assert idle.calls == []
    assert setting.outputs["metrics"].read_text() == "made"
    (made,) = setting.workspace.glob("jobs/*/checkpoint")
    made.write_text("changed")
    setting.run(idle)
    assert idle.calls == ["start", "remove"], "what is not as it was noted is made again"


def test_other_knobs_inputs_or_images_are_another_job():
    names = {job_name("align.image", {"seed": seed}, {"features": features}, image)
             for seed in (1, 2) for features in ("a", "b") for image in (None, "x@sha256:1")}
    assert len(names) == 8
    assert all(len(name) <= 42 and name.startswith("anymal-align-image-") for name in names)
    assert job_name("Align.A_very/long Name that goes on and on", {}, {}, None).startswith("anymal-align-a-very-long-name-t-")


def test_a_job_that_runs_is_followed_and_one_that_failed_or_was_stopped_goes_on(setting):
    for seed, (statuses, calls) in enumerate([
        (["Running", "Complete"], ["remove"]), (["Failed", "Running", "Complete"], ["remove", "start", "remove"]),
        (["Running", "Running", "Gone", "Running", "Complete"], ["remove", "start", "remove"]),
    ]):
        trainer = Scripted(*statuses)
        trainer.job = name = job_name("align.image", {"seed": seed}, {"0.features": fingerprint(setting.features)}, None)
        trainer.words = [[f"--{port}={setting.workspace}/jobs/{name}/{port}" for port in setting.outputs]]
        setting.run(trainer, {"seed": seed})
        assert trainer.calls == calls


def test_a_job_that_fails_is_told_with_its_cause_and_its_last_lines(setting, capsys):
    log = [f"line {number}" for number in range(300)] + ["anymal: error: align: batch_size = 3: does not divide", "ChildFailedError", "=" * 60]
    with pytest.raises(JobError, match=r"failed on node-0: align: batch_size = 3: does not divide \(its last lines are above\)"):
        setting.run(Scripted("Running", "Failed", log=log))
    assert "ChildFailedError" in capsys.readouterr().err
    assert not any(path.exists() for path in setting.outputs.values())
    with pytest.raises(JobError, match="failed on node-0: it printed nothing"):
        setting.run(Scripted("Failed"))


def test_a_cluster_that_is_away_is_waited_for_and_a_job_that_vanishes_is_told(setting, monkeypatch):
    trainer = Scripted("Running", "Complete")
    start = trainer.start

    def starting(*given: Any) -> None:
        start(*given)
        trainer.away = 3

    monkeypatch.setattr(trainer, "start", starting)
    setting.run(trainer)
    with pytest.raises(JobError, match="was deleted by somebody else"):
        setting.run(Scripted("Running", "Gone"), {"seed": 3})
    monkeypatch.setattr("anymal.jobs.PATIENCE", 0.05)
    lost = Scripted("Running")
    start = lost.start
    monkeypatch.setattr(lost, "start", lambda *given: (start(*given), setattr(lost, "away", 10**6)))
    with pytest.raises(JobError, match="the API is away"):
        setting.run(lost, {"seed": 4})


def test_what_is_missing_or_damaged_is_refused(setting, tmp_path):
    with pytest.raises(DataError, match=r"ended well, but .* holds no checkpoint, metrics; do its pods and this step mount the same workspace"):
        empty = Scripted("Complete")
        empty.start = lambda *_: setattr(empty, "job", "x")  # type: ignore[method-assign]
        setting.run(empty)
    (setting.features / "rows").write_text("9 9 9 9")
    with pytest.raises(DataError, match="does not match its manifest"):
        setting.run(Scripted("Complete"), {"seed": 5})
    with pytest.raises(ConfigError, match=r"workspace = .*nowhere: is no folder"):
        run_job("align.image", "align", {}, {}, {}, job=Job(**JOB, workspace=str(tmp_path / "nowhere")), trainer=Scripted("Complete"))
    with pytest.raises(DataError, match=r"--features .*gone"):
        run_job("align.image", "align", {}, {"features": tmp_path / "gone"}, {}, job=Job(**JOB, workspace=str(setting.workspace)),
                trainer=Scripted("Complete"))


# --- the command, with torchrun


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    return {"assets": make_assets(folder / "assets"), "features": make_features(folder / "features", {"train": 30, "val": 9, "test": 3})}


def words(folder: Path, inputs: Mapping[str, Path], **knobs: Any) -> list[str]:
    """The command line of align, without what launches it."""
    outputs = {name: folder / name for name in ("checkpoint", "plots", "metrics")}
    return ["--config", json.dumps({**ALIGN, **KNOBS, **knobs}),
            *(f"--{name}={path}" for name, path in {**inputs, **outputs}.items())]


def command(folder: Path, inputs: Mapping[str, Path], job: Mapping[str, Any], *more: str, **knobs: Any) -> list[str]:
    workspace = folder / "workspace"
    workspace.mkdir(exist_ok=True, parents=True)
    return [sys.executable, "-m", "anymal", "trainjob", "align", "--job", json.dumps(JOB | {"workspace": str(workspace)} | job), *more,
            *words(folder, inputs, **knobs)]


def environment(server: TrainerServer | None = None) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = os.environ | {"ANYMAL_TRACKING": "off", "OMP_NUM_THREADS": "1", "PATH": path}
    return found if server is None else found | {"KUBECONFIG": str(server.kubeconfig)}


def start(argv: Sequence[str], server: TrainerServer | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, env=environment(server), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def alone(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes."""
    folder = tmp_path_factory.mktemp("alone")
    done = start([sys.executable, "-m", "anymal", "align", *words(folder, inputs)])
    assert done.returncode == 0, done.stderr
    return folder


def same(one: Path, other: Path) -> None:
    """Figures and weights within 1e-4."""
    figures, others = (json.loads((folder / "metrics").read_text()) for folder in (one, other))
    assert figures["validation"] == pytest.approx(others["validation"], abs=1e-4)
    expected, found = (load_file(folder / "checkpoint" / "projector.safetensors") for folder in (one, other))
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        assert float((tensor - found[key]).abs().max()) < 1e-4, key


@pytest.mark.slow
def test_two_processes_of_the_sdks_local_backend_align_as_one(alone, inputs, tmp_path):
    output = tmp_path / "executor" / "output.json"
    artifacts = {name: {"artifacts": [{"name": name, "uri": f"s3://b/{name}"}]} for name in ("checkpoint", "plots", "metrics")}
    executor = json.dumps({"outputs": {"artifacts": artifacts, "outputFile": str(output)}})
    done = start(command(tmp_path, inputs, {}, "--backend", "local", "--executor-input", executor))
    assert done.returncode == 0, done.stderr
    same(alone, tmp_path)
    reported = json.loads(output.read_text())["artifacts"]
    assert reported["metrics"]["artifacts"][0]["metadata"]["validation.right"] == pytest.approx(
        json.loads((tmp_path / "metrics").read_text())["validation"]["right"])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[TrainerServer]:
    with TrainerServer(tmp_path) as server:
        yield server


NODES = {"nodes": 2, "processes": 1, "cpu": "4", "memory": "64Gi", "gpus": 8, "shared_memory": "16Gi", "node_selector": {"pool": "gpu"},
         "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
         "secrets": {"anymal-s3": {"AWS_ACCESS_KEY_ID": "AWS_ACCESS_KEY_ID"}, "hub": {"token": "HF_TOKEN"}}}


@pytest.mark.slow
def test_a_job_on_two_nodes_is_stopped_with_its_step_and_goes_on(alone, cluster, inputs, tmp_path):
    argv = command(tmp_path, inputs, NODES, "--image", "registry.example/anymal-train@sha256:1")
    with subprocess.Popen(argv, env=environment(cluster), stderr=subprocess.PIPE, text=True) as step:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and not list((tmp_path / "workspace").glob("jobs/*/.checkpoint.partial/state/latest/state.json")):
            assert step.poll() is None, step.stderr.read() if step.stderr else ""
            time.sleep(0.05)
        step.send_signal(signal.SIGTERM)
        _, errors = step.communicate(timeout=300)
    assert step.returncode == 75, errors
    assert "its state is kept in the workspace" in errors
    assert cluster.jobs == {} or all(job.deleted and not job.alive for job in cluster.jobs.values())
    (state,) = (tmp_path / "workspace").glob("jobs/*/.checkpoint.partial/state/latest/state.json")
    assert 1 <= json.loads(state.read_text())["step"] < KNOBS["steps"], "it was stopped in the middle"
    done = start(argv, cluster)
    assert done.returncode == 0, done.stderr
    first, second = cluster.created
    assert first == second, "the same step makes the same job"
    assert cluster.calls.count("DELETE /apis/trainer.kubeflow.org/v1alpha1/namespaces/anymal/trainjobs/" + first["metadata"]["name"]) == 2
    same(alone, tmp_path)


@pytest.mark.slow
def test_a_job_that_fails_fails_its_step_and_is_what_was_asked_for(cluster, inputs, tmp_path):
    done = start(command(tmp_path, inputs, NODES, "--image", "registry.example/anymal-train@sha256:1", batch_size=3, micro_batch_size=1), cluster)
    assert done.returncode == 2
    told = r"anymal: error: anymal-align-image-\w+: failed on node-[01]: batch_size = 3: does not divide among 2 processes; "
    assert re.search(told, done.stderr), done.stderr
    assert "the SDK passes no secrets on: the job has hub only if" in done.stderr
    assert not (tmp_path / "checkpoint").exists()
    (job,) = cluster.created
    trainer, (patch,) = job["spec"]["trainer"], job["spec"]["runtimePatches"]
    assert trainer["image"] == "registry.example/anymal-train@sha256:1"
    assert trainer["numNodes"] == 2
    assert trainer["command"] == ["torchrun", "--nproc-per-node=1", "-m", "anymal"]
    assert trainer["resourcesPerNode"]["requests"] == {"cpu": "4", "memory": "64Gi", "nvidia.com/gpu": 8}
    assert {entry["name"]: entry["value"] for entry in trainer["env"]} == {"ANYMAL_TRACKING": "off"}
    pods = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pods == {"nodeSelector": {"pool": "gpu"}, "tolerations": NODES["tolerations"],
                    "volumes": [{"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}}]}
    assert refused(job) is None
    for place in (job, job["metadata"], job["spec"], trainer, patch, pods, pods["volumes"][0]["emptyDir"], trainer["resourcesPerNode"]):
        place["unheardOf"] = "x"
        assert refused(copy.deepcopy(job)) is not None, place
        del place["unheardOf"]


@pytest.mark.slow
def test_what_is_wrong_is_told_before_anything_starts(cluster, inputs, tmp_path):
    cluster.applied = False
    done = start(command(tmp_path, inputs, NODES), cluster)
    assert done.returncode == 2
    assert "apply the manifests, which have the TrainingRuntime anymal-torch" in done.stderr
    nothing = {"assets": tmp_path / "assets", "features": tmp_path / "features"}
    for argv, sentence in (
        (command(tmp_path, nothing, {"nodes": 0}), "--job.nodes = 0: "),
        (command(tmp_path, nothing, {"node": 2}), "--job.node: unknown knob; did you mean 'nodes'?"),
        (command(tmp_path, nothing, {}, layers=0), "align.layers = 0: "),
        (command(tmp_path, nothing, {}), "no cluster: this is no pod, and there is no kubeconfig"),
    ):
        done = subprocess.run(argv, env=environment() | {"KUBECONFIG": str(tmp_path / "none")}, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert sentence in done.stderr
