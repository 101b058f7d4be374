"""The evaluation report: one self-contained HTML page with figures, plots and examples of each modality, failures first."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from anymal.evaluation.names import canonical
from anymal.evaluation.predictions import MIXED, preview_path
from anymal.evaluation.previews import media_of
from anymal.evaluation.score import CLASS, Scores

PICTURE_PIXELS = 320
PICTURE_COLOURS = 64
MAX_PICTURE_BYTES = 2_000_000
"""All previews of the page together, before base64, shared equally among the modalities: the page is loaded whole into a frame."""
METRICS = {
    "nll": ("Loss", "nats per token, lower is better", False),
    "cider_d": ("CIDEr-D", "0 to 10", True),
    "bleu_4": ("BLEU-4", "0 to 1", True),
    "rouge_l": ("ROUGE-L", "0 to 1", True),
    "meteor": ("METEOR", "0 to 1", True),
    CLASS: ("Class accuracy", "0 to 1", True),
    "accuracy": ("Accuracy", "0 to 1", True),
}
"""Figure -> its name, its unit, and whether more is better."""
MAIN = ("nll", CLASS)
"""Figures whose gaps are shown where the page has no room for all."""
PART = "accuracy_"
TITLES = {"caption": "Captions", "vqa": "Questions", "qa": "Questions"}
COLOURS = {"right": ("#0b6e99", "o"), "shuffled": ("#c2571a", "s"), "blank": ("#6f6f6f", "D"), "majority": ("#7a4fa3", "^")}
PARTLY = ("#b98a00", "v")
"""Of controls in which only some of the media are another sample's."""

Record = dict[str, Any]


@dataclass
class Pictures:
    """Previews as data URIs, for as long as their budget lasts."""

    budget: int
    uris: dict[tuple[str, str], tuple[str, bool]] = field(default_factory=dict)
    """(modality, key) -> the picture, and whether it is wide."""
    left_out: int = 0

    def add(self, path: Path, modality: str, key: str) -> None:
        """Read a preview and make it small; one for which there is no room left is counted."""
        if (modality, key) in self.uris:
            return
        data, wide = _shrink(path)
        if len(data) > self.budget:
            self.left_out += 1
            return
        self.budget -= len(data)
        self.uris[modality, key] = (_data_uri(data), wide)

    def of(self, record: Mapping[str, Any], modality: str) -> list[tuple[str, str, bool]]:
        """(modality, picture, whether it is wide) of a record's media."""
        return [(name, *self.uris[name, key]) for name, key in media_of(record, modality).items() if (name, key) in self.uris]


@dataclass(frozen=True)
class Section:
    """What the page shows of one modality."""

    modality: str
    tasks: Mapping[str, Any]
    examples: list[tuple[str, str, list[Record]]]
    """(heading, task, records)."""
    pictures: Pictures
    confusions: dict[str, tuple[list[str], dict[str, Counter[str]]]]
    """Task -> what captions can name, and true label -> how often each was named."""

    @property
    def plots(self) -> Iterator[tuple[str, str]]:
        """(picture, title) of each task."""
        for task, body in self.tasks.items():
            yield _plot_task(body, f"{self.modality}: {TITLES[task].lower()}"), TITLES[task]

    @property
    def verdicts(self) -> list[tuple[bool, str]]:
        """See `verdicts`."""
        return verdicts(self.modality, self.tasks)


