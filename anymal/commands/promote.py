"""Make a registered version champion if every gate passes, or refuse it with every reason."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from anymal.gates import Rules
    from anymal.guard_gates import GuardRules

FILE = click.Path(path_type=Path)
EXIT_REFUSED = 3
"""Judged and refused; an error is 2."""


@click.command("promote", short_help="Make a registered version champion, or refuse it with every reason.")
@click.argument("reference", required=False, metavar="models:/NAME@ALIAS|models:/NAME/VERSION|models:/NAME")
@click.option("--registration", type=FILE, metavar="FILE", help="What `register` wrote, instead of an address.")
@click.option("--config", metavar="FILE|JSON", help="A profile (its section `promote` is read), or the section itself as JSON.")
@click.option("--guard", is_flag=True, help="It is a guard: the section is `promote_guard`.")
@click.option("--rollback", is_flag=True, help="Make the previous champion of models:/NAME champion again.")
@click.option("--reason", metavar="TEXT", help="Why it is rolled back; recorded with it.")
@click.option("--dry-run", is_flag=True, help="Say what would be decided; nothing is recorded, nothing moved.")
@click.option("--decision", type=FILE, metavar="FILE", help="Where to write the decision document, as JSON.")
@click.option("--report", type=FILE, metavar="FILE", help="Where to write it as Markdown.")
@click.option("--verdict", type=FILE, metavar="FILE", help="Where to write `promoted` or `refused`; a refusal then is no error.")
@click.option("--executor-input", metavar="JSON", help="Given by Kubeflow's launcher; where to report the outputs.")
def command(*, reference: str | None, registration: Path | None, config: str | None, guard: bool, rollback: bool, reason: str | None,
            dry_run: bool, decision: Path | None, report: Path | None, verdict: Path | None, executor_input: str | None) -> None:
    """Make a registered version champion if every gate of the profile passes, or refuse it with every reason.

    The decision is recorded in MLflow: as tags of the version, and as a document in the ledger of decisions, where it stays. The exit status is
    0 if the version is champion now, 3 if it was refused, 2 if it could not be judged. `--rollback models:/NAME` goes back to the champion
    before the present one, and again to the one before that.
    """
    from anymal.executor import write_executor_output
    from anymal.ledger import REFUSED
    from anymal.promotion import dump, promote, roll_back

    if (reference is None) == (registration is None):
        raise click.UsageError("give either an address such as models:/anymal@candidate or --registration")
    if rollback:
        if reference is None or config is not None or guard or verdict is not None or not reason:
            raise click.UsageError("--rollback takes models:/NAME and --reason, and neither --registration, --config, --guard nor --verdict")
        made = roll_back(_model(reference), reason=reason, dry_run=dry_run)
    else:
        if config is None or reason is not None:
            raise click.UsageError("--config is needed, and --reason belongs to --rollback")
        made = promote(reference or _registered(registration), _rules(config, guard), dry_run=dry_run)
    click.echo(made.report)
    if dry_run:
        click.echo("Dry run: nothing was recorded, nothing moved.")
    outputs = {name: path for name, path in (("decision", decision), ("report", report)) if path is not None}
    for path, content in ((decision, dump(made.document)), (report, made.report), (verdict, made.decision)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
    if executor_input is not None:
        write_executor_output(json.loads(executor_input), outputs)
    if made.decision == REFUSED and verdict is None:
        raise SystemExit(EXIT_REFUSED)


def _model(reference: str) -> str:
    from anymal.errors import BundleError

    match = re.fullmatch(r"models:/([^/@']+)", reference)
    if match is None:
        raise BundleError(f"{reference}: a roll-back goes to the champion before, whichever that was; write models:/anymal, without alias or version")
    return match[1]


def _registered(registration: Path | None) -> str:
    from anymal.errors import DataError

    assert registration is not None
    try:
        document = json.loads(registration.read_text(encoding="utf-8"))
        return f"models:/{document['name']}/{document['version']}"
    except FileNotFoundError as error:
        raise DataError(f"--registration {registration}: no such file; run the stage register, or correct the path") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"--registration {registration}: is not what the stage register writes ({type(error).__name__}: {error})") from error


def _rules(config: str, guard: bool) -> Rules | GuardRules:
    from anymal import gates, guard_gates
    from anymal.profile import read_settings

    if guard:
        return guard_gates.guard_rules_of(read_settings(config, guard_gates.SECTION))
    return gates.rules_of(read_settings(config, gates.SECTION))
