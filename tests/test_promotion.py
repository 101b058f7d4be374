"""The promotion drill on a real MLflow server: who becomes champion, who is refused and why, the way back, two at once, and one that is killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from anymal import promotion, registry
from anymal.__main__ import cli
from anymal.data.manifest import sha256_of
from anymal.errors import BundleError
from anymal.gates import rules_of
from anymal.model.bundle import write_bundle
from anymal.registry import standing_of
from tests import planted
from tests.conftest import Server
from tests.model.test_bundle import INFERENCE

pytestmark = pytest.mark.slow
SAFE = [*planted.RULES["floors"], {"figure": "safety.text.auroc", "part": "low", "limit": 0.9}]
FORK = multiprocessing.get_context("fork")
"""MLflow's sessions are made anew in a forked process."""


AUROC = {"value": 0.8, "low": 0.7, "high": 0.9, "n": 100}
MADE: dict[str, dict[str, Any]] = {
    "fair": {"share": 0.6}, "good": {"share": 0.65}, "better": {"share": 0.7}, "best": {"share": 0.75}, "blind": {"share": 0.8, "blind": True},
    "unsafe": {"share": 0.8, "safety": {"text": {"auroc": AUROC}}}, "damaged": {"share": 0.8}, "bare": {"share": 0.65}}
"""Versions: the share of the samples that they are right on, and what else is the matter with them; `bare` has neither tags nor evidence."""


