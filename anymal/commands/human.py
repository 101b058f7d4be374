"""Let people compare answers in Label Studio, and score what they said."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

FILE = click.Path(path_type=Path)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@click.group("human", short_help="Let people compare answers in Label Studio, and score what they said.")
def command() -> None:
    """Let people compare the answers of two systems in Label Studio, and score what they said. docs/human-evaluation.md has the steps."""


@command.command("export")
@click.option("--system", "systems", required=True, multiple=True, metavar="NAME=FOLDER",
              help="A system and a folder of its predictions, as evaluate or benchmark writes it; repeat it for more modalities and systems.")
@click.option("--references", is_flag=True, help="Compare the only system with the answers that people wrote.")
@click.option("--branch", "branches", multiple=True, metavar="NAME", help="Draw from this branch only, such as image.vqa; repeat it for several.")
@click.option("--shards", multiple=True, metavar="MODALITY=FOLDER", help="Shards that hold the media; repeat it for several.")
@click.option("--asset", "assets", multiple=True, metavar="BENCHMARK=FOLDER", help="The asset that holds a benchmark's media.")
@click.option("--split", default="test", show_default=True, metavar="NAME", help="Of the shards.")
@click.option("--count", required=True, type=int, metavar="N", help="Samples to compare; even.")
@click.option("--seed", required=True, type=click.IntRange(min=0), metavar="N", help="Decides what is drawn, its order and its sides.")
@click.option("--media", type=click.Choice(["embed", "files"]), default="embed", show_default=True,
              help="Media inside the tasks, or as files that Label Studio serves from its disk.")
@click.option("--out", required=True, type=FILE, metavar="FOLDER", help="Where to write the projects; a new folder.")
@click.option("--key", required=True, type=FILE, metavar="FILE", help="Where to write which system is on which side; annotators must not see it.")
def export(
    *, systems: tuple[str, ...], references: bool, branches: tuple[str, ...], shards: tuple[str, ...], assets: tuple[str, ...], split: str,
    count: int, seed: int, media: str, out: Path, key: Path
) -> None:
    """Draw samples and write them as blinded, balanced tasks for Label Studio, with the labelling configuration."""
    from anymal.errors import ConfigError
    from anymal.evaluation.human.samples import DROPPED, REFERENCE
    from anymal.evaluation.human.study import write_study

    answered = _named("--system", systems)
    if REFERENCE in answered:
        raise ConfigError(f"--system {REFERENCE}: is the name of the answers that people wrote; name the system otherwise")
    if len(answered) != (1 if references else 2):
        wanted = "one system with --references" if references else "two systems, or one with --references"
        raise ConfigError(f"--system: names {len(answered)} systems ({', '.join(answered)}); give {wanted}")
    owned = _named("--asset", assets)
    if several := [name for name, folders in owned.items() if len(folders) > 1]:
        raise ConfigError(f"--asset {several[0]}: is given {len(owned[several[0]])} times; a benchmark has one asset")
    with _writing(f"--out {out}, --key {key}"):
        done = write_study(answered, _named("--shards", shards), {name: folders[0] for name, folders in owned.items()}, out, key, count=count,
                           seed=seed, split=split, embed=media == "embed", branches=branches)
    for reason, number in done["dropped"].items():
        click.echo(f"{number} records cannot be compared: {DROPPED[reason]}")
    for project, number in done["samples"].items():
        click.echo(f"{out / project}: {number} tasks")
    click.echo(f"{key}: keep it from annotators; the study cannot be scored without it")


@command.command("score")
@click.option("--key", "keys", required=True, multiple=True, type=FILE, metavar="FILE", help="What the export wrote; repeat it for several studies.")
@click.option("--export", "exports", required=True, multiple=True, type=FILE, metavar="FILE",
              help="A project's export from Label Studio in the format JSON; repeat it for each project.")
@click.option("--resamples", type=click.IntRange(min=100), default=2000, show_default=True, metavar="N", help="For the intervals.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Of the intervals.")
@click.option("--out", required=True, type=FILE, metavar="FOLDER", help="Where to write human.json, human.md and human.png.")
def score(*, keys: tuple[Path, ...], exports: tuple[Path, ...], resamples: int, seed: int, out: Path) -> None:
    """Turn annotations into win, tie and lose rates, points by criterion and the annotators' agreement."""
    from anymal.errors import ConfigError
    from anymal.evaluation.human.judgements import read_exports, read_judgements
    from anymal.evaluation.human.output import markdown, write_scores
    from anymal.evaluation.human.scoring import score_study
    from anymal.evaluation.human.study import read_key

    studies = [read_key(path) for path in keys]
    tasks = read_exports(exports, studies)
    found = {}
    for study in studies:
        name = "_vs_".join(study.systems)
        if name in found:
            raise ConfigError(f"--key: two studies compare {' and '.join(study.systems)}; score them apart, or export them under different names")
        found[name] = score_study(study, *read_judgements(study, tasks[study.name]), resamples=resamples, seed=seed)
    with _writing(f"--out {out}"):
        write_scores(found, out)
    click.echo(markdown(found))


@contextmanager
def _writing(options: str) -> Iterator[None]:
    """Say which options name places that cannot be written to."""
    from anymal.errors import ConfigError

    try:
        yield
    except OSError as error:
        raise ConfigError(f"{options}: cannot be written ({error.strerror}: {error.filename}); name another place") from error


def _named(option: str, values: Sequence[str]) -> dict[str, list[Path]]:
    """`NAME=FOLDER` options as name -> folders, in the order given."""
    from anymal.errors import ConfigError

    found: dict[str, list[Path]] = {}
    for value in values:
        name, given, folder = value.partition("=")
        if not given or not folder or not NAME.fullmatch(name):
            raise ConfigError(f"{option} {value}: must be NAME=FOLDER, the name of letters, digits, '-' and '_'")
        if not Path(folder).is_dir():
            raise ConfigError(f"{option} {value}: no such folder; correct the path")
        found.setdefault(name, []).append(Path(folder))
    return found
