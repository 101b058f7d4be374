"""Curation of motion recordings: windows of one length and rate, what breaks a rule dropped and counted, split by person or video.

A reader yields windows one at a time; their bytes go to a scratch file and what stays in memory of each is its caption, hash and place. So the
samples of a split can be written in an order that only their keys decide, however many there are.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from anymal.curation.drops import Drop
from anymal.curation.duplicates import SPLITS, assign_split
from anymal.curation.keys import spread
from anymal.curation.media_card import write_media_card
from anymal.curation.pages import data_uri, page
from anymal.data.shards import Sample, ShardWriter
from anymal.errors import ConfigError, DataError
from anymal.media.motion import MotionError, cut_window, traces
from anymal.progress import track

REASONS: dict[str, str] = {
    "no_recording": "there is no motion file for the video that the words are about",
    "unreadable": "the motion file is empty, damaged, too long, or its columns are not the expected ones",
    "no_caption": "nothing is said of what the person does, or its label is not in the profile",
    "caption_too_long": "the narration is longer than any sentence",
    "caption_is_other_person": "the narration is about somebody who does not wear the sensor",
    "unsure": "the narrator was not sure",
    "no_time": "the narration does not say when",
    "too_short": "the recording does not cover a whole window there",
    "gap": "the sensor's clock leaves a gap in the window",
    "not_finite": "values are missing or not finite for longer than can be filled in",
    "constant": "all six channels are flat",
    "exact_duplicate": "the same window was kept under another key",
}
"""In the order in which the rules are applied."""
WINDOW_REASONS = {"too_short", "gap", "not_finite", "constant"}
"""What `MotionError.reason` may say of a window; anything else is about the file, and `unreadable` here."""


@dataclass(frozen=True)
class Found:
    """One window that a reader found: its values (6, samples), or why it has none. `name` is unique within the source; the split keeps `group`
    together."""

    name: str
    group: str
    motion: np.ndarray | Drop
    captions: tuple[str, ...] = ()
    label: str | None = None
    questions: tuple[dict[str, str], ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further metadata fields."""


class Reader(Protocol):
    """A source's form: yields all its windows, with steps in seconds that depend on the split of their group."""

    def windows(self, *, seconds: float, rate: int, step_of: Callable[[str], float]) -> Iterator[Found]:
        """Every window of `seconds` at `rate` Hz, good or dropped, in a fixed order."""
        ...


@dataclass(frozen=True)
class Source:
    """One source: its name, licence and reader, and the groups that the profile puts into val and test."""

    name: str
    licence: str
    reader: Reader
    held_out: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Kept:
    """A window that passed every rule; `place` is its number in the scratch file."""

    key: str
    source: str
    name: str
    group: str
    split: str
    sha256: str
    place: int
    captions: tuple[str, ...]
    label: str | None
    questions: tuple[dict[str, str], ...]
    details: Mapping[str, Any]


@dataclass
class Dropped:
    """How many windows a rule took, and the names of the first few."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class Curated:
    """All windows with their verdicts; the windows' bytes are records of equal size in `spool`."""

    seconds: float
    rate: int
    spool: Path
    licences: dict[str, str]
    record_bytes: int = 0
    kept: list[Kept] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    dropped: dict[str, dict[str, Dropped]] = field(default_factory=dict)
    """Source -> reason -> what it took."""

    def read(self, kept: Kept) -> bytes:
        """The content of the window's .npy file."""
        with self.spool.open("rb") as stream:
            stream.seek(kept.place * self.record_bytes)
            return stream.read(self.record_bytes)


