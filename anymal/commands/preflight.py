"""Check before a run that all it needs is there; every problem is listed at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from anymal.__main__ import Place
from anymal.errors import EXIT_ERROR

PLACE = Place(path_type=Path)


class _Uri(Place):
    """A path, or an address of any kind, which stays text."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if isinstance(value, str) and "://" in value else super().convert(value, param, ctx)


@click.command("preflight", short_help="Check before a run that all it needs is there.")
@click.option("--config", metavar="FILE|JSON", help="A profile, or a whole one as JSON.")
@click.option("--section", "sections", multiple=True, nargs=2, metavar="NAME JSON",
              help="One section instead (align.audio), as Kubeflow gives it. May be repeated, also for one name.")
@click.option("--stages", multiple=True, metavar="STAGE[,STAGE…]", help="Those that will run; all of the profile if not given.")
@click.option("--lock", type=PLACE, default=Path("assets.lock.yaml"), show_default=True, metavar="FILE|s3://…",
              help="The asset lock; read if ingest runs.")
@click.option("--input", "inputs", multiple=True, type=_Uri(path_type=Path), metavar="PATH|s3://…",
              help="A folder or file that stages will read; its hashes are compared. May be repeated.")
@click.option("--output", "outputs", multiple=True, type=PLACE, metavar="PATH|s3://…", help="Where a stage will write. May be repeated.")
@click.option("--secret", "secrets", multiple=True, metavar="NAME", help="An environment variable that must be set. May be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(*, config: str | None, sections: tuple[tuple[str, str], ...], stages: tuple[str, ...], lock: Path | str,
            inputs: tuple[Path | str, ...], outputs: tuple[Path | str, ...], secrets: tuple[str, ...], as_json: bool) -> None:
    """Check before a run that all it needs is there: configuration, secrets, MLflow, servers, assets, inputs, outputs, room on the disks.

    Nothing is downloaded. All problems are listed; the exit status is 2 if there is one.
    """
    from anymal.preflight import Run, preflight
    from anymal.profile import gathered, read_profile

    if (config is None) == (not sections):
        raise click.UsageError("give either --config or --section")
    names = tuple(name.strip().replace("-", "_") for given in stages for name in given.split(",") if name.strip())
    profile, *variants = [read_profile(config)] if config is not None else gathered(sections)
    source = "--section" if config is None else "--config" if config.lstrip().startswith("{") else config
    run = Run(profile, source, names, lock, inputs, outputs, secrets, tuple(variants))
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
