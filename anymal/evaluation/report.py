"""The evaluation report: one self-contained HTML page with figures, plots and examples."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anymal.data.shards import read_shard, shard_paths
from anymal.errors import DataError
from anymal.evaluation.controls import CONDITIONS

THUMBNAIL_PIXELS = 192
METRICS = {
    "nll": ("Loss", "nats per token, lower is better", False),
    "cider_d": ("CIDEr-D", "0 to 10", True),
    "bleu_4": ("BLEU-4", "0 to 1", True),
    "rouge_l": ("ROUGE-L", "0 to 1", True),
    "meteor": ("METEOR", "0 to 1", True),
    "accuracy": ("VQA accuracy", "0 to 1", True),
}
"""Figure -> its name, its unit, and whether more is better."""
LOOKS = {"right": ("#0b6e99", "o"), "shuffled": ("#c2571a", "s"), "blank": ("#6f6f6f", "D"), "majority": ("#7a4fa3", "^")}

Record = dict[str, Any]


@dataclass(frozen=True)
class Examples:
    """Records to show: captions by group (worst, best, random), answers by kind of question."""

    captions: dict[str, list[Record]]
    answers: dict[str, list[Record]]

    def keys(self) -> set[str]:
        """Samples whose pictures are needed."""
        return {record["key"] for groups in (self.captions, self.answers) for group in groups.values() for record in group}


def choose_examples(records: Mapping[str, list[Record]], *, per_group: int, seed: int) -> Examples:
    """The captions that scored worst and best by CIDEr-D (ties: by loss), and random ones; random questions of each kind."""
    generator = np.random.default_rng((seed, 4))

    def some(items: Sequence[Record]) -> list[Record]:
        return [items[i] for i in sorted(generator.permutation(len(items))[:per_group].tolist())]

    captions = records.get("caption", [])
    ranked = sorted(captions, key=lambda r: (r["scores"]["right"]["cider_d"], -r["scores"]["right"]["nll"], r["key"]))
    groups = {"worst": ranked[:per_group], "best": ranked[::-1][:per_group], "random": some(captions)} if captions else {}
    kinds: dict[str, list[Record]] = {}
    for record in records.get("vqa", []):
        kinds.setdefault(record["kind"], []).append(record)
    return Examples(groups, {kind: some(kinds[kind]) for kind in sorted(kinds)})


def thumbnails(shards: Path, keys: Iterable[str], *, split: str) -> dict[str, str]:
    """Small JPEG data URIs of the samples with these keys.

    Raises:
        DataError: if a key is in none of the split's shards.
    """
    from anymal.model.encoders import open_image

    wanted, found = set(keys), {}
    for path in shard_paths(shards, split) if wanted else []:
        for sample in read_shard(path):
            if sample.key in wanted:
                image = open_image(io.BytesIO(sample.data), f"{path}: {sample.key}")
                image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
                buffer = io.BytesIO()
                image.save(buffer, "JPEG", quality=80)
                found[sample.key] = _data_uri("image/jpeg", buffer.getvalue())
    missing = sorted(wanted - found.keys())
    if missing:
        raise DataError(f"{shards}: holds no picture of sample {missing[0]} (and {len(missing) - 1} more) in split {split}; "
                        "the features were made from other shards, run encode again")
    return found


def render(results: Mapping[str, Any], examples: Examples, pictures: Mapping[str, str], *, modality: str) -> str:
    """The report as HTML; everything that comes from data or from the model is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("anymal.evaluation", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = lambda value: f"{value:.3f}"
    environment.filters["signed"] = lambda value: f"{value:+.3f}"
    tasks = results[modality]
    plots = [(_plot_task(tasks[task], title), title) for task, title in (("caption", "Captions"), ("vqa", "Answers to questions")) if task in tasks]
    return environment.get_template("report.html").render(
        modality=modality, tasks=tasks, metrics=METRICS, verdicts=verdicts(tasks), plots=plots, examples=examples, pictures=pictures,
        conditions=CONDITIONS, clear=_clear,
    )  # fmt: skip


def verdicts(tasks: Mapping[str, Any]) -> list[tuple[bool, str]]:
    """One sentence a task: whether the intervals show that the model uses its input, and by how much."""
    sentences = []
    if "caption" in tasks:
        loss, score = (tasks["caption"]["gap_shuffled"][name] for name in ("nll", "cider_d"))
        right, other = tasks["caption"]["cider_d"]["value"], tasks["caption"]["controls"]["shuffled"]["cider_d"]["value"]
        times = f", {right / other:.1f} times the score" if other > 0 else ""
        sentences.append((_clear("nll", loss) and _clear("cider_d", score), (
            f"Captions: with the right picture the loss is {-loss['value']:.2f} nats per token lower than with another one "
            f"[{-loss['high']:.2f}, {-loss['low']:.2f}]; CIDEr-D is {right:.2f} against {other:.2f}{times}.")))  # fmt: skip
    if "vqa" in tasks:
        gap = tasks["vqa"]["gap_blank"]["accuracy"]
        right, blank = tasks["vqa"]["accuracy"]["value"], tasks["vqa"]["controls"]["blank"]["accuracy"]["value"]
        sentences.append((_clear("accuracy", gap), (
            f"Questions: {right:.1%} are answered right, {blank:.1%} with a blank picture: a gap of {100 * gap['value']:.1f} points "
            f"[{100 * gap['low']:.1f}, {100 * gap['high']:.1f}]; the most frequent answer of each kind would get "
            f"{tasks['vqa']['controls']['majority']['accuracy']['value']:.1%}.")))  # fmt: skip
    return sentences


def _clear(metric: str, gap: Mapping[str, float]) -> bool:
    """Whether a gap (right minus control) lies wholly on the better side of zero."""
    return gap["low"] > 0 if METRICS[metric][2] else gap["high"] < 0


def _plot_task(task: Mapping[str, Any], title: str) -> str:
    """Figures under each condition with their intervals, as a PNG data URI; the same figures give the same bytes."""
    branches = [("", task)] if "by_kind" not in task else [("all questions", task), *task["by_kind"].items()]
    panels = [(metric, label, branch) for label, branch in branches for metric in METRICS if metric in branch]
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 2
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2, 0.5 + 1.25 * rows), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    for place, (metric, label, branch) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        conditions = {"right": branch[metric], **{name: control[metric] for name, control in branch["controls"].items()}}
        for height, (name, entry) in enumerate(conditions.items()):
            colour, marker = LOOKS[name]
            axes.plot([entry["low"], entry["high"]], [height, height], color=colour, linewidth=2)
            axes.plot([entry["value"]], [height], color=colour, marker=marker, markersize=6)
        axes.set_yticks(range(len(conditions)), list(conditions), fontsize=8)
        axes.set_ylim(len(conditions) - 0.5, -0.5)
        axes.set_title(label or f"{METRICS[metric][0]}{'' if METRICS[metric][2] else ' (lower is better)'}", fontsize=9)
        axes.set_xlim(left=0)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    # Matplotlib's own version in the file would change its bytes with every upgrade.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return _data_uri("image/png", buffer.getvalue())


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
