"""Pipelines run in real containers on this machine: the same results as `dvc repro`, and what failures, kills and retries leave behind."""

import json
import os
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from kfp import compiler, dsl
from kfp.dsl import Artifact, Output

from anymal.config import as_text
from anymal.data.manifest import fingerprint
from anymal.errors import AnymalError
from components.images import TRAIN
from components.ingest import ingest
from pipelines.containers import Containers, Task, retries
from pipelines.local import IR, new_run, outputs_of, read_specification, run_compiled
from tests.engine import Engine, Images
from tests.graph import runs

pytestmark = pytest.mark.slow
USER = (1000, 1000) if os.getuid() == 0 else (os.getuid(), os.getgid())


def place_of(run: Any, specification: dict[str, Any]) -> str:
    """The task of a compiled pipeline that does what a run of dvc.yaml does, as its folder is called."""
    found = []
    for task in specification["root"]["dag"]["tasks"].values():
        component = task["componentRef"]["name"]
        label = specification["components"][component]["executorLabel"].removeprefix("exec-")
        config = task.get("inputs", {}).get("parameters", {}).get("config", {}).get("componentInputParameter")
        if (re.sub(r"-\d+$", "", label).replace("-", "_"), config) == run.place:
            found.append(component.removeprefix("comp-"))
    assert len(found) == 1, run.name
    return found[0]


@pytest.mark.timeout(4500)
def test_containers_give_what_dvc_gives_bit_for_bit_although_one_was_killed_while_it_trained(containers, road):
    place = containers.wait()
    specification = read_specification(place / IR)
    records = {record["task"]: record for record in json.loads((place / "run.json").read_text())}
    places = {name: place_of(run, specification) for name, run in runs().items()}
    assert {"preflight", *places.values()} == set(records) and len(records) == len(places) + 1
    different = []
    for name, run in runs().items():
        made = records[places[name]]["outputs"]
        assert set(made) == set(run.outputs), name
        different += [f"{name}.{port}" for port, path in run.outputs.items() if made[port] != fingerprint(road / path)]
    assert different == []
    assert containers.killed
    assert {name: record["attempts"] for name, record in records.items() if record["attempts"] > 1} == {containers.killed: 2}
    log = (place / "logs" / f"{containers.killed}.log").read_text()
    assert log.count("warm start: 100%") == 1  # the second container went on from the state of the first
    (registration,) = place.glob("outputs/*/register/registration")
    assert json.loads(registration.read_text())["uri"] == "models:/anymal@candidate"


@pytest.fixture
def run_pipeline(docker_engine: Engine, images: Images, tmp_path: Path):
    """Runs a pipeline in containers, without servers; they see the folder `data`. Gives its tasks and its folder, also after a failure."""

    def run_it(pipeline: Any, **arguments: Any) -> tuple[list[Task], Path, AnymalError | None]:
        place = new_run(tmp_path)
        compiler.Compiler().compile(pipeline, str(place / IR))
        (place / IR).write_text((place / IR).read_text().replace(TRAIN, images.names["train"]))
        done = Containers(retries(read_specification(place / IR)), place / "logs")
        try:
            run_compiled(place, arguments, done, environment={"HOME": "/tmp", "ANYMAL_TRACKING": "off", "ANYMAL_CACHE": "/tmp/cache"},
                         user=USER, mounted=[tmp_path / "data"])
        except AnymalError as error:
            return done.tasks, place, error
        return done.tasks, place, None

    (tmp_path / "data").mkdir()
    return run_it


def python(image: str, program: str, name: str = "step") -> Any:
    """A component that runs some Python with a folder for its output."""

    def step(made: Output[Artifact]):
        return dsl.ContainerSpec(image=image, command=["python3", "-c", program, made.path], args=[dsl.PIPELINE_TASK_EXECUTOR_INPUT_PLACEHOLDER])

    step.__name__ = name
    return dsl.container_component(step)