def build_report(scores: Scores, folders: Mapping[str, Path], *, per_group: int, seed: int) -> str:
    """The page for scored predictions; the same predictions give the same bytes.

    Args:
        folders: modality -> its predictions folder.
        per_group: examples of each group of captions and kind of question.
    """
    sections = []
    for modality, tasks in scores.results.items():
        records = scores.records[modality]
        examples = choose_examples(records, folders[modality], modality=modality, per_group=per_group, seed=seed)
        pictures = Pictures(MAX_PICTURE_BYTES // len(folders))
        for _, _, shown in examples:
            for record in shown:
                for name, key in media_of(record, modality).items():
                    pictures.add(preview_path(folders[modality], name, key), name, key)
        confusions = {task: confusion(entries) for task, entries in records.items() if CLASS in tasks[task]}
        sections.append(Section(modality, tasks, examples, pictures, confusions))
    return render(sections)


def choose_examples(
    records: Mapping[str, Sequence[Record]], folder: Path, *, modality: str, per_group: int, seed: int
) -> list[tuple[str, str, list[Record]]]:
    """(heading, task, records) to show, of those whose media have a preview, failures first.

    Labelled captions are parted into wrong and right, each label in turn; others into those that score lowest and highest by CIDEr-D (ties:
    by loss) and random ones; questions by kind, as many wrong as right ones where there are enough.
    """
    groups: list[tuple[str, str, list[Record]]] = []
    for number, task in enumerate(sorted(records)):
        generator = np.random.default_rng((seed, 4, number))
        order = generator.permutation(len(records[task])).tolist()
        shown = [r for r in (records[task][i] for i in order) if all(preview_path(folder, *m).is_file() for m in media_of(r, modality).items())]
        if task != "caption":
            by_kind: dict[str, list[Record]] = {}
            for record in shown:
                by_kind.setdefault(record.get("kind", "all media together"), []).append(record)
            groups += [(f"Questions: {kind}", task, _failures_first(by_kind[kind], per_group)) for kind in sorted(by_kind)]
        elif shown and all(CLASS in r["scores"]["right"] for r in shown):
            for good, heading in ((0.0, "Captions that name another class, several or none"), (1.0, "Captions that name the right class")):
                found = _in_turn([record for record in shown if record["scores"]["right"][CLASS] == good], per_group)
                groups.append((heading, task, found))
        elif shown:
            ranked = sorted(shown, key=lambda r: (r["scores"]["right"]["cider_d"], -r["scores"]["right"]["nll"], r["key"]))
            groups += [("Captions: lowest CIDEr-D", task, ranked[:per_group]), ("Captions: random", task, shown[:per_group]),
                       ("Captions: highest CIDEr-D", task, ranked[::-1][:per_group])]  # fmt: skip
    return [group for group in groups if group[2]]


def _failures_first(records: Sequence[Record], limit: int) -> list[Record]:
    """At most `limit` records, half of them wrong if there are so many, wrong ones first."""
    wrong = [record for record in records if record["scores"]["right"]["accuracy"] < 1]
    right = [record for record in records if record["scores"]["right"]["accuracy"] == 1]
    failures = wrong[: max(limit - len(right), (limit + 1) // 2)]
    return failures + right[: limit - len(failures)]


def _in_turn(records: Sequence[Record], limit: int) -> list[Record]:
    """At most `limit` records, one of each label in turn."""
    by_label: dict[str, list[Record]] = {}
    for record in records:
        by_label.setdefault(record["label"], []).append(record)
    longest = max(map(len, by_label.values()), default=0)
    return [by_label[label][turn] for turn in range(longest) for label in sorted(by_label) if turn < len(by_label[label])][:limit]


def confusion(records: Iterable[Record]) -> tuple[list[str], dict[str, Counter[str]]]:
    """What captions of each label named: the columns (labels in canonical form, "several", "none"), and true label -> counts."""
    rows: dict[str, Counter[str]] = {}
    for record in records:
        if record["label"] is not None:
            named = record["named"]["right"]
            rows.setdefault(canonical(record["label"]), Counter())[named[0] if len(named) == 1 else "several" if named else "none"] += 1
    columns = sorted(set(rows) | {name for row in rows.values() for name in row} - {"several", "none"})
    return [*columns, "several", "none"], dict(sorted(rows.items()))


def render(sections: Sequence[Section]) -> str:
    """The report as HTML; everything that comes from data or from the model is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("anymal.evaluation", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = lambda value: f"{value:.3f}"
    environment.filters["signed"] = lambda value: f"{value:+.3f}"
    return environment.get_template("report.html").render(sections=sections, titles=TITLES, metrics=metrics_of, main=MAIN, clear=_clear, mixed=MIXED)


def metrics_of(branch: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Figures of a branch of the results -> their names and units, in the order in which they are shown."""
    found = {name: METRICS[name][:2] for name in METRICS if name in branch}
    return found | {name: (f"Accuracy, {name.removeprefix(PART)} part", "0 to 1") for name in sorted(branch) if name.startswith(PART)}


def verdicts(modality: str, tasks: Mapping[str, Any]) -> list[tuple[bool, str]]:
    """One sentence a task: whether the intervals show that the model uses its input, and by how much."""
    sentences = []
    for task, body in tasks.items():
        if task == "caption":
            sentences.append(_caption_verdict(body))
        elif modality == MIXED:
            sentences.append(_mixed_verdict(body))
        else:
            gap, right, controls = body["gap_blank"]["accuracy"], body["accuracy"]["value"], body["controls"]
            sentences.append((_clear("accuracy", gap), (
                f"Questions: {right:.1%} are answered right, {controls['blank']['accuracy']['value']:.1%} with a blank input: a gap of "
                f"{100 * gap['value']:.1f} points {_points(gap)}; the most frequent answer of each kind would get "
                f"{controls['majority']['accuracy']['value']:.1%}.")))  # fmt: skip
    return sentences


def _caption_verdict(body: Mapping[str, Any]) -> tuple[bool, str]:
    loss, other = body["gap_shuffled"]["nll"], body["controls"]["shuffled"]
    text = (f"Captions: with the right input the loss is {-loss['value']:.2f} nats per token lower than with another one "
            f"[{-loss['high']:.2f}, {-loss['low']:.2f}]; CIDEr-D is {body['cider_d']['value']:.2f} against {other['cider_d']['value']:.2f}")
    if CLASS not in body:
        return _clear("nll", loss) and _clear("cider_d", body["gap_shuffled"]["cider_d"]), f"{text}."
    gap = body["gap_shuffled"][CLASS]
    text += f"; {body[CLASS]['value']:.1%} name the right class and no other, {other[CLASS]['value']:.1%} with another input {_points(gap)}."
    return _clear("nll", loss) and _clear(CLASS, gap), text


def _mixed_verdict(body: Mapping[str, Any]) -> tuple[bool, str]:
    """All inputs are used if each part's answers suffer when that input alone is replaced."""
    parts = sorted(name.removeprefix(PART) for name in body if name.startswith(PART))
    gaps = {part: body[f"gap_shuffled_{part}"][f"{PART}{part}"] for part in parts}
    falls = [f"with another {part} its part falls from {body[f'{PART}{part}']['value']:.1%} to "
             f"{body['controls'][f'shuffled_{part}'][f'{PART}{part}']['value']:.1%}" for part in parts]  # fmt: skip
    text = (f"Questions about {' and '.join(parts)} together: {body['accuracy']['value']:.1%} have every part right, "
            f"{body['controls']['shuffled']['accuracy']['value']:.1%} with all inputs replaced; {'; '.join(falls)}.")
    return all(_clear("accuracy", gap) for gap in gaps.values()), text


def _points(gap: Mapping[str, float]) -> str:
    return f"[{100 * gap['low']:.1f}, {100 * gap['high']:.1f}]"


def _clear(metric: str, gap: Mapping[str, float]) -> bool:
    """Whether a gap (right minus control) lies wholly on the better side of zero."""
    return gap["low"] > 0 if METRICS.get(metric, METRICS["accuracy"])[2] else gap["high"] < 0


def _plot_task(task: Mapping[str, Any], title: str) -> str:
    """Figures under each condition with their intervals, as a PNG data URI; the same figures give the same bytes."""
    branches = [("", task)] if "by_kind" not in task else [("all questions", task), *task["by_kind"].items()]
    panels = [(metric, label or name, branch) for label, branch in branches for metric, (name, _) in metrics_of(branch).items()]
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 2
    rows = -(-len(panels) // columns)
    bars = max(1 + len(branch["controls"]) for _, _, branch in panels)
    figure = Figure(figsize=(5.2, 0.5 + rows * (0.45 + 0.2 * bars)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    for place, (metric, label, branch) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        conditions = {"right": branch[metric], **{name: control[metric] for name, control in branch["controls"].items()}}
        for height, (name, entry) in enumerate(conditions.items()):
            colour, marker = COLOURS.get(name, PARTLY)
            axes.plot([entry["low"], entry["high"]], [height, height], color=colour, linewidth=2)
            axes.plot([entry["value"]], [height], color=colour, marker=marker, markersize=6)
        axes.set_yticks(range(len(conditions)), [name.replace("_", " ") for name in conditions], fontsize=8)
        axes.set_ylim(len(conditions) - 0.5, -0.5)
        axes.set_title(label if METRICS.get(metric, METRICS["accuracy"])[2] else f"{label} (lower is better)", fontsize=9)
        axes.set_xlim(left=0)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    # Matplotlib's own version in the file would change its bytes with every upgrade.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return _data_uri(buffer.getvalue())


def _shrink(path: Path) -> tuple[bytes, bool]:
    """A preview as a small PNG of few colours, and whether it is wide."""
    from anymal.media.image import open_image, png

    image = open_image(path, str(path))
    image.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS))
    return png(image.quantize(PICTURE_COLOURS)), image.width > 1.5 * image.height


def _data_uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
