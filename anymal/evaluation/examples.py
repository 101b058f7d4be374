"""What the report shows of single samples: chosen with failures first, their media made small for a page."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anymal.evaluation.labels import CLASS, METRICS, in_order
from anymal.evaluation.names import canonical
from anymal.evaluation.predictions import preview_path
from anymal.evaluation.previews import media_of

PICTURE_PIXELS = 320
PICTURE_COLOURS = 64
SOUND = ".mp3"
MOST_KINDS = 12
"""Kinds of questions of one task that have examples."""
MOST_LABELS = 40
"""Rows of a confusion table."""
MOST_TEXTS = 5
MOST_CHARACTERS = 600
"""Of a text; references and answers beyond are cut, and the page says so."""
STAND_IN = {"shuffled": "Another input", "similar": "A similar input", "blank": "A blank input", "baseline": "The model before fine-tuning"}

Record = dict[str, Any]


@dataclass(frozen=True)
class Medium:
    """What is shown of one medium, as data URIs."""

    modality: str
    picture: str
    wide: bool
    sound: str | None


@dataclass
class Media:
    """Previews as data URIs, for as long as their budget lasts."""

    budget: int
    """Bytes, before base64; a preview that is shown twice is in the page twice."""
    left_out: int = 0

    def show(self, path: Path, modality: str) -> Medium | None:
        """A preview's picture made small, and the sound beside it if there is one; what there is no room for is counted."""
        picture, wide = _shrink(path)
        if not self._take(picture):
            return None
        beside = path.with_suffix(SOUND)
        sound = beside.read_bytes() if beside.is_file() else None
        heard = sound is not None and self._take(sound)
        return Medium(modality, data_uri(picture, "image/png"), wide, data_uri(sound, "audio/mpeg") if sound is not None and heard else None)

    def _take(self, data: bytes) -> bool:
        if len(data) > self.budget:
            self.left_out += 1
            return False
        self.budget -= len(data)
        return True


@dataclass(frozen=True)
class Line:
    """One term of an example and what stands under it."""

    term: str
    texts: list[str]
    right: bool | None = None
    """Whether it is right; None where that is not said."""
    cut: bool = False
    """Whether the answer was ended by the length limit."""


@dataclass(frozen=True)
class Card:
    """One example."""

    media: list[Medium]
    lines: list[Line]

    @property
    def wide(self) -> bool:
        """Whether its media go above its words."""
        return len(self.media) > 1 or any(medium.wide or medium.sound for medium in self.media)


@dataclass(frozen=True)
class Group:
    """Examples under one heading."""

    heading: str
    cards: list[Card]


def own_examples(
    records: Sequence[Record], task: str, folder: Path, media: Media, *, modality: str, per_group: int, seed: Sequence[int]
) -> list[Group]:
    """Examples of a task of the project's own held-out data, of those whose media were drawn."""
    groups = []
    for heading, chosen in choose_examples(records, task, folder, modality=modality, per_group=per_group, seed=seed):
        cards = []
        for record in chosen:
            shown = [media.show(preview_path(folder, name, key), name) for name, key in media_of(record, modality).items()]
            cards.append(Card([medium for medium in shown if medium], _caption_lines(record) if task == "caption" else _question_lines(record)))
        groups.append(Group(heading, cards))
    return groups


def choose_examples(
    records: Sequence[Record], task: str, folder: Path, *, modality: str, per_group: int, seed: Sequence[int]
) -> list[tuple[str, list[Record]]]:
    """(heading, records) to show, of those whose media have a preview, failures first.

    Labelled captions are parted into wrong and right, each label in turn; others into those that score lowest and highest by CIDEr-D (ties:
    by loss) and random ones; questions by kind, as many wrong as right ones where there are enough.
    """
    order = np.random.default_rng(seed).permutation(len(records)).tolist()
    shown = [r for r in (records[i] for i in order) if all(preview_path(folder, *m).is_file() for m in media_of(r, modality).items())]
    groups: list[tuple[str, list[Record]]] = []
    if task != "caption":
        by_kind: dict[str, list[Record]] = {}
        for record in shown:
            by_kind.setdefault(record.get("kind", "all media together"), []).append(record)
        groups = [(f"Questions: {kind}", _failures_first(by_kind[kind], per_group)) for kind in sorted(by_kind)[:MOST_KINDS]]
    elif shown and all(CLASS in r["scores"]["right"] for r in shown):
        for good, heading in ((0.0, "Captions that name another class, several or none"), (1.0, "Captions that name the right class")):
            groups.append((heading, _in_turn([record for record in shown if record["scores"]["right"][CLASS] == good], per_group)))
    elif shown:
        ranked = sorted(shown, key=lambda r: (r["scores"]["right"]["cider_d"], -r["scores"]["right"]["nll"], r["key"]))
        groups = [("Captions: lowest CIDEr-D", ranked[:per_group]), ("Captions: random", shown[:per_group]),
                  ("Captions: highest CIDEr-D", ranked[::-1][:per_group])]  # fmt: skip
    return [group for group in groups if group[1]]


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


