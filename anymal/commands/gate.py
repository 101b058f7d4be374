"""Say whether what was measured of a model passes the gates, before it is registered."""

from __future__ import annotations

import json
from pathlib import Path

import click

FILE = click.Path(path_type=Path)


@click.command("gate", short_help="Say whether what was measured of a model passes the gates.")
@click.option("--config", required=True, metavar="FILE|JSON", help="A profile (its section `promote` is read), or the section itself as JSON.")
@click.option("--evaluation", required=True, type=FILE, metavar="FILE", help="What `score` wrote.")
@click.option("--samples", required=True, type=FILE, metavar="FILE", help="The scores of each sample, which `score` wrote.")
@click.option("--leakage", required=True, type=FILE, metavar="FILE", help="What `audit` wrote.")
@click.option("--safety", type=FILE, metavar="FILE", help="What `train_safety` measured of the guard, for rules that name it.")
@click.option("--integrity", type=FILE, metavar="FILE", help="What `evaluate_safety` wrote, for rules that name it.")
@click.option("--report", type=FILE, metavar="FILE", help="Where to write the reasons, as Markdown.")
@click.option("--verdict", type=FILE, metavar="FILE", help="Where to write `passed` or `failed`.")
@click.option("--executor-input", metavar="JSON", help="Given by Kubeflow's launcher; where to report the outputs.")
def command(*, config: str, evaluation: Path, samples: Path, leakage: Path, safety: Path | None, integrity: Path | None, report: Path | None,
            verdict: Path | None, executor_input: str | None) -> None:
    """Say whether what was measured of a model passes the gates: those of `anymal promote` that need neither the registry nor a champion.

    A model that fails is no error: the exit status is 0, and a pipeline decides by the verdict.
    """
    from anymal.errors import DataError
    from anymal.executor import write_executor_output
    from anymal.gates import SECTION, judge_comparable, judge_measured, markdown, rules_of
    from anymal.profile import read_settings
    from anymal.promotion import read_evidence

    rules = rules_of(read_settings(config, SECTION))
    files = {"evaluation.json": evaluation, "samples.jsonl": samples, "leakage.json": leakage}
    files |= {name: given for name, given in (("safety.json", safety), ("integrity.json", integrity)) if given is not None}
    for name, given in files.items():
        if not given.is_file():
            raise DataError(f"--{Path(name).stem} {given}: no such file; run the stage that writes it, or correct the path")
    measured = read_evidence(files)
    results = [*judge_measured(rules, measured), *judge_comparable(rules, measured)]
    word = "passed" if all(result.passed for result in results) else "failed"
    text = markdown(f"Gate: {word}", results)
    click.echo(text)
    for path, content in ((report, text), (verdict, word)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
    if executor_input is not None:
        write_executor_output(json.loads(executor_input), {} if report is None else {"report": report})
