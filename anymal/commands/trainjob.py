"""Run a training stage as a job of Kubeflow Trainer, on one node or several, and wait for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


class Stages(click.Group):
    """The stages that several processes may run together; imports only the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from anymal.stage import load_stage, stage_names

        return [name.replace("_", "-") for name in stage_names() if load_stage(name).distributed]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        from anymal.stage import stage_names

        name = cmd_name.replace("-", "_")
        return _stage_command(name) if name in stage_names() else None


def _stage_command(name: str) -> click.Command | None:
    from anymal.__main__ import stage_options
    from anymal.config import check, read_json
    from anymal.executor import write_executor_output
    from anymal.profile import read_config
    from anymal.stage import label, load_stage

    stage = load_stage(name)
    if not stage.distributed:
        return None

    def run(*, config: str, job: str, image: str | None, backend: str, executor_input: str | None, modality: str | None = None, **ports: Any) -> None:
        from anymal.jobs import Job, run_job
        from anymal.trainjob import BACKENDS

        knobs = read_config(stage, config, modality)
        outputs: dict[str, Path] = {port: ports[port] for port in stage.outputs}
        run_job(label(stage, knobs), name, knobs.model_dump(mode="json"), {port: ports[port] for port in stage.inputs}, outputs,
                job=check(Job, read_json(job, "--job"), "--job"), trainer=BACKENDS[backend](), image=image)
        if executor_input is not None:
            write_executor_output(json.loads(executor_input), outputs)

    options = [
        click.Option(["--job"], required=True, metavar="JSON", help="Nodes, processes, resources of each node, and where the workspace is; "
                     "as a stage's part of the profile's section kubeflow (docs/submit.md)."),
        click.Option(["--image"], help="Image that the job runs.  [default: the runtime's]"),
        click.Option(["--backend"], type=click.Choice(["kubernetes", "local"]), default="kubernetes", show_default=True,
                     help="Kubeflow Trainer, or processes of this machine."),
    ]
    return click.Command(name.replace("_", "-"), params=[*options, *stage_options(stage, s3=False)], callback=run,
                         help=f"{stage.summary}\n\nAs a job of Kubeflow Trainer; ports are paths of this machine.")


@click.command("trainjob", cls=Stages, short_help="Run a training stage as a job of Kubeflow Trainer.")
def command() -> None:
    """Run a training stage as a job of Kubeflow Trainer, and wait for it.

    The command line of the stage follows: `anymal trainjob align --job '{"nodes": 2, …}' --config params.yaml --modality image …`. The same
    command again follows a job that runs, and goes on from the state of one that was stopped or failed.
    """