def benchmark_examples(drawn: Sequence[tuple[Path, Record]], scores: Mapping[str, Mapping[str, float]], metric: str, media: Media, *,
                       per_group: int) -> list[Group]:  # fmt: skip
    """Examples of a benchmark: those that score lowest, then those that score highest.

    Args:
        drawn: (predictions folder, line of its examples.jsonl) of the samples whose media were drawn.
        scores: sample -> metric -> what it scored.
        metric: the one to rank by; samples without it are not shown.
    """
    named = [(str(record["id"]), folder, record) for folder, record in drawn]
    ranked = sorted(((scores[name][metric], name, folder, record) for name, folder, record in named if metric in scores.get(name, {})),
                    key=lambda entry: entry[:2])  # fmt: skip
    highest = [entry for entry in ranked[::-1][:per_group] if entry[0] > ranked[0][0]]
    lowest = [entry for entry in ranked[:per_group] if entry not in highest]
    groups = []
    for heading, entries in (("lowest", lowest), ("highest", highest)):
        cards = []
        for score, _, folder, record in entries:
            medium = media.show(preview_path(folder, record["modality"], record["key"]), record["modality"])
            cards.append(Card([medium] if medium else [], _benchmark_lines(record, metric, score)))
        groups.append(Group(f"Those that score {heading}", cards))
    return [group for group in groups if group.cards]


def confusion(records: Iterable[Record]) -> tuple[list[str], dict[str, Counter[str]]]:
    """What captions of each label named: the columns (labels in canonical form, "several", "none"), and true label -> counts."""
    rows: dict[str, Counter[str]] = {}
    for record in records:
        if record["label"] is not None:
            named = record["named"]["right"]
            rows.setdefault(canonical(record["label"]), Counter())[named[0] if len(named) == 1 else "several" if named else "none"] += 1
    columns = sorted(set(rows) | {name for row in rows.values() for name in row} - {"several", "none"})
    return [*columns, "several", "none"], dict(sorted(rows.items()))


def _caption_lines(record: Record) -> list[Line]:
    lines = [] if record["label"] is None else [Line("Label", [record["label"]])]
    lines.append(Line("References", clipped(record["references"])))
    for condition in in_order(record["prediction"]):
        scores = record["scores"][condition]
        of = record.get(f"{condition}_label")
        title = STAND_IN.get(condition, condition) + (f" ({of})" if of else "") + f" · loss {scores['nll']:.3f}"
        right = None
        if condition == "right":
            title = f"Right input · CIDEr-D {scores['cider_d']:.3f} · loss {scores['nll']:.3f}"
            right = None if record["label"] is None else scores[CLASS] == 1
        lines.append(_said(record, condition, title, right))
    return lines


def _question_lines(record: Record) -> list[Line]:
    truth = record["references"]
    answers = [" + ".join(truth.values())] if isinstance(truth, dict) else clipped(truth)
    right = record["scores"]["right"]["accuracy"] == 1
    return [Line("Question", clipped([record["question"]])), Line("True answer", answers), *_answers(record, right)]


def _benchmark_lines(record: Record, metric: str, score: float) -> list[Line]:
    lines = [] if not record.get("question") else [Line("Question", clipped([record["question"]]))]
    references = list(dict.fromkeys(map(str, record["references"])))
    right = score == 1 if metric == "accuracy" and score in (0, 1) else None
    title = METRICS[metric][0] if metric in METRICS else metric
    return [*lines, Line("References", clipped(references)), Line(title, [f"{score:.3f}"]), *_answers(record, right)]


def _answers(record: Record, right: bool | None) -> list[Line]:
    return [_said(record, condition, "Answer" if condition == "right" else STAND_IN.get(condition, condition.replace("_", " ").capitalize()),
                  right if condition == "right" else None) for condition in in_order(record["prediction"])]  # fmt: skip


def _said(record: Record, condition: str, title: str, right: bool | None) -> Line:
    cut = record.get("finish", {}).get(condition) == "length"
    return Line(title, clipped([record["prediction"][condition] or "(empty)"]), right, cut)


def clipped(texts: Sequence[str]) -> list[str]:
    """The first texts, each cut to a length that fits a page; what is left out is counted in the last one."""
    shown = [text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}… ({len(text) - MOST_CHARACTERS} more characters)"
             for text in texts[:MOST_TEXTS]]  # fmt: skip
    return shown + ([f"… and {len(texts) - MOST_TEXTS} more"] if len(texts) > MOST_TEXTS else [])


def _shrink(path: Path) -> tuple[bytes, bool]:
    """A preview as a small PNG of few colours, and whether it is wide."""
    from anymal.media.image import open_image, png

    image = open_image(path, str(path))
    image.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS))
    return png(image.quantize(PICTURE_COLOURS)), image.width > 1.5 * image.height


def data_uri(data: bytes, kind: str) -> str:
    """A file within the page."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
