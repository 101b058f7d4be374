"""Check before a run that all it needs is there; every problem is listed at once."""

from __future__ import annotations

import json
from pathlib import Path

import click

from anymal.__main__ import EXIT_ERROR, Place

PLACE = Place(path_type=Path)


@click.command("preflight", short_help="Check before a run that all it needs is there.")
@click.option("--config", required=True, metavar="FILE|JSON", help="A profile, or a whole one as JSON.")
@click.option("--stages", multiple=True, metavar="STAGE[,STAGE…]", help="Those that will run; all of the profile if not given.")
@click.option("--lock", type=click.Path(path_type=Path), default=Path("assets.lock.yaml"), show_default=True, metavar="FILE",
              help="The asset lock; read if ingest runs.")
@click.option("--input", "inputs", multiple=True, type=PLACE, metavar="PATH|s3://…",
              help="A folder or file that stages will read; its hashes are compared. May be repeated.")
@click.option("--output", "outputs", multiple=True, type=PLACE, metavar="PATH|s3://…", help="Where a stage will write. May be repeated.")
@click.option("--secret", "secrets", multiple=True, metavar="NAME", help="An environment variable that must be set. May be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(*, config: str, stages: tuple[str, ...], lock: Path, inputs: tuple[Path | str, ...], outputs: tuple[Path | str, ...],
            secrets: tuple[str, ...], as_json: bool) -> None:
    """Check before a run that all it needs is there: configuration, secrets, MLflow, servers, assets, inputs, outputs, room on the disks.

    Nothing is downloaded. All problems are listed; the exit status is 2 if there is one.
    """
    from anymal.preflight import Run, preflight
    from anymal.stage import read_profile

    names = tuple(name.strip().replace("-", "_") for given in stages for name in given.split(",") if name.strip())
    source = "--config" if config.lstrip().startswith("{") else config
    run = Run(read_profile(config), source, names, lock, inputs, outputs, secrets)
    findings = preflight(run)
    problems = [finding for finding in findings if finding.problem is not None]
    if as_json:
        click.echo(json.dumps({"problems": len(problems), "findings": [vars(finding) for finding in findings]}, indent=1))
    else:
        for finding in findings:
            click.echo(f"{'ok     ' if finding.problem is None else 'PROBLEM'} {finding.check:13} {finding.problem or finding.subject}")
        click.echo(f"{len(problems)} problems in {len(findings)} checks")
    if problems:
        raise SystemExit(EXIT_ERROR)
