"""A training stage as a job: several processes on one or more nodes run it together; this process starts them and waits.

The job's pods see the workspace and nothing else of the step that submits it: inputs are brought there by their content (`inputs/`), and the
job writes below `jobs/NAME/`, where its state is too when it is interrupted. Its name comes from stage, knobs, inputs and image: the same
step, tried again, follows the job that runs, goes on from the state of one that failed, or takes the outputs of one that is done.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from anymal.cluster import Label, Memory, Name, Resources, Toleration, Variable
from anymal.data.manifest import MANIFEST, fingerprint, verify_manifest
from anymal.data.workspace import bring, copy
from anymal.errors import AnymalError, ConfigError, DataError, Interrupted

TAIL = 200
"""Lines of a log in which the cause of a failure is looked for."""
SHOWN = 30
"""How many of them are shown."""
PATIENCE = 600.0
"""Seconds that the cluster's API may be away while a job runs."""
PAUSE = 5.0
"""Seconds between two looks at a job."""
DONE = "done.json"
OVER = {"Complete", "Failed"}


class Job(Resources):
    """What a job asks for: of each node what the profile's section `kubeflow` says, and where its pods see the workspace."""

    gpu_memory: Memory | None = None
    shared_memory: Memory | None = None
    node_selector: dict[Label, str] = Field(default_factory=dict)
    tolerations: list[Toleration] = Field(default_factory=list)
    secrets: dict[Name, dict[str, Variable]] = Field(default_factory=dict)
    workspace: str


class JobError(AnymalError):
    """The job failed, or Kubeflow Trainer cannot be used."""


@dataclass(frozen=True)
class State:
    """A job as Kubeflow Trainer describes it."""

    status: str
    """Created, Running, Complete or Failed."""
    nodes: Mapping[str, tuple[str, str]]
    """Node -> its pod and the pod's state."""


class Trainer(Protocol):
    """Where jobs run."""

    def find(self, name: str) -> State | None:
        """A job; None if there is none."""

    def start(self, name: str, words: Sequence[str], job: Job, image: str | None) -> None:
        """Start a job.

        Args:
            words: the command line that torchrun is to give to `python -m anymal`.
            image: to run it in; the runtime's if None.
        """

    def lines(self, name: str, node: str, *, follow: bool) -> Iterator[str]:
        """What a node has printed; with `follow`, until it ends."""

    def remove(self, name: str) -> None:
        """Stop a job, which saves its state, and remove it; returns when nothing of it runs any more."""


def job_name(label: str, knobs: Mapping[str, Any], hashes: Mapping[str, str], image: str | None) -> str:
    """The name of a job: the same for the same work.

    Args:
        label: of the run: `finetune`, `align.image`.
    """
    digest = hashlib.sha256(json.dumps([label, knobs, hashes, image]).encode()).hexdigest()
    readable = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:24]
    return f"anymal-{readable}-{digest[:10]}"  # JobSet makes longer names of it, which must stay below 63 characters


def run_job(label: str, stage: str, knobs: Mapping[str, Any], inputs: Mapping[str, Path | tuple[Path, ...]], outputs: Mapping[str, Path], *,
            job: Job, trainer: Trainer, image: str | None = None, pause: float = PAUSE) -> None:
    """Have a training stage run as a job, and bring its outputs to their paths.

    Args:
        label: what the run is called: `finetune`, `align.image`.
        stage: the stage's name.
        knobs: its section; the order of what it maps is kept, for stages may go by it.
        inputs: port -> path, or several.
        outputs: port -> path.
        pause: seconds between two looks at the job.

    Raises:
        Interrupted: on SIGTERM or SIGINT; the job was stopped, its state is kept, and the same call goes on from there.
        JobError: if the job fails, with the last lines of its log; or if Kubeflow Trainer refuses it or is away.
        DataError: if an input is missing or damaged, or the job left no whole output.
    """
    workspace = Path(job.workspace).absolute()  # the job has a working folder of its own
    if not workspace.is_dir() or not os.access(workspace, os.W_OK):
        raise ConfigError(f"--job workspace = {workspace}: is no folder that can be written; mount the workspace's volume there")
    given = [(port, path.absolute()) for port, value in inputs.items() for path in (value if isinstance(value, tuple) else (value,))]
    targets = {port: path.absolute() for port, path in outputs.items()}
    if missing := [f"--{port.replace('_', '-')} {path}" for port, path in given if not path.exists()]:
        raise DataError(f"{label}: input not found: {', '.join(missing)}; run the stage that makes it, or correct the path")
    hashes = {f"{number}.{port}": fingerprint(path) for number, (port, path) in enumerate(given)}
    name = job_name(label, knobs, hashes, image)
    folder = workspace / "jobs" / name
    made = {port: folder / port for port in outputs}
    if not _is_done(folder, made):
        places = [(port, bring(path, workspace, name)) for port, path in given]
        words = [stage.replace("_", "-"), "--config", json.dumps(dict(knobs)),
                 *(f"--{port.replace('_', '-')}={path}" for port, path in [*places, *made.items()])]
        folder.mkdir(parents=True, exist_ok=True)
        _run(name, words, job, trainer, image=image, pause=pause)
        _settle(name, folder, made)
    if trainer.find(name) is not None:
        trainer.remove(name)
    for port, path in targets.items():
        copy(made[port], path, name)