class WatchSeries:
    """The folder that the conversion `spar_to_npy` makes: `series.json` and one .npy of shape (samples, 6) per series.

    Args:
        labels: the set's name of an exercise -> the label; series of other exercises are dropped.
        captions: phrasings with `{label}` and, if wanted, `{side}` (left or right: the arm that wears the watch and does the exercise).
        questions: kind ("label" or "side") -> the question that is asked of it.
    """

    def __init__(self, root: Path, *, labels: Mapping[str, str], captions: Sequence[str], questions: Mapping[str, str]) -> None:
        self._root, self._labels, self._captions, self._questions = root, labels, captions, questions

    def windows(self, *, seconds: float, rate: int, step_of: Callable[[str], float]) -> Iterator[Found]:
        """See `Reader`; a series that is shorter than a window counts as one.

        Raises:
            DataError: if `series.json` or a file that it names is missing or of another form.
        """
        document = self._document()
        for entry in document["series"]:
            name = f"s{int(entry['subject']):02d}-{entry['side']}-{entry['exercise']}"
            group = str(entry["subject"])
            if entry["exercise"] not in self._labels:
                yield Found(name, group, Drop("no_caption", f"exercise {entry['exercise']}"))
                continue
            series = self._series(entry["file"])
            recording = np.column_stack([np.arange(len(series)) / document["rate"], series])
            length, step = len(series) / document["rate"], step_of(group)
            label = self._labels[entry["exercise"]]
            answers = {"label": label, "side": entry["side"]}
            for number in range(max(1, int((length - seconds) / step + 1e-6) + 1)):
                start = number * step
                yield Found(
                    f"{name}-{start:.2f}s", group, cut(recording, name, start=start, seconds=seconds, rate=rate),
                    captions=tuple(phrase.format(label=label, side=entry["side"]) for phrase in self._captions), label=label,
                    questions=tuple({"question": asked, "answer": answers[kind], "kind": kind} for kind, asked in self._questions.items()),
                    details={"side": entry["side"], "start": round(start, 3)},
                )

    def _document(self) -> dict[str, Any]:
        path = self._root / "series.json"
        try:
            document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            assert document["rate"] > 0 and all({"file", "subject", "side", "exercise"} <= set(entry) for entry in document["series"])
        except FileNotFoundError as error:
            raise DataError(f"{path}: not found; add the asset to ingest.assets and run ingest, which converts it with spar_to_npy") from error
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
            raise DataError(f"{path}: is not what spar_to_npy writes; run ingest again") from error
        return document

    def _series(self, file: str) -> np.ndarray:
        path = self._root / Path(file).name
        try:
            series: np.ndarray = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path}: cannot be read as a plain array; run ingest again") from error
        if series.ndim != 2 or series.shape[1] != 6 or series.dtype.kind != "f":
            raise DataError(f"{path}: has shape {series.shape}, not (samples, 6); run ingest again")
        return series


def cut(recording: np.ndarray, name: str, *, start: float, seconds: float, rate: int) -> np.ndarray | Drop:
    """A window as `cut_window` makes it, or the reason why there is none."""
    try:
        return cut_window(recording, name, start=start, seconds=seconds, rate=rate)
    except MotionError as error:
        return to_drop(error)


def to_drop(error: MotionError) -> Drop:
    """The verdict that an error about a recording amounts to."""
    return Drop(error.reason if error.reason in WINDOW_REASONS else "unreadable", str(error))


def curate_motions(sources: Sequence[Source], *, seconds: float, rate: int, stride: float, test_stride: float, val_fraction: float,
                   test_fraction: float, seed: int, scratch: Path, examples: int) -> Curated:
    """Run all rules over all sources.

    Args:
        stride: seconds between windows of one recording in train; `test_stride` in val and test, at least `seconds` so that no two overlap.
        val_fraction, test_fraction: of the groups that no source holds out by name.
        scratch: an existing folder for the windows' bytes.
        examples: names kept per reason and source.

    Raises:
        ConfigError: if a held-out group does not exist.
        DataError: if a source cannot be read, nothing is left, or the splits share a group or a window.
    """
    curated = Curated(seconds, rate, scratch / "windows.bin", {source.name: source.licence for source in sources})
    first: dict[str, str] = {}
    with curated.spool.open("wb") as spool:
        for source in sources:
            split_of = _splitter(source, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction)
            groups: set[str] = set()
            curated.dropped[source.name] = defaultdict(Dropped)
            windows = source.reader.windows(seconds=seconds, rate=rate, step_of=partial(_step, split_of, stride, test_stride))
            for found in track(windows, label=f"curate {source.name}", unit="windows"):
                curated.seen[source.name] += 1
                groups.add(found.group)
                verdict = _keep(curated, source, found, split=split_of(found.group), first=first, spool=spool)
                if verdict is not None:
                    entry = curated.dropped[source.name][verdict.reason]
                    entry.count += 1
                    if len(entry.examples) < examples:
                        entry.examples.append(f"{found.name}: {verdict.detail}" if verdict.detail else found.name)
            _check_held_out(source, groups)
    refuse_empty(curated)
    audit(curated.kept)
    return curated


def _step(split_of: Callable[[str], str], stride: float, test_stride: float, group: str) -> float:
    return stride if split_of(group) == "train" else test_stride


