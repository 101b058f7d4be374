"""Tasks of a local run as containers: KFP's DockerRunner says what to start; exit statuses are kept and killed tasks retried here."""

from __future__ import annotations

import codecs
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anymal.errors import EXIT_INTERRUPTED, ConfigError

CONDITION = re.compile(r"inputs\.parameter_values\['pipelinechannel--(.+)'\] == '([^']*)'")
"""As kfp compiles `task.outputs["output"] == "text"`."""
KILLED = 128
"""From this exit status on, a signal ended the process (137: killed, such as for want of memory)."""
LABEL = "anymal.task"
"""Of each container: `docker ps --filter label=anymal.task` lists those that run."""
STOP_SECONDS = 30
"""How long a stage that is told to stop may take to save its progress."""


@dataclass(frozen=True)
class Task:
    """A task that was run."""

    name: str
    """As the pipeline's components are called: `align-2`."""
    status: int
    """Exit status of its last container."""
    attempts: int
    seconds: float
    """From the start of its first container to the end of its last."""
    log: Path
    """What its containers printed."""

    @property
    def message(self) -> str:
        """The error that it ended with, in one line; or the last line that it printed."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [number for number, line in enumerate(lines) if line.startswith("anymal: ")]
        return " ".join(lines[errors[-1]:] if errors else lines[-1:]) or "it printed nothing"


class Containers:
    """Runs the containers of a pipeline's tasks, one after the other.

    A container that was killed, or that saved its progress and asks to be run again, is run again with the same command and so the same output
    folders, as often as the pipeline says; a resumable stage goes on there. Other failures would come again and are not repeated.
    """

    def __init__(self, retries: Mapping[str, int], logs: Path) -> None:
        """
        Args:
            retries: task -> how often the pipeline retries it.
            logs: folder for `TASK.log`.
        """
        self._retries, self._logs = retries, logs
        self.tasks: list[Task] = []

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let KFP's DockerRunner run containers by this.

        KFP 2.16's own function starts containers that the engine removes when they end, and takes a status which it cannot read any more for success;
        it retries nothing, and leaves the container running when it is interrupted. And it finds no condition of `dsl.If` to hold.
        """
        from kfp.local import docker_task_handler
        from kfp.local.orchestrator.enhanced_dag_orchestrator import ConditionEvaluator

        originals = docker_task_handler.run_docker_container, ConditionEvaluator.evaluate_condition
        docker_task_handler.run_docker_container, ConditionEvaluator.evaluate_condition = self.run, staticmethod(holds)
        try:
            yield
        finally:
            docker_task_handler.run_docker_container, ConditionEvaluator.evaluate_condition = originals[0], staticmethod(originals[1])

    def run(self, client: Any, image: str, command: Sequence[str], volumes: Mapping[str, Any], **arguments: Any) -> int:
        """Run a task to its end and say its exit status; called by KFP."""
        name = task_name(command)
        log, started, attempts = self._logs / f"{name}.log", time.monotonic(), 0
        while True:
            attempts += 1
            status = _run(client, log, image=image, command=list(command), volumes=dict(volumes), labels={LABEL: name}, **arguments)
            again = (status >= KILLED or status == EXIT_INTERRUPTED) and attempts <= self._retries.get(name, 0)
            if not again:
                break
            print(f"{name}: ended with status {status}; attempt {attempts + 1} goes on from there", flush=True)
        self.tasks.append(Task(name, status, attempts, time.monotonic() - started, log))
        return status


def _run(client: Any, log: Path, **arguments: Any) -> int:
    """Run one container and say its exit status; what it prints is shown and added to its log."""
    container = client.containers.run(detach=True, **arguments)
    try:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        with log.open("a", encoding="utf-8") as stream:
            for piece in container.logs(stream=True):
                text = decoder.decode(piece)
                stream.write(text)
                for line in text.splitlines():
                    print(line, flush=True)
        return int(container.wait()["StatusCode"])
    except BaseException:
        container.stop(timeout=STOP_SECONDS)
        raise
    finally:
        container.remove(force=True)


def task_name(command: Sequence[str]) -> str:
    """The task that a command belongs to: the folder of its outputs; without outputs, what the command is called."""
    for word in command:
        if word.startswith("{") and '"outputFile"' in word:
            return Path(json.loads(word)["outputs"]["outputFile"]).parent.name
    return command[1] if len(command) > 1 else command[0]


def holds(condition: str, outputs: Any) -> bool:
    """Whether a condition of a compiled pipeline holds: that an output of a task is a certain text.

    Args:
        outputs: kfp's store of what tasks gave out.

    Raises:
        ConfigError: for any other condition, so that nothing is skipped in silence.
    """
    if found := CONDITION.fullmatch(condition):
        channel, wanted = found.groups()
        for place in (number for number, letter in enumerate(channel) if letter == "-"):
            with suppress(ValueError):  # there is no such task, or it has no such output
                return bool(outputs.get_task_output(channel[:place], channel[place + 1:]) == wanted)
    raise ConfigError(f"{condition}: a condition that local runs cannot judge; compare an output of a task with a text")


def retries(specification: Mapping[str, Any]) -> dict[str, int]:
    """Task -> how often a compiled pipeline retries it; tasks are called as their components are."""
    dags = [specification["root"]["dag"], *(part["dag"] for part in specification.get("components", {}).values() if "dag" in part)]
    return {task["componentRef"]["name"].removeprefix("comp-"): int(task.get("retryPolicy", {}).get("maxRetryCount", 0))
            for dag in dags for task in dag["tasks"].values()}