def test_a_task_that_exits_with_3_fails_the_run_with_its_message(run_pipeline, images):
    fails = python(images.names["data"], "import sys; print('half of the shards are missing', file=sys.stderr); sys.exit(3)", "fails")
    after = python(images.names["data"], "print('should not run')", "after")

    @dsl.pipeline(name="three")
    def three():
        after().after(fails())

    tasks, place, error = run_pipeline(three)
    assert str(error) == f"task fails ended with status 3: half of the shards are missing (all it said: {place / 'logs' / 'fails.log'})"
    assert [(task.name, task.status, task.attempts) for task in tasks] == [("fails", 3, 1)]


def test_a_stage_that_fails_in_the_middle_leaves_no_output(run_pipeline, tmp_path):
    """ingest has made one asset when it finds that the other is not what the lock says."""
    (tmp_path / "data" / "good.txt").write_text("good")
    (tmp_path / "data" / "bad.txt").write_text("changed")
    lock = tmp_path / "data" / "lock.yaml"
    lock.write_text("".join(f"{name}: {{kind: file, path: {tmp_path / 'data' / name}.txt, sha256: {sha256(name.encode()).hexdigest()}, "
                            "licence: {id: CC0-1.0}}\n" for name in ("good", "bad")))

    @dsl.pipeline(name="ingest-only")
    def ingest_only(lock: str, config: str):
        ingest(config=config, lock=dsl.importer(artifact_uri=lock, artifact_class=Artifact).output)

    config = {"seed": 0, "assets": ["good", "bad"], "sources": {}}
    _, place, error = run_pipeline(ingest_only, lock=str(lock), config=as_text(config))
    assert "task ingest ended with status 2: anymal: error: asset bad: what came has SHA-256" in str(error)
    assert list(place.glob("outputs/**/*.*")) == list(place.glob("outputs/**/assets*")) == []
    lock.write_text(lock.read_text().splitlines()[0])
    _, place, error = run_pipeline(ingest_only, lock=str(lock), config=as_text(config | {"assets": ["good"]}))
    assert error is None and list(outputs_of(place, "ingest")) == ["assets"]
    (made,) = place.glob("outputs/*/ingest/assets")
    assert (made / "good" / "good.txt").read_text() == "good" and (made.stat().st_uid, made.stat().st_gid) == USER


def test_a_task_that_was_killed_is_retried_as_often_as_the_pipeline_says_and_finds_its_partial_work(run_pipeline, images):
    program = """
import pathlib, sys
made = pathlib.Path(sys.argv[1])
made.parent.mkdir(parents=True, exist_ok=True)
with made.open("a") as stream:
    stream.write("x")
print(made.read_text())
sys.exit(137)
"""

    @dsl.pipeline(name="killed")
    def killed():
        python(images.names["data"], program, "twice")().set_retry(2)

    tasks, place, error = run_pipeline(killed)
    assert [(task.name, task.status, task.attempts) for task in tasks] == [("twice", 137, 3)]
    assert "task twice ended with status 137: xxx" in str(error)
    assert (place / "logs" / "twice.log").read_text().split() == ["x", "xx", "xxx"]


@pytest.mark.parametrize("verdict", ["passed", "failed"])
def test_what_follows_a_gate_runs_if_it_passed(run_pipeline, images, verdict):
    def gate(verdict: dsl.OutputPath(str), said: str):
        program = "import pathlib, sys; path = pathlib.Path(sys.argv[1]); path.parent.mkdir(parents=True); path.write_text(sys.argv[2])"
        return dsl.ContainerSpec(image=images.names["data"], command=["python3", "-c", program, verdict, said])

    behind = python(images.names["data"], "print('behind the gate')", "behind")

    @dsl.pipeline(name="gated")
    def gated():
        with dsl.If(dsl.container_component(gate)(said=verdict).outputs["verdict"] == "passed", name="gate-passed"):
            behind()

    tasks, _, error = run_pipeline(gated)
    assert error is None
    assert [task.name for task in tasks][1:] == (["behind"] if verdict == "passed" else [])
