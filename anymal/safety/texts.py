"""Labelled texts out of their sources: without duplicates, split so that no template, paraphrase or source is on two sides, disguised in part."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from anymal.errors import DataError
from anymal.evaluation.formats import documents
from anymal.safety.near import Unions, near_pairs, stems
from anymal.safety.taxonomy import CODES
from anymal.safety.text_sources import READERS, Skipped, Text, objects, own

SPLITS = ("train", "val", "test", "unseen")
OWN = ("requests", "hard_negatives", "imperatives", "contrasts", "everyday", "harmful", "answers", "languages")
OWN_UNSEEN = ("unseen",)
"""Harmless requests in the register of the sources that are never trained on."""
SAME = 0.5
"""Share of the stems from which two texts are paraphrases and stay in one split."""
NEAR_UNSEEN = 0.35
"""The same between a text of training and one that is to be unseen; the former is dropped."""
LONGEST = 4000

Use = Literal["train", "unseen"]


@dataclass(frozen=True)
class TextRecord:
    """A text of a split: `labels` are codes of the taxonomy, none means harmless; texts of one `group` are never on two sides of a split."""

    id: str
    text: str
    labels: tuple[str, ...]
    source: str
    group: str
    kind: str


@dataclass(frozen=True)
class TextSource:
    """A source: its name, the folder that its reader reads, and whether it is trained on or held out whole."""

    name: str
    folder: Path
    reader: str
    use: Use


@dataclass
class Curated:
    """What came of the sources."""

    splits: dict[str, list[TextRecord]]
    seen: dict[str, int] = field(default_factory=dict)
    """Source -> texts."""
    dropped: dict[str, Counter[str]] = field(default_factory=dict)
    """Source -> reason -> texts; with the kept ones they are what was seen. Disguised copies are no part of either."""

    def statistics(self) -> dict[str, Any]:
        """Counts for the report: by source, and by split, kind and category."""
        kept = Counter(record.source for records in self.splits.values() for record in records if record.kind != "disguised")
        return {
            "sources": {name: {"seen": seen, "kept": kept[name], "dropped": dict(sorted(self.dropped[name].items()))}
                        for name, seen in sorted(self.seen.items())},
            "splits": {split: {
                "texts": len(records), "groups": len({record.group for record in records}), "harmless": sum(not record.labels for record in records),
                "kinds": dict(sorted(Counter(record.kind for record in records).items())),
                "categories": {code: sum(code in record.labels for record in records) for code in CODES},
            } for split, records in self.splits.items()},
        }


def curate_texts(
    sources: Sequence[TextSource], *, val_fraction: float, test_fraction: float, disguised: float, most: int | None, seed: int,
) -> Curated:
    """Read all sources and our own texts, drop what is no use and say why, split by group, and add disguised copies to training.

    Args:
        disguised: share of the training texts, harmful and harmless ones alike, of which a copy within a frame or in disguise is added.
        most: texts taken at most of a source that is trained on (drawn by hash), our own apart; or None.

    Raises:
        DataError: if a source cannot be read, or nothing harmful or harmless is left of a split.
    """
    found: dict[str, list[tuple[Use, Text]]] = {}
    dropped: dict[str, Counter[str]] = {}
    for source in sources:
        kept: list[tuple[Use, Text]] = []
        dropped[source.name] = Counter()
        for item in READERS[source.reader](source.folder):
            if isinstance(item, Skipped):
                dropped[source.name][item.reason] += 1
            else:
                kept.append((source.use, item))
        found[source.name] = kept
    found["own"] = [("train", text) for name in OWN for text in own(name)] + [("unseen", text) for name in OWN_UNSEEN for text in own(name)]
    dropped["own"] = Counter()
    curated = Curated({}, {name: len(texts) + dropped[name].total() for name, texts in found.items()}, dropped)
    flat = _draw(_distinct(found, dropped), dropped, most, seed)
    if not any(use == "unseen" and text.labels for _, use, text in flat):
        raise DataError("curate_safety.sources: no source is held out whole; give one the use 'unseen', or nothing says how the guard does on others")
    curated.splits = _split(flat, dropped, val_fraction, test_fraction, seed)
    for split, records in curated.splits.items():
        for harmful in (True, False):
            if not any(bool(record.labels) == harmful for record in records):
                raise DataError(f"curate_safety: {split} has no {'harmful' if harmful else 'harmless'} text; give more sources or other fractions")
    curated.splits["train"] += disguise(curated.splits["train"], share=disguised, seed=seed)
    return curated


Row = tuple[str, Use, Text]


def _distinct(found: Mapping[str, list[tuple[Use, Text]]], dropped: Mapping[str, Counter[str]]) -> list[Row]:
    """Texts without empty, overlong and repeated ones; what is to be unseen goes first, so that it is training that loses a text of both."""
    rows: list[Row] = []
    known: dict[str, int] = {}
    for wanted in ("unseen", "train"):
        for name, texts in found.items():
            for use, text in texts:
                if use != wanted:
                    continue
                key = " ".join(text.text.casefold().split())
                if not any(sign.isalnum() for sign in key):
                    dropped[name]["empty"] += 1
                elif len(text.text) > LONGEST:
                    dropped[name]["too_long"] += 1
                elif key in known:
                    dropped[name]["duplicate"] += 1
                else:
                    known[key] = len(rows)
                    rows.append((name, use, text))
    return rows


def _draw(rows: list[Row], dropped: Mapping[str, Counter[str]], most: int | None, seed: int) -> list[Row]:
    """At most so many texts of a source that is trained on, by hash; all of our own and of what is unseen."""
    if most is None:
        return rows
    ranks: dict[str, list[str]] = defaultdict(list)
    for name, use, text in rows:
        if use == "train" and name != "own":
            ranks[name].append(_hash(seed, "draw", name, text.text))
    limits = {name: sorted(values)[most] for name, values in ranks.items() if len(values) > most}
    kept = [row for row in rows if row[0] not in limits or row[1] == "unseen" or _hash(seed, "draw", row[0], row[2].text) < limits[row[0]]]
    for name in limits:
        dropped[name]["not_drawn"] = len(ranks[name]) - most
    return kept


def _split(rows: list[Row], dropped: Mapping[str, Counter[str]], val_fraction: float, test_fraction: float, seed: int) -> dict[str, list[TextRecord]]:
    unseen = [row for row in rows if row[1] == "unseen"]
    trained = [row for row in rows if row[1] == "train"]
    sets = [stems(row[2].text) for row in [*unseen, *trained]]
    near = {number - len(unseen) for pair in near_pairs(sets, NEAR_UNSEEN) for number in pair
            if number >= len(unseen) and min(pair) < len(unseen)}
    for number in near:
        dropped[trained[number][0]]["near_unseen"] += 1
    trained = [row for number, row in enumerate(trained) if number not in near]
    sets = [stems(row[2].text) for row in trained]
    unions, first = Unions(len(trained)), dict[str, int]()
    for number, (_, _, text) in enumerate(trained):
        unions.join(number, first.setdefault(text.group, number))
    for one, other in near_pairs(sets, SAME):
        unions.join(one, other)
    groups: dict[int, list[int]] = defaultdict(list)
    for number in range(len(trained)):
        groups[unions.find(number)].append(number)
    strata: dict[tuple[str, ...], list[tuple[str, list[int]]]] = defaultdict(list)
    for members in groups.values():
        name, _, text = trained[members[0]]
        called = _hash(0, "group", *sorted(trained[number][2].group for number in members))[:12]
        strata[(name, text.kind, *text.labels[:1])].append((called, members))
    splits: dict[str, list[TextRecord]] = {split: [] for split in SPLITS}
    for stratum in strata.values():
        whole, done = sum(len(members) for _, members in stratum), 0
        for called, members in sorted(stratum, key=lambda entry: _hash(seed, "split", entry[0])):
            share = (done + len(members) / 2) / whole
            split = "test" if share < test_fraction else "val" if share < test_fraction + val_fraction else "train"
            done += len(members)
            splits[split] += [_record(trained[number][0], trained[number][2], called) for number in members]
    splits["unseen"] = [_record(name, text, _hash(0, "group", text.group)[:12]) for name, _, text in unseen]
    return {split: sorted(records, key=lambda record: record.id) for split, records in splits.items()}


def _record(source: str, text: Text, group: str) -> TextRecord:
    return TextRecord(_hash(0, source, text.text)[:16], text.text, text.labels, source, group, text.kind)


def disguise(records: Sequence[TextRecord], *, share: float, seed: int) -> list[TextRecord]:
    """Copies of a share of the texts, half of them within a frame that asks for obedience, half with characters changed; labels stay.

    Harmless requests are disguised as often as harmful ones, so that a disguise by itself says nothing.
    """
    return [_disguised(record, seed) for record in records if int(_hash(seed, "disguise", record.id)[:8], 16) < share * 2**32]


def _disguised(record: TextRecord, seed: int) -> TextRecord:
    rng = random.Random(_hash(seed, "trick", record.id))  # noqa: S311
    frame = rng.choice(frames())
    framed = rng.random() < 0.5 and record.kind in ("request", "hard_negative")
    said = frame.replace("{text}", record.text) if framed else _roughened(record.text, rng)
    return TextRecord(_hash(0, record.id, said)[:16], said, record.labels, record.source, record.group, "disguised")


def _roughened(said: str, rng: random.Random) -> str:
    """The text as it may look after the guard has undone a trick: other case, letters doubled, dropped, swapped or mistaken, words run together."""
    tricks: tuple[Callable[[str], str], ...] = (
        str.lower, str.upper,
        lambda text: "".join(sign * (2 if sign.isalpha() and rng.random() < 0.06 else 1) for sign in text),
        lambda text: "".join(sign for sign in text if not sign.isalpha() or rng.random() > 0.04),
        lambda text: " ".join(_swap(word, rng) if rng.random() < 0.2 else word for word in text.split()),
        lambda text: "".join("" if sign == " " and rng.random() < 0.15 else sign for sign in text),
        lambda text: "".join(sign + (" " if sign.isalpha() and rng.random() < 0.03 else "") for sign in text),
        lambda text: text.rstrip(".?!").replace(",", ""),
    )
    return rng.choice(tricks)(said)


def _swap(word: str, rng: random.Random) -> str:
    if len(word) < 4:
        return word
    at = rng.randrange(1, len(word) - 2)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def frames() -> tuple[str, ...]:
    """Frames around a request that training knows, each with `{text}`."""
    return tuple(text.text for text in own("frames"))


def _hash(seed: int, *parts: str) -> str:
    return hashlib.sha256("\0".join((str(seed), *parts)).encode()).hexdigest()


def write_texts(folder: Path, splits: Mapping[str, Sequence[TextRecord]]) -> None:
    """Write `SPLIT.jsonl` per split, a text a line."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, records in splits.items():
        documents.write_lines(folder / f"{split}.jsonl", ({**asdict(record), "labels": list(record.labels)} for record in records))


def read_texts(path: Path) -> list[TextRecord]:
    """The texts of a split's file.

    Raises:
        DataError: if it is missing or of another layout.
    """
    records = []
    for where, entry in objects(path):
        fields = {name: documents.field(entry, name, where, (str,)) for name in ("id", "text", "source", "group", "kind")}
        labels = documents.field(entry, "labels", where, (list,))
        unknown = [label for label in labels if label not in CODES]
        if unknown:
            raise DataError(f"{where}: has the label '{unknown[0]}', which taxonomy.yaml lacks; run curate_safety again")
        records.append(TextRecord(labels=tuple(labels), **fields))
    return records


def dump(records: Iterable[TextRecord]) -> str:
    """The lines of a split's file, for comparison."""
    return "".join(json.dumps({**asdict(record), "labels": list(record.labels)}, ensure_ascii=False) + "\n" for record in records)