def _splitter(source: Source, *, seed: int, val_fraction: float, test_fraction: float) -> Callable[[str], str]:
    named = {group: split for split, groups in source.held_out.items() for group in groups}

    def split_of(group: str) -> str:
        drawn = assign_split(f"{source.name}-{group}", seed=seed, val_fraction=val_fraction, test_fraction=test_fraction)
        return named.get(group, drawn)

    return split_of


def _keep(curated: Curated, source: Source, found: Found, *, split: str, first: dict[str, str], spool: BinaryIO) -> Drop | None:
    """Store a window, unless it is a bad one or the same was stored before; `first` holds the key of each hash.

    Returns:
        The reason for which it was not stored.
    """
    if isinstance(found.motion, Drop):
        return found.motion
    assert found.captions, found.name
    assert found.label is None or all(found.label in caption for caption in found.captions), found.captions
    data = to_npy(found.motion, curated.rate)
    sha256 = hashlib.sha256(data).hexdigest()
    key = make_key(source.name, found.name)
    kept = first.setdefault(sha256, key)
    if kept != key:
        return Drop("exact_duplicate", f"as {kept}")
    curated.record_bytes = len(data)
    spool.write(data)
    curated.kept.append(Kept(key, source.name, found.name, f"{source.name}-{found.group}", split, sha256, len(curated.kept), found.captions,
                             found.label, found.questions, found.details))
    return None