@pytest.fixture(scope="module")
def stock(session_server: Server, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a running server with the versions of `MADE`: to register one takes seconds, so the tests take copies of these."""
    if session_server.process is None:
        session_server.start()
    root = tmp_path_factory.mktemp("stock")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", session_server.uri)
        for name, settings in MADE.items():
            put(root / name, tiny_model, lineage=name != "bare", **settings)
        damage(tmp_path_factory.getbasetemp(), registry.find_version(f"models:/stock/{number_of('damaged')}").tags["bundle_sha256"])
    yield session_server.uri


def put(root: Path, tiny_model: Path, *, share: float, blind: bool = False, safety: Mapping[str, Any] | None = None, lineage: bool) -> None:
    """Register a version."""
    evidence = planted.write(root / "evidence", planted.answers(share), blind=blind, safety=safety)
    inputs = {"checkpoints.0": "c" * 64, "image.statistics": "d" * 64, **{path.stem: sha256_of(path) for path in evidence.values()}}
    write_bundle(root / "bundle", checkpoints=[tiny_model / "models/checkpoints/image"], assets=tiny_model / "data/assets", inference=INFERENCE,
                 card="# Card\n", provenance={"inputs": inputs, "name": root.name})
    tags = {f"input.{key}": digest for key, digest in inputs.items()} if lineage else {}
    registry.register_bundle(root / "bundle", name="stock", alias="candidate", metrics={}, tags=tags, evidence=evidence if lineage else {})


def damage(temporary: Path, digest: str) -> None:
    """Remove a file of a bundle where the server keeps it."""
    found = {path.resolve() for path in temporary.glob("mlflow-server*/artifacts/**/bundle/manifest.json") if sha256_of(path) == digest}
    (manifest,) = found
    (manifest.parent / "image" / "projector.safetensors").unlink()


def number_of(name: str) -> int:
    """Of a version of the stock."""
    return list(MADE).index(name) + 1


@pytest.fixture
def drill(stock: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Drill:
    """A registered model of this test's own on the server."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stock)
    monkeypatch.setenv("ANYMAL_CACHE", str(tmp_path / "cache"))
    name = re.sub(r"[^a-z]+", "-", request.node.name.removeprefix("test_"))[:40].strip("-")
    return Drill(tmp_path, f"{name}-{uuid.uuid4().hex[:6]}")


class Drill:
    """Promotes versions with planted evidence through the command line."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name

    def add(self, *names: str) -> list[int]:
        """Copies of versions of the stock."""
        return [int(client_of().copy_model_version(f"models:/stock/{number_of(name)}", self.name).version) for name in names]

    def run(self, *words: str) -> tuple[int, str]:
        """Exit status and output of `anymal promote`."""
        done = CliRunner().invoke(cli, ["promote", *words], catch_exceptions=False)
        return done.exit_code, done.output

    def promote(self, version: int, **changes: Any) -> tuple[int, str]:
        """`anymal promote models:/NAME/VERSION`, with some rules changed."""
        return self.run(f"models:/{self.name}/{version}", "--config", json.dumps(planted.RULES | changes))

    def roll_back(self, reason: str = "it answers in riddles") -> tuple[int, str]:
        """`anymal promote models:/NAME --rollback`."""
        return self.run(f"models:/{self.name}", "--rollback", "--reason", reason)

    @property
    def champion(self) -> int | None:
        """Where the alias points."""
        found = standing_of(self.name).champion
        return None if found is None else found.number

    @property
    def ledger(self) -> list[tuple[str, int | None, int]]:
        """All decisions: what, from, to."""
        return [(entry.decision, entry.origin, entry.target) for entry in sorted(standing_of(self.name).entries, key=lambda entry: entry.number)]

    def tags(self, version: int) -> Mapping[str, str]:
        """Of a version."""
        return registry.find_version(f"models:/{self.name}/{version}").tags


def refusals(output: str) -> list[str]:
    """Rules that refused."""
    return [line.split(" ")[2].rstrip(":") for line in output.splitlines() if line.startswith("- ✗ ")]


def test_the_better_model_is_promoted_and_all_others_are_refused_with_every_reason(drill: Drill):
    first, better, worse = drill.add("fair", "better", "good")
    status, said = drill.promote(first)
    assert status == 0 and "there is no champion yet to fall behind" in said and drill.champion == first

    status, said = drill.run(f"models:/{drill.name}/{better}", "--config", json.dumps(planted.RULES), "--dry-run")
    assert status == 0 and "nothing was recorded" in said and drill.champion == first and len(drill.ledger) == 1
    status, said = drill.promote(better)
    assert status == 0 and "0.7 against 0.6 on 400 samples" in said and drill.champion == better
    status, said = drill.promote(better)
    assert status == 0 and "is champion already" in said and len(drill.ledger) == 2

    status, said = drill.promote(worse)
    assert (status, refusals(said)) == (3, ["regression"])
    assert "by more than the margin of 0.02" in drill.tags(worse)["promotion.reasons"] and drill.tags(worse)["promotion.decision"] == "refused"
    blind, unsafe, damaged, bare = drill.add("blind", "unsafe", "damaged", "bare")
    kubeflow_is_told(drill, blind)

    status, said = drill.promote(worse, floors=SAFE)
    assert (status, refusals(said)) == (3, ["floor", "regression"]) and "safety.text.auroc: its low was not measured" in said
    status, said = drill.promote(unsafe, floors=SAFE)
    assert (status, refusals(said)) == (3, ["floor"]) and "safety.text.auroc: low 0.7 is below the floor of 0.9" in said

    status, said = drill.promote(unsafe, modalities=["image", "audio"])
    assert (status, refusals(said)) == (3, ["bundle", "lineage"]) and "but not audio" in said and "no SHA-256 of audio.statistics" in said
    status, said = drill.promote(damaged)
    assert (status, refusals(said)) == (3, ["bundle"]) and "missing image/projector.safetensors" in said
    status, said = drill.promote(bare)
    assert status == 3 and set(refusals(said)) == {"floor", "ceiling", "grounding", "regression", "lineage"}
    assert "evidence/samples.jsonl does not go with the version" in said and "no SHA-256 of checkpoints, image.statistics" in said

    assert drill.champion == better
    assert [decision for decision, _, _ in drill.ledger] == ["promoted"] * 2 + ["refused"] * 7
    assert drill.ledger[:2] == [("promoted", None, first), ("promoted", first, better)]
    document = document_of(drill, 3)
    assert document["decision"] == "refused" and document["champion"]["version"] == better and document["rules"] == planted.RULES
    assert [result["rule"] for result in document["results"] if not result["passed"]] == ["regression"]


def kubeflow_is_told(drill: Drill, version: int) -> None:
    """As its component runs the command: a refusal is no error there."""
    files = {name: drill.folder / "out" / name for name in ("decision", "report", "verdict")}
    (drill.folder / "registration").write_text(json.dumps({"name": drill.name, "version": version}))
    artifacts = {name: {"artifacts": [{"name": name, "uri": f"s3://bucket/{name}", "metadata": {}}]} for name in ("decision", "report")}
    given = {"outputs": {"artifacts": artifacts, "outputFile": str(drill.folder / "out" / "output.json")}}
    status, said = drill.run("--registration", str(drill.folder / "registration"), "--config", json.dumps(planted.RULES), "--executor-input",
                             json.dumps(given), *(word for name, path in files.items() for word in (f"--{name}", str(path))))
    assert (status, refusals(said)) == (0, ["grounding"]) and files["verdict"].read_text() == "refused"
    assert json.loads(files["decision"].read_text())["candidate"]["version"] == version and files["report"].read_text() in said
    assert json.loads((drill.folder / "out" / "output.json").read_text())["artifacts"]["report"] == artifacts["report"]


def document_of(drill: Drill, number: int) -> dict[str, Any]:
    """The decision document of an entry of the ledger, as anyone gets it."""
    import mlflow

    (entry,) = [entry for entry in standing_of(drill.name).entries if entry.number == number]
    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    return dict(mlflow.artifacts.load_dict(f"runs:/{entry.run}/decision/decision.json"))


def test_roll_backs_lead_along_the_recorded_champions(drill: Drill):
    one, two, three = drill.add("fair", "good", "better")
    for version in (one, two, three):
        assert drill.promote(version)[0] == 0
    status, said = drill.run(f"models:/{drill.name}", "--rollback", "--reason", "x", "--dry-run")
    assert status == 0 and f"Rolled back to version {two}" in said and drill.champion == three
    assert drill.roll_back()[0] == 0 and drill.champion == two
    assert drill.tags(two)["promotion.decision"] == "rolled back" and "it answers in riddles" in drill.tags(two)["promotion.reasons"]
    assert drill.roll_back()[0] == 0 and drill.champion == one
    with pytest.raises(BundleError, match="no earlier champion is recorded"):
        promotion.roll_back(drill.name, reason="x", dry_run=False)
    assert drill.promote(three)[0] == 0 and drill.champion == three
    assert drill.roll_back()[0] == 0 and drill.champion == one, "the champion before, not the version before"
    with pytest.raises(BundleError, match="write models:/anymal, without alias or version"):
        CliRunner().invoke(cli, ["promote", f"models:/{drill.name}@champion", "--rollback", "--reason", "x"], catch_exceptions=False,
                           standalone_mode=False)


def test_a_champion_made_by_hand_is_named_and_one_without_evidence_cannot_be_compared_with(drill: Drill):
    measured, bare, better = drill.add("fair", "bare", "better")
    client = client_of()
    run = client.create_run("0").info.run_id
    foreign = client.create_model_version(drill.name, f"runs:/{run}/model", run_id=run).version
    with pytest.raises(BundleError, match="was not registered by anymal"):
        promotion.promote(f"models:/{drill.name}/{foreign}", rules_of(planted.RULES), dry_run=False)
    client.set_registered_model_alias(drill.name, "champion", foreign)
    status, said = drill.promote(better)
    assert (status, refusals(said)) == (3, ["regression"]) and "was registered without evidence" in said
    client.set_registered_model_alias(drill.name, "champion", str(bare))
    status, said = drill.promote(better)
    assert (status, refusals(said)) == (3, ["regression"]) and "was registered without evidence" in said and "made so by hand" in said
    client.set_registered_model_alias(drill.name, "champion", str(measured))
    status, said = drill.promote(better)
    assert status == 0 and drill.champion == better
    assert drill.roll_back()[0] == 0 and drill.champion == measured, "the promotion recorded whom it replaced"
    client.delete_registered_model_alias(drill.name, "champion")
    assert drill.promote(better)[0] == 0 and drill.champion == better


def client_of() -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


def start(work: Callable[[], object]) -> Any:
    """A process of its own that does this."""
    process = FORK.Process(target=work)
    process.start()
    return process


def wait_for(*paths: Path) -> None:
    deadline = time.monotonic() + 60
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, paths
        time.sleep(0.01)


def test_of_two_at_once_one_wins(drill: Drill, monkeypatch: pytest.MonkeyPatch):
    """Two processes have judged on the same standing before either decides."""
    champion, *versions = drill.add("fair", "better", "best")
    assert drill.promote(champion)[0] == 0
    record, marks = registry.record, {version: drill.folder / f"judged-{version}" for version in versions}

    def together(version: registry.Version, **rest: Any) -> Any:
        marks[version.number].touch()
        wait_for(*marks.values())
        return record(version, **rest)

    monkeypatch.setattr(registry, "record", together)

    def compete(version: int) -> None:
        made = promotion.promote(f"models:/{drill.name}/{version}", rules_of(planted.RULES), dry_run=False)
        (drill.folder / f"outcome-{version}").write_text(f"{made.decision}\n{made.report}")

    processes = [start(lambda version=version: compete(version)) for version in versions]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    said = {version: (drill.folder / f"outcome-{version}").read_text() for version in versions}
    (winner,) = [version for version in versions if said[version].startswith("promoted\n")]
    (loser,) = [version for version in versions if said[version].startswith("refused\n")]
    assert drill.champion == winner and registry.OVERTAKEN in said[loser]
    assert sorted(drill.ledger[1:]) == sorted([("promoted", champion, winner), ("refused", champion, loser)])
    assert drill.tags(loser)["promotion.decision"] == "refused"
    number = next(entry.number for entry in standing_of(drill.name).entries if entry.target == loser)
    assert document_of(drill, number)["decision"] == "refused" and registry.OVERTAKEN in document_of(drill, number)["reasons"]


@pytest.mark.parametrize("place", ["_create_model", "_follow", "_settle"])
def test_one_that_is_killed_half_way_is_finished_or_forgotten_by_the_next(drill: Drill, monkeypatch: pytest.MonkeyPatch, place: str):
    """Before the decision is in the ledger, before the alias has moved, and before the version says so."""
    one, two, three = drill.add("fair", "better", "best")
    assert drill.promote(one)[0] == 0

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patched:
        patched.setattr(registry, place, die)
        process = start(lambda: drill.promote(two))
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
    assert drill.champion == (two if place == "_settle" else one)
    decided = place != "_create_model"
    assert (standing_of(drill.name).unfinished is not None) is decided
    status, said = drill.promote(three)
    assert status == 0 and drill.champion == three
    assert f"Champion is version {two if decided else one}." in said
    assert drill.ledger == [("promoted", None, one), *([("promoted", one, two)] if decided else []), ("promoted", two if decided else one, three)]
    assert ("promotion.decision" in drill.tags(two)) is decided
    assert drill.roll_back()[0] == 0 and drill.champion == (two if decided else one)


def test_one_that_was_held_up_does_not_undo_what_was_decided_since(drill: Drill, monkeypatch: pytest.MonkeyPatch):
    """A process stalls after its decision and before it moves the alias; the next finishes for it and decides anew; then the first goes on."""
    one, two, three = drill.add("fair", "better", "best")
    assert drill.promote(one)[0] == 0
    stalled, go = drill.folder / "stalled", drill.folder / "go"

    def late() -> None:
        from mlflow.tracking import MlflowClient

        move = MlflowClient.set_registered_model_alias

        def stall(*given: Any) -> None:
            if not stalled.exists():
                stalled.touch()
                wait_for(go)
            move(*given)

        with monkeypatch.context() as patched:
            patched.setattr(MlflowClient, "set_registered_model_alias", stall)
            drill.promote(two)

    process = start(late)
    wait_for(stalled)
    assert drill.champion == one
    assert drill.promote(three)[0] == 0 and drill.champion == three
    go.touch()
    process.join(120)
    assert process.exitcode == 0
    assert drill.champion == three and not standing_of(drill.name).by_hand
    assert drill.ledger == [("promoted", None, one), ("promoted", one, two), ("promoted", two, three)]
