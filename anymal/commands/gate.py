"""Say whether an evaluation shows that the model uses its inputs."""

from __future__ import annotations

import json
from pathlib import Path

import click

FILE = click.Path(path_type=Path)


@click.command("gate", short_help="Say whether an evaluation shows that the model uses its inputs.")
@click.option("--evaluation", required=True, type=FILE, metavar="FILE", help="What `score` wrote.")
@click.option("--report", type=FILE, metavar="FILE", help="Where to write the reasons, as Markdown.")
@click.option("--verdict", type=FILE, metavar="FILE", help="Where to write `passed` or `failed`.")
@click.option("--executor-input", metavar="JSON", help="Given by Kubeflow's launcher; where to report the outputs.")
def command(*, evaluation: Path, report: Path | None, verdict: Path | None, executor_input: str | None) -> None:
    """Say whether an evaluation shows that the model uses its inputs: every task's figures must fall clearly when the input is replaced.

    A model that fails is no error: the exit status is 0, and a pipeline decides by the verdict.
    """
    from anymal.errors import DataError
    from anymal.evaluation.report import verdicts
    from anymal.executor import write_executor_output

    try:
        results = json.loads(evaluation.read_text(encoding="utf-8"))
        found = [(clear, f"{modality}: {sentence}") for modality, tasks in sorted(results.items()) for clear, sentence in verdicts(modality, tasks)]
    except FileNotFoundError as error:
        raise DataError(f"--evaluation {evaluation}: no such file; run the stage score, or correct the path") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"--evaluation {evaluation}: is not what the stage score writes ({type(error).__name__}: {error}); run it again") from error
    word = "passed" if found and all(clear for clear, _ in found) else "failed"
    lines = [f"- {'✓' if clear else '✗'} {sentence}" for clear, sentence in found]
    text = "\n".join([f"# Gate: {word}", "", *(lines or ["- ✗ the evaluation has no task"]), ""])
    click.echo(text)
    for path, content in ((report, text), (verdict, word)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
    if executor_input is not None:
        write_executor_output(json.loads(executor_input), {} if report is None else {"report": report})
