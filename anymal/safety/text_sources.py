"""The sources of texts, each with labels of its own that the taxonomy turns into ours."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from anymal.errors import DataError
from anymal.evaluation.formats import documents
from anymal.safety.taxonomy import CODES, taxonomy

CORPUS = Path(__file__).parent / "corpus"
"""Texts of our own."""

Kind = Literal["request", "hard_negative", "answer", "sentence"]
KINDS: tuple[Kind, ...] = ("request", "hard_negative", "answer", "sentence")
NAMED = re.compile(r"\bmy ([a-z-]+(?: [a-z-]+)?), [A-Z]\w+")
CAPITALISED = re.compile(r"(?<=[a-z,] )[A-Z][\w-]*(?:'s)?")


@dataclass(frozen=True)
class Text:
    """A text as its source has it: labels are ours, none of them means harmless; `group` is what the source's own templates keep together."""

    text: str
    labels: tuple[str, ...]
    group: str
    kind: Kind


@dataclass(frozen=True)
class Skipped:
    """A text that is left out, and why."""

    text: str
    reason: str


Reader = Callable[[Path], Iterator[Text | Skipped]]


def do_not_answer(root: Path) -> Iterator[Text | Skipped]:
    """Questions that a model should not answer, and questions for advice among them that it may, of `donotanswer/*.jsonl`."""
    for path in _files(root / "donotanswer", "*.jsonl"):
        for where, entry in objects(path):
            said = documents.field(entry, "prompt", where, (str,)).replace("‚Äô", "’").strip()
            intents = "+".join(documents.field(entry, "intents", where, (list,)))
            rule = next((rule for rule in taxonomy().do_not_answer if rule.fits(path.stem, intents, said)), None)
            if rule is None:
                raise DataError(f"{where}: no rule of do_not_answer in taxonomy.yaml fits intents {intents}; add one")
            if rule.skip:
                yield Skipped(said, "no_category")
                continue
            labels = () if rule.harmless else _ordered(*rule.labels, *(taxonomy().named(said) if rule.words else ())) or (taxonomy().fallback,)
            template = CAPITALISED.sub("X", NAMED.sub("my R, N", said))
            yield Text(said, labels, f"do-not-answer:{template}", "hard_negative" if rule.harmless else "request")


def phrasing(root: Path) -> Iterator[Text | Skipped]:
    """Harmful requests asked of the past or the future, of `phrasing/*.txt`."""
    left_out = re.compile(taxonomy().phrasing.skip, re.IGNORECASE)
    for path in _files(root / "phrasing", "*.txt"):
        for said in _lines(path):
            if left_out.search(said):
                yield Skipped(said, "no_category")
            else:
                yield Text(said, taxonomy().by_words(said), f"phrasing:{said}", "request")


def toxicity(root: Path) -> Iterator[Text | Skipped]:
    """Beginnings of sentences of the web, of `realtoxicityprompts/rtp_*.txt`: those that the taxonomy picks, harmful ones and innocent ones."""
    for name, picks in taxonomy().toxicity.items():
        path = root / "realtoxicityprompts" / f"rtp_{name}.txt"
        lines = documents.read_text(path).split("\n")
        chosen = {number: joined for joined, numbers in picks.items() for number in numbers}
        if max(chosen) > len(lines):
            raise DataError(f"{path}: has {len(lines)} lines, and taxonomy.yaml picks line {max(chosen)}; give the version of assets.lock.yaml")
        for number, line in enumerate(lines, start=1):
            joined = chosen.get(number)
            if not line.strip():
                continue
            if joined is None:
                yield Skipped(line.strip(), "not_picked")
            else:
                labels = () if joined == "harmless" else tuple(joined.split(", "))
                yield Text(line.strip(), labels, f"toxicity:{line.strip()}", "sentence")


def harmbench(root: Path) -> Iterator[Text | Skipped]:
    """Standard behaviours of HarmBench, of `harmbench/harmbench_prompts.txt`."""
    for said in _lines(root / "harmbench" / "harmbench_prompts.txt"):
        yield Text(said, taxonomy().by_words(said), f"harmbench:{said}", "request")


def jigsaw(root: Path) -> Iterator[Text | Skipped]:
    """Jigsaw's toxic comments: `train.csv` with the columns comment_text and one of 0 or 1 per label; comments without any are harmless."""
    path = root / "train.csv"
    columns = taxonomy().jigsaw
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = csv.DictReader(stream)
            missing = {"comment_text", *columns} - set(rows.fieldnames or ())
            if missing:
                raise DataError(f"{path}: lacks the column {min(missing)}; give Jigsaw's train.csv")
            for row in rows:
                said = " ".join((row["comment_text"] or "").split())
                labels = _ordered(*(code for column, code in columns.items() if row[column] == "1"))
                yield Text(said, labels, f"jigsaw:{said}", "sentence")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error}); give Jigsaw's train.csv") from error


def own(name: str) -> Iterator[Text]:
    """Texts of our own: a file of the corpus, a JSON object a line with text, labels, group and kind."""
    path = CORPUS / f"{name}.jsonl"
    for where, entry in objects(path):
        unknown = set(entry["labels"]) - set(CODES)
        if unknown or entry["kind"] not in KINDS:
            raise DataError(f"{where}: has label or kind '{min(unknown, default=entry['kind'])}', which the taxonomy lacks; correct it")
        yield Text(entry["text"], _ordered(*entry["labels"]), f"own:{entry['group']}", entry["kind"])


READERS: dict[str, Reader] = {
    "do_not_answer": do_not_answer, "phrasing": phrasing, "toxicity": toxicity, "harmbench": harmbench, "jigsaw": jigsaw,
}
"""Reader's name -> what reads a folder."""


def objects(path: Path) -> list[documents.Entry]:
    """The objects of a file of JSON lines, each with where it stands; one line is a file, too."""
    document = documents.read_json(path)
    return documents.entries(path, [document] if isinstance(document, dict) else document)


def _ordered(*found: str) -> tuple[str, ...]:
    return tuple(code for code in CODES if code in found)


def _files(folder: Path, pattern: str) -> list[Path]:
    found = sorted(folder.glob(pattern))
    if not found:
        raise DataError(f"{folder}: holds no {pattern}; give the folder of the asset that the reader is for")
    return found


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in documents.read_text(path).splitlines() if line.strip()]
