"""The evaluation report: one self-contained HTML page, the paper's tables, figures with their controls, and examples, failures first."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from anymal.data.manifest import write_manifest
from anymal.evaluation import labels
from anymal.evaluation.benchmarks.examples import FILE as EXAMPLES
from anymal.evaluation.examples import MOST_LABELS, Group, Media, benchmark_examples, confusion, data_uri, own_examples
from anymal.evaluation.grounding import BENCHMARKS, Verdict, clear, verdicts
from anymal.evaluation.paper import MADE, Table, is_real, paper_tables, read_paper
from anymal.evaluation.plots import plot_task
from anymal.evaluation.score import Scores

MAX_MEDIA_BYTES = 3_000_000
"""All pictures and sounds of examples together, before base64: the page is loaded whole into a frame. Half of them for the modalities, half for the
benchmarks, shared equally among each."""
MAIN = ("nll", labels.CLASS)
"""Figures whose gaps are shown where the page has no room for all."""
MOST_ROWS = 40
"""Of a table by kind, label or source."""
MOST_BENCHMARK_PICTURES = 200
"""Samples with a picture that are looked at for examples of a benchmark."""


@dataclass(frozen=True)
class Task:
    """What the page shows of one task, or of one benchmark."""

    branch: str
    """Where its figures are in the results."""
    title: str
    body: Mapping[str, Any]
    plot: str
    verdict: Verdict | None
    examples: list[Group]
    confusion: tuple[list[str], dict[str, Counter[str]]] | None = None


@dataclass(frozen=True)
class Section:
    """The tasks of one modality, or the benchmarks."""

    name: str
    title: str
    note: str
    tasks: list[Task]
    left_out: int
    """Pictures and sounds for which the page has no room."""


def build_report(
    scores: Scores,
    folders: Mapping[str, Path],
    *,
    per_group: int,
    seed: int,
    figures: Path,
    benchmarks: Sequence[Path] = (),
) -> str:
    """The page for scored predictions; the same predictions give the same bytes.

    Args:
        folders: modality -> its predictions folder.
        per_group: examples of each group of captions and kind of question.
        figures: an empty folder, for the plots as PNG files (`image.vqa.png`, `benchmarks.NAME.png`) and their manifest.
        benchmarks: the predictions folders of the benchmarks, for examples.
    """
    results = {name: branch for name, branch in scores.results.items() if name != BENCHMARKS}
    measured: Mapping[str, Any] = scores.results.get(BENCHMARKS, {})
    known = {verdict.branch: verdict for verdict in verdicts(scores.results)}
    sections = []
    for modality, tasks in results.items():
        media = Media(MAX_MEDIA_BYTES // 2 // len(results))
        shown = []
        for number, task in enumerate(sorted(tasks)):
            body, records = tasks[task], scores.records[modality][task]
            groups = own_examples(records, task, folders[modality], media, modality=modality, per_group=per_group, seed=(seed, 4, number))
            table = confusion(records) if labels.CLASS in body else None
            branch, title = f"{modality}.{task}", labels.TASKS[task]
            plot = _plot(figures, branch, body, f"{modality}: {title.lower()}")
            shown.append(Task(branch, title, body, plot, known.get(branch), groups, table if table and len(table[1]) <= MOST_LABELS else None))
        sections.append(Section(modality, labels.SECTIONS.get(modality, modality.capitalize()), "", shown, media.left_out))
    sections += _benchmark_sections(measured, benchmarks, scores.samples, known, per_group=per_group, figures=figures)
    write_manifest(figures)
    skipped = {name: body["skipped"] for name, body in sorted(measured.items()) if "skipped" in body}
    return render(sections, paper=paper_tables(measured), skipped=skipped)


def _benchmark_sections(
    measured: Mapping[str, Any], folders: Sequence[Path], samples: Sequence[Mapping[str, Any]], known: Mapping[str, Verdict], *, per_group: int,
    figures: Path,
) -> Iterator[Section]:  # fmt: skip
    """Benchmarks on their own data, and apart from them those on sample data in the same file layout."""
    ran = {name: body for name, body in sorted(measured.items()) if "skipped" not in body}
    scored: dict[str, dict[str, Mapping[str, float]]] = {}
    for row in samples:
        scored.setdefault(row["branch"], {})[row["id"]] = row["scores"]
    for real, identity, title, note in (
        (True, "benchmarks", "Benchmarks", "On the benchmarks' own data."),
        (False, "layouts", "Sample data in benchmarks' file layouts", "These are NOT the benchmarks: small sets made of other data show that the "
         "files of each layout are read, asked about and scored. Their figures say nothing of the benchmark whose layout they have."),
    ):  # fmt: skip
        tasks, left_out = [], 0
        for name, body in ran.items():
            if is_real(body) == real:
                branch, media = f"{BENCHMARKS}.{name}", Media(MAX_MEDIA_BYTES // 2 // len(ran))
                drawn = list(islice(_drawn(folders, name), MOST_BENCHMARK_PICTURES))
                rows = scored.get(branch, {})
                # A single sample has no AUC: the first figure that it has.
                metric = next((figure for figure in (body["main"], *labels.metrics_of(body)) if rows and figure in next(iter(rows.values()))), None)
                groups = [] if metric is None else benchmark_examples(drawn, rows, metric, media, per_group=per_group)
                plot = _plot(figures, branch, body, name if real else f"{name} (sample data)")
                heading = body["title"] if real else f"{body['title']}: sample data in its layout"
                tasks.append(Task(branch, heading, body, plot, known.get(branch), groups))
                left_out += media.left_out
        if tasks:
            yield Section(identity, title, note, tasks, left_out)


def _drawn(folders: Sequence[Path], name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(folder, line) of the samples of a benchmark whose media were drawn."""
    for folder in folders:
        path = folder / EXAMPLES
        if path.is_file():
            with path.open(encoding="utf-8", newline="\n") as lines:
                yield from ((folder, line) for line in map(json.loads, lines) if line["benchmark"] == name)


def _plot(figures: Path, branch: str, body: Mapping[str, Any], title: str) -> str:
    data = plot_task(body, title)
    (figures / f"{branch}.png").write_bytes(data)
    return data_uri(data, "image/png")


def render(sections: Sequence[Section], *, paper: Sequence[Table], skipped: Mapping[str, str]) -> str:
    """The report as HTML; everything that comes from data or from the model is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("anymal.evaluation", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = lambda value: f"{value:.3f}"
    environment.filters["signed"] = lambda value: f"{value:+.3f}"
    environment.filters["percent"] = lambda value: f"{value:.1%}"
    environment.filters["condition"] = labels.condition_title
    conditions = {name for section in sections for task in section.tasks for name in task.body["controls"]} | {"right"}
    return environment.get_template("report.html").render(
        sections=sections, paper=paper, human=read_paper()["human"], skipped=skipped, labels=labels, clear=clear, made=MADE, main=MAIN,
        most_rows=MOST_ROWS, conditions={name: labels.CONDITIONS[name] for name in labels.in_order(dict.fromkeys(conditions))
                                         if name in labels.CONDITIONS})  # fmt: skip