def _run(name: str, words: Sequence[str], job: Job, trainer: Trainer, *, image: str | None, pause: float) -> None:
    """See a job through to its end: one that runs already, or a new one."""
    with _stopped_by_signals():
        try:
            state, found = None, trainer.find(name)
            if found is not None and found.status != "Failed":
                _say(f"{name}: is there already ({found.status}) and is followed")
                state = _follow(name, trainer, pause)
            if state is None:
                if found is not None:
                    _say(f"{name}: an earlier try failed or was stopped; a new one goes on from its state")
                    trainer.remove(name)
                trainer.start(name, words, job, image)
                _say(f"{name}: started, {job.processes} processes on each of {job.nodes} nodes")
                state = _follow(name, trainer, pause)
            if state is None:
                raise JobError(f"{name}: was deleted by somebody else; its state is kept in the workspace, the same command goes on from there")
        except _Stopped:
            with contextlib.suppress(JobError):
                trainer.remove(name)
            raise Interrupted(f"{name}: stopped, and the job with it; its state is kept in the workspace, "
                              "the same command goes on from there") from None
    if state.status == "Failed":
        node, tail = _failure(name, state, trainer)
        print("\n".join(tail[-SHOWN:]), file=sys.stderr)
        said = [sentence[1] for line in tail if (sentence := re.match(r"(?:\[[^]]*\]:)?anymal: error: (.+)", line))]
        cause = said[0] if said else tail[-1] if tail else "it printed nothing"
        raise JobError(f"{name}: failed on {node}: {cause} (its last lines are above); mend the cause and run the same command, "
                       "which goes on from the state that was saved")


def _follow(name: str, trainer: Trainer, pause: float) -> State | None:
    """Show what a job prints until it is over; None if it is deleted meanwhile."""
    log, shown, heard = _Log(name, trainer), "", time.monotonic()
    while True:
        try:
            state = trainer.find(name)
        except JobError:
            if time.monotonic() - heard > PATIENCE:
                raise
            time.sleep(pause)
            continue
        heard = time.monotonic()
        if state is None:
            return None
        words = ", ".join([state.status, *(f"{node} {phase}" for node, (_, phase) in sorted(state.nodes.items()))])
        if words != shown:
            shown = words
            _say(f"{name}: {shown}")
        log.look(state)
        if state.status in OVER:
            log.join()
            return state
        time.sleep(pause)


class _Log:
    """Prints what the first node of a job prints, in a thread; a pod that takes the place of another is read as well."""

    def __init__(self, name: str, trainer: Trainer) -> None:
        self._name, self._trainer = name, trainer
        self._printed: dict[str, int] = {}
        self._ended: set[str] = set()
        self._thread: threading.Thread | None = None

    def look(self, state: State) -> None:
        """Begin to read, if there is something to be read that is not read yet."""
        node = min(state.nodes, default=None)
        if node is None or (self._thread is not None and self._thread.is_alive()):
            return
        pod, phase = state.nodes[node]
        if phase != "Pending" and pod not in self._ended:
            self._thread = threading.Thread(target=self._read, args=(node, pod), daemon=True)
            self._thread.start()

    def _read(self, node: str, pod: str) -> None:
        try:
            for number, line in enumerate(self._trainer.lines(self._name, node, follow=True)):
                if number >= self._printed.get(pod, 0):  # the connection may have broken before
                    print(line, file=sys.stderr, flush=True)
                    self._printed[pod] = number + 1
        except JobError as error:
            _say(str(error))
            return
        self._ended.add(pod)

    def join(self) -> None:
        """Wait for the last lines."""
        if self._thread is not None:
            self._thread.join(timeout=10)


def _failure(name: str, state: State, trainer: Trainer) -> tuple[str, list[str]]:
    """The node that failed, and the last lines of its log."""
    failed = sorted(node for node, (_, phase) in state.nodes.items() if phase == "Failed") or sorted(state.nodes) or ["node-0"]
    try:
        return failed[0], list(deque(trainer.lines(name, failed[0], follow=False), maxlen=TAIL))
    except JobError as error:
        return failed[0], [str(error)]


def _settle(name: str, folder: Path, made: Mapping[str, Path]) -> None:
    """Check what the job has written, and note that it is done."""
    if absent := [port for port, path in made.items() if not path.exists()]:
        raise DataError(f"{name}: ended well, but {folder} holds no {', '.join(absent)}; do its pods and this step mount the same workspace?")
    for path in made.values():
        if (path / MANIFEST).is_file():
            verify_manifest(path)
    temporary = folder / f".{DONE}.partial"
    temporary.write_text(json.dumps({port: fingerprint(path) for port, path in made.items()}, sort_keys=True))
    temporary.replace(folder / DONE)


def _is_done(folder: Path, made: Mapping[str, Path]) -> bool:
    """Whether an earlier job has left all outputs whole."""
    note = folder / DONE
    if not note.is_file() or not all(path.exists() for path in made.values()):
        return False
    return bool(json.loads(note.read_text()) == {port: fingerprint(path) for port, path in made.items()})


def _say(text: str) -> None:
    print(f"anymal: {text}", file=sys.stderr, flush=True)


class _Stopped(BaseException):
    """SIGTERM or SIGINT came."""


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Raise `_Stopped` at the first SIGTERM or SIGINT; what comes after it is in the way of cleaning up."""

    def stop(*_: object) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        raise _Stopped

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
