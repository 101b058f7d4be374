"""The only command line: `anymal STAGE --config … --PORT …`, and the commands that use what the stages made."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from anymal.errors import report

if TYPE_CHECKING:
    from anymal.stage import Stage

PACKAGE = Path(__file__).parent
FOLDERS = {"stages": "Stages", "commands": "Commands"}


def _modules(folder: str) -> list[str]:
    return sorted(path.stem for path in (PACKAGE / folder).glob("*.py") if path.stem != "__init__")


def _summary(folder: str, name: str) -> str:
    """First line of a module's docstring, without importing it: `anymal --help` must not load torch."""
    text = (PACKAGE / folder / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]


class Anymal(click.Group):
    """Finds stages and commands by listing two folders; imports only the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name.replace("_", "-") for folder in FOLDERS for name in _modules(folder)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = cmd_name.replace("-", "_")
        if name in _modules("stages"):
            return _stage_command(name)
        if name in _modules("commands"):
            command: click.Command = importlib.import_module(f"anymal.commands.{name}").command
            return command
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for folder, title in FOLDERS.items():
            rows = [(name.replace("_", "-"), _summary(folder, name)) for name in _modules(folder)]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class Place(click.Path):
    """A path, or an address `s3://BUCKET/PREFIX`, which stays text."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if isinstance(value, str) and value.startswith("s3://") else super().convert(value, param, ctx)


def stage_options(stage: Stage, *, s3: bool = True) -> list[click.Parameter]:
    """The options of a stage's command line.

    Args:
        s3: whether its ports may be addresses on S3 too.
    """
    kind = Place(path_type=Path) if s3 else click.Path(path_type=Path)
    metavar = "PATH|s3://…" if s3 else "PATH"
    modality = click.Option(["--modality"], metavar="NAME",
                            help="Which of the profile's sections of this stage; with JSON, what to call the run in MLflow.")
    return [
        click.Option(["--config"], required=True, metavar="FILE|JSON",
                     help="A profile (its section of this stage's name is read), or the section itself as JSON."),
        *([modality] if stage.per_modality else []),
        *(click.Option([f"--{port.replace('_', '-')}"], required=True, multiple=several, type=kind, metavar=metavar,
                       help="Input; repeat it for several." if several else "Input.")
          for port, several in stage.inputs.items()),
        *(click.Option([f"--{port.replace('_', '-')}"], required=True, type=kind, metavar=metavar, help="Output.") for port in stage.outputs),
        click.Option(["--executor-input"], metavar="JSON", help="Given by Kubeflow's launcher; where to report the outputs."),
    ]


def _stage_command(name: str) -> click.Command:
    from anymal.profile import read_config
    from anymal.stage import load_stage, run_stage

    stage = load_stage(name)

    def run(config: str, executor_input: str | None, modality: str | None = None, **ports: Path | str | tuple[Path | str, ...]) -> None:
        run_stage(stage, read_config(stage, config, modality), ports, executor_input, part=modality)

    return click.Command(name.replace("_", "-"), params=stage_options(stage), callback=run, help=stage.function.__doc__)


@click.group(cls=Anymal, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="anymal")
def cli() -> None:
    """AnyMAL: any mix of image, video, audio, motion and text in, text out; trained, measured and registered in stages."""


def main() -> None:
    """Run the command line."""
    report("anymal", lambda: cli(prog_name="anymal"))


if __name__ == "__main__":
    main()
