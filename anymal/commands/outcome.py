"""Tell MLflow how a run of a pipeline ended."""

from __future__ import annotations

import json

import click


@click.command("outcome", short_help="Tell MLflow how a run of a pipeline ended.")
@click.option("--status", required=True, metavar="JSON", help="Kubeflow's final status of the run: `state`, and `error` with `code` and `message`.")
@click.option("--graph-run", envvar="ANYMAL_GRAPH_RUN", metavar="NAME", help="The graph run whose stages it ends.  [default: $ANYMAL_GRAPH_RUN]")
def command(*, status: str, graph_run: str | None) -> None:
    """Tell MLflow how a run of a pipeline ended: tags `anymal.outcome` and `anymal.error` of the run that its stages have as their parent."""
    from anymal import tracking
    from anymal.errors import ConfigError

    try:
        ended = json.loads(status)
    except ValueError as error:
        raise ConfigError(f"--status: not valid JSON: {error}") from error
    if not isinstance(ended, dict) or not isinstance(ended.get("state"), str):
        raise ConfigError(f"--status {status}: has no text 'state'; give what Kubeflow passes to an exit task")
    if not graph_run:
        raise ConfigError("--graph-run: not given, and ANYMAL_GRAPH_RUN is not set; name the graph run")
    trouble = ended.get("error")
    message = trouble.get("message") if isinstance(trouble, dict) else None
    click.echo(f"{graph_run}: {ended['state']}{f': {message}' if message else ''}")
    if tracking.enabled():
        tracking.record_outcome(graph_run, ended["state"], message)