def make_key(source: str, name: str) -> str:
    """A shard key for a window: readable, unique by its last eight digits."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", f"{source}-{name}").strip("-").lower()[:80]
    return f"{slug}-{hashlib.sha256(f'{source}/{name}'.encode()).hexdigest()[:8]}"


def to_npy(motion: np.ndarray, rate: int) -> bytes:
    """A window (6, samples) as the content of a .npy file of shape (samples, 7) float32, its times from 0 s on."""
    table = np.column_stack([np.arange(motion.shape[1]) / rate, motion.T]).astype(np.float32)
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(table), allow_pickle=False)
    return stream.getvalue()


def _check_held_out(source: Source, groups: set[str]) -> None:
    for split, names in source.held_out.items():
        unknown = [name for name in names if name not in groups]
        if unknown:
            known = sorted(groups, key=lambda group: (len(group), group))[:12]
            raise ConfigError(f"curate_imu.sources.{source.name}.held_out.{split} = {unknown[0]}: the source has no such group; it has "
                              f"{', '.join(known)}{', …' if len(groups) > len(known) else ''}")


def refuse_empty(curated: Curated) -> None:
    """Stop when no window, or none to train on, is left.

    Raises:
        DataError: naming the reason that took most.
    """
    if not curated.kept:
        counts: Counter[str] = Counter()
        for by_reason in curated.dropped.values():
            counts.update({reason: entry.count for reason, entry in by_reason.items()})
        reason, count = counts.most_common(1)[0] if counts else ("", 0)
        if not count:
            raise DataError("curate_imu.sources: hold no recording at all; check the assets' names and the folders that ingest made")
        raise DataError(f"curate_imu: all {curated.seen.total()} windows were dropped, {count} of them for '{reason}' ({REASONS[reason]}); "
                        "correct the source or the window's knobs")
    if not any(kept.split == "train" for kept in curated.kept):
        raise DataError("curate_imu: no window is left to train on; hold out fewer groups (held_out, val_fraction, test_fraction)")


def audit(kept: Sequence[Kept]) -> int:
    """Check that no key, group or window is in two splits.

    Returns:
        Number of windows checked.

    Raises:
        DataError: naming the leaks.
    """
    leaks = []
    for kind, attribute in (("key", "key"), ("group", "group"), ("window", "sha256")):
        splits: dict[str, set[str]] = defaultdict(set)
        for one in kept:
            splits[getattr(one, attribute)].add(one.split)
        leaks += [f"{kind} {name} is in {' and '.join(sorted(found))}" for name, found in sorted(splits.items()) if len(found) > 1]
    if leaks:
        raise DataError(f"curate_imu: {len(leaks)} leaks between splits, the first: {leaks[0]}; nothing was written")
    return len(kept)


def write_shards(curated: Curated, folder: Path, samples_per_shard: int) -> None:
    """Write the kept windows, in an order that a hash of the key decides, one in memory at a time."""
    for split in SPLITS:
        members = [kept for kept in curated.kept if kept.split == split]
        with ShardWriter(folder, split, samples_per_shard) as writer:
            for kept in spread(members, lambda one: one.key, len(members)):
                writer.write(Sample(kept.key, "npy", curated.read(kept), _meta(curated, kept)))


def _meta(curated: Curated, kept: Kept) -> dict[str, Any]:
    meta = {
        "kind": "motion", "split": kept.split, "source": kept.source, "license": curated.licences[kept.source], "captions": list(kept.captions),
        "questions": list(kept.questions), "objects": [], "sha256": kept.sha256, "group": kept.group, "original": kept.name,
        "duration": curated.seconds, "rate": curated.rate, **kept.details,
    }
    return meta if kept.label is None else {**meta, "label": kept.label}


def statistics(curated: Curated) -> dict[str, Any]:
    """Counts of all that was seen, kept and dropped; the same inputs give the same numbers."""
    kept_of = Counter(kept.source for kept in curated.kept)
    sources: dict[str, dict[str, Any]] = {
        name: {"seen": curated.seen[name], "kept": kept_of[name],
               "dropped": {reason: by_reason[reason].count for reason in REASONS if reason in by_reason}}
        for name, by_reason in curated.dropped.items()
    }
    dropped = Counter({reason: sum(source["dropped"].get(reason, 0) for source in sources.values()) for reason in REASONS})
    members = {split: [kept for kept in curated.kept if kept.split == split] for split in SPLITS}
    figures: dict[str, Any] = {
        "seen": curated.seen.total(), "kept": len(curated.kept), "dropped": {reason: dropped[reason] for reason in REASONS if dropped[reason]},
        "sources": sources, "splits": {split: len(found) for split, found in members.items()},
        "groups": {split: len({kept.group for kept in found}) for split, found in members.items()},
        "labels": {split: dict(sorted(Counter(kept.label for kept in found if kept.label is not None).items())) for split, found in members.items()},
        "questions": dict(sorted(Counter(question["kind"] for kept in curated.kept for question in kept.questions).items())),
        "hours": round(len(curated.kept) * curated.seconds / 3600, 3), "leaks": 0,
    }
    for counts in (figures, *sources.values()):
        assert counts["seen"] == counts["kept"] + sum(counts["dropped"].values()), counts
    return figures


def write_report(path: Path, curated: Curated, figures: Mapping[str, Any], examples: int) -> None:
    """Write the report: one HTML page that needs no other file, with the traces of `examples` kept windows."""
    shown = []
    for kept in spread(curated.kept, lambda one: one.key, examples):
        motion = np.load(io.BytesIO(curated.read(kept)), allow_pickle=False)[:, 1:].T
        shown.append({"image": data_uri(traces(motion, curated.rate)), "captions": kept.captions, "questions": kept.questions,
                      "note": f"{kept.split} · {kept.source}/{kept.name}"})
    labels = sorted({label for counts in figures["labels"].values() for label in counts})
    dropped = [
        {"reason": reason, "meaning": meaning, "count": figures["dropped"][reason],
         "examples": [{"name": f"{name}/{text}"[:200], "detail": ""} for name, by_reason in curated.dropped.items() if reason in by_reason
                      for text in by_reason[reason].examples]}
        for reason, meaning in REASONS.items() if reason in figures["dropped"]
    ]
    text = page("motions.html", figures=figures, kept=shown, dropped=dropped, labels=labels, splits=SPLITS, reasons=REASONS, seconds=curated.seconds,
                rate=curated.rate)
    path.write_text(text, encoding="utf-8")


def write_card(folder: Path, curated: Curated, figures: Mapping[str, Any]) -> None:
    """Write the dataset card."""
    write_media_card(
        folder, title="Curated motion recordings with captions", extension="npy", tasks=["question-answering", "other"],
        fields=["duration", "rate", "label", "original"], figures=figures, licences=curated.licences, reasons=REASONS,
        examples=[(kept.key, kept.captions[0]) for kept in spread(curated.kept, lambda one: one.key, 8)],
        splitting="All windows of one person or one video are in one split, and windows of val and test do not overlap.",
        limits=(f"Windows of {curated.seconds:g} s at {curated.rate} Hz, float32 of shape (samples, 7): time in seconds, accelerometer xyz, "
                "gyroscope xyz, in the units of the source. Sensors are not calibrated. Captions made of labels are phrasings of few classes; "
                "narrations name what was seen, which the motion alone may not tell."),
    )
