"""Whether anything that a model is tested on is in its training data: media, what they belong to, and what is said of them.

Held out are the samples of split `test` and the media of benchmarks; everything of splits `train` and `val` is training data, for `val` chooses the
model. Only what is held out stays in memory: training data stream by, once.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from anymal.data.features import FeatureStore
from anymal.data.instructions import ORIGINS, Instruction, read_instructions
from anymal.data.shards import Sample, read_shard
from anymal.errors import ConfigError, DataError
from anymal.evaluation.alike import FRAMES, Comparison, Motions, Pair, Pictures, Print, Sounds, picture_print
from anymal.evaluation.controls import pool
from anymal.progress import track

TEST, TRAINING = "test", ("train", "val")
BLOCK = 256
"""Training samples that are compared at once."""
DECODED = 32
"""Samples whose bytes are in memory at once."""
KEPT = 1000
"""Leaks that are kept one by one; the others are counted."""
PICTURES, CLIPS, SOUNDS, MOTIONS = frozenset({"jpg", "jpeg", "png", "webp"}), frozenset({"mp4"}), frozenset({"flac"}), frozenset({"npy"})
OF_PAIRS = {
    "copy": "the same file", "content": "the same once decoded", "key": "the same key", "pictures": "look alike", "frames": "all frames look alike",
    "sounds": "sound alike", "motions": "move alike", "features": "the same to the encoder",
}  # fmt: skip
"""How two media can be the same, the plainest first; a pair is counted once."""
KINDS = {**OF_PAIRS, "part": "holds a picture of the test split", "group": "is of a group of the test split",
         "instruction": "asks about a test medium"}  # fmt: skip


@dataclass(frozen=True)
class Thresholds:
    """From where two media of a modality are near-duplicates; None: not compared so."""

    bits: int | None
    """Greatest Hamming distance of pHashes (pictures, frames of clips), together with `colour`."""
    colour: float | None
    correlation: float | None
    """Least correlation of sounds or motions."""
    cosine: float | None
    """Least cosine of the encoder's features, pooled."""


@dataclass(frozen=True)
class Leak:
    """Something held out that training data hold."""

    kind: str
    held: str
    """The benchmark, or `test`."""
    modality: str
    test: str
    """Key of the sample, or what the benchmark calls the medium."""
    training: str
    """Key of the training sample, or id of the instruction."""
    split: str
    detail: str = ""

    def sentence(self) -> str:
        """The leak in words."""
        owner = TEST if self.held == TEST else f"benchmark {self.held}"
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.modality} {self.test} ({owner}) and {self.training} ({self.split}): {KINDS[self.kind]}{detail}"


@dataclass
class Found:
    """All leaks, the most alike pairs that are none, and how much was compared."""

    leaks: list[Leak] = field(default_factory=list)
    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """(held, modality, kind) -> leaks."""
    media: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(modality, split or benchmark) -> media."""
    nearest: dict[tuple[str, str, str], tuple[float, dict[str, Any]]] = field(default_factory=dict)
    """(held, modality, kind) -> rank, and the pair with its measures."""
    instructions: dict[str, Counter[str]] = field(default_factory=lambda: {origin: Counter(records=0, media=0, leaks=0) for origin in ORIGINS})
    """Origin -> training records, the media that they name, and how many of these are leaks."""
    known: set[tuple[str, ...]] = field(default_factory=set)
    """What was counted: (held, modality, test, training) of pairs of media, or a kind and what it is told apart by."""

    def add(self, leak: Leak) -> None:
        """Count a leak: a pair of media once, a group once."""
        name: tuple[str, ...] = (leak.held, leak.modality, leak.test, leak.training)
        if leak.kind not in OF_PAIRS:
            name = (leak.kind, leak.modality, leak.test) if leak.kind == "group" else (leak.kind, *name)
        if name not in self.known:
            self.known.add(name)
            self.counts[leak.held, leak.modality, leak.kind] += 1
            if len(self.leaks) < KEPT:
                self.leaks.append(leak)

    def copies(self) -> dict[tuple[str, str], str]:
        """(modality, training key) -> the test sample that it is the same as."""
        return {(name[1], name[3]): name[2] for name in sorted(self.known) if name[0] == TEST and len(name) == 4}

    def near(self, kind: str, rank: float, pair: dict[str, Any], *, held: str, modality: str) -> None:
        """Keep a pair that is no leak if it is the most alike so far."""
        known = self.nearest.get((held, modality, kind))
        if known is None or (rank, str(pair)) < (known[0], str(known[1])):
            self.nearest[held, modality, kind] = (rank, pair)


@dataclass
class Held:
    """What is held out of one modality: the test split, or the media of a benchmark."""

    owner: str
    names: list[str] = field(default_factory=list)
    looks: dict[str, tuple[list[int], list[Print]]] = field(default_factory=dict)
    """Comparison's name -> media that are compared so, and their prints."""
    by_hash: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    """(`copy` or `content`, hash) -> media."""

    def add(self, name: str, compared: str | None, look: Print | None, **hashes: str) -> None:
        """Take one medium."""
        for how, value in hashes.items():
            self.by_hash.setdefault((how, value), []).append(len(self.names))
        if compared is not None and look is not None:
            places, prints = self.looks.setdefault(compared, ([], []))
            places.append(len(self.names))
            prints.append(look)
        self.names.append(name)


@dataclass
class Tests:
    """What is known of the test samples of all modalities."""

    owned: dict[tuple[str, str], str] = field(default_factory=dict)
    """(modality, key) of a sample or of a picture in it -> the sample's key."""
    groups: set[tuple[str, str]] = field(default_factory=set)
    texts: dict[tuple[str, str], frozenset[str]] = field(default_factory=dict)
    """(modality, key) -> questions and captions, folded."""


Media = Mapping[str, Sequence[Path]]
"""Modality -> folders of shards; a folder may lack a split."""


def comparison(modality: str, extension: str, limits: Thresholds) -> Comparison | None:
    """How media of a kind are compared; None: by hashes and features alone.

    Raises:
        ConfigError: if thresholds that it needs are None.
    """
    if extension in PICTURES | CLIPS:
        if limits.bits is None or limits.colour is None:
            raise ConfigError(f"audit.thresholds.{modality}: bits and colour must be numbers, for it has pictures or clips ({extension})")
        return Pictures(frames=FRAMES if extension in CLIPS else None, bits=limits.bits, colour=limits.colour)
    if extension in SOUNDS | MOTIONS:
        if limits.correlation is None:
            raise ConfigError(f"audit.thresholds.{modality}: correlation must be a number, for it has sounds or motions ({extension})")
        return (Sounds if extension in SOUNDS else Motions)(correlation=limits.correlation)
    return None


def find_leaks(
    media: Media, features: Mapping[str, Path], instructions: Sequence[Path], benchmarks: Iterable[Mapping[str, Any]], *,
    thresholds: Mapping[str, Thresholds], workers: int,
) -> Found:
    """Compare all that is held out with all training data.

    Args:
        features: modality -> its feature folder, for modalities with a threshold of the cosine.
        instructions: folders of instructions; their split `test` is not training data.
        benchmarks: `{benchmark, id, modality, sha256, phash, miniature}` of each medium of a benchmark; the last two (hexadecimal) None for other
            media than pictures. A benchmark's modality that has no shards is not compared.
        workers: threads that decode.

    Raises:
        DataError: if a file is damaged, or no training data are there.
        ConfigError: if a modality has no thresholds.
    """
    if missing := [modality for modality in media if modality not in thresholds]:
        raise ConfigError(f"audit.thresholds: has nothing for {missing[0]}, whose shards are given; add it")
    found, tests = Found(), Tests()
    with ThreadPoolExecutor(workers) as threads:
        auditor = _Auditor(found, tests, thresholds, threads)
        for modality, folders in media.items():
            auditor.hold_tests(modality, folders)
        # Parts of one benchmark may show the same medium.
        for row in {(row["benchmark"], row["modality"], row["id"]): row for row in benchmarks}.values():
            auditor.hold_benchmark(row, compared=row["modality"] in media)
        for modality, folders in media.items():
            for split in TRAINING:
                auditor.compare(modality, folders, split)
    if not any(count for (_, split), count in found.media.items() if split in TRAINING):
        raise DataError("audit: the shards hold no training sample; give the folders that curate wrote")
    for modality, folder in features.items():
        if (least := thresholds[modality].cosine) is not None:
            _compare_features(found, modality, folder, least)
    for folder in instructions:
        _check_instructions(found, folder, tests)
    return found


class _Auditor:
    """Reads shards and compares; see `find_leaks`."""

    def __init__(self, found: Found, tests: Tests, thresholds: Mapping[str, Thresholds], threads: ThreadPoolExecutor) -> None:
        self._found, self._tests, self._thresholds, self._threads = found, tests, thresholds, threads
        self._held: dict[str, dict[str, Held]] = {}
        self._comparisons: dict[tuple[str, str], Comparison | None] = {}

    def _owner(self, modality: str, owner: str) -> Held:
        return self._held.setdefault(modality, {}).setdefault(owner, Held(owner))

    def hold_tests(self, modality: str, folders: Sequence[Path]) -> None:
        """Take the test samples of a modality."""
        held = self._owner(modality, TEST)
        for sample in self._described(modality, folders, TEST):
            self._found.media[modality, TEST] += 1
            held.add(sample.key, sample.compared, sample.look, copy=sample.sha256, content=sample.content)
            said = (*sample.meta["captions"], *(entry["question"] for entry in sample.meta["questions"]))
            self._tests.texts[modality, sample.key] = frozenset(map(_fold, said))
            self._tests.groups.add((modality, sample.group))
            for name in sample.owned(modality):
                self._tests.owned.setdefault(name, sample.key)

    def hold_benchmark(self, row: Mapping[str, Any], *, compared: bool) -> None:
        """Take a medium of a benchmark; it is compared if there are shards of its modality (`compared`)."""
        self._found.media[row["modality"], row["benchmark"]] += 1
        if compared:
            pictured = row["phash"] is not None
            look = (picture_print(row["phash"], np.frombuffer(bytes.fromhex(row["miniature"]), np.uint8))[None],) if pictured else None
            self._owner(row["modality"], row["benchmark"]).add(row["id"], "pictures" if pictured else None, look, copy=row["sha256"])

    def compare(self, modality: str, folders: Sequence[Path], split: str) -> None:
        """Compare all training samples of a split with what is held out."""
        samples = self._described(modality, folders, split)
        while block := list(islice(samples, BLOCK)):
            self._found.media[modality, split] += len(block)
            for sample in block:
                self._compare_exactly(modality, sample, split)
            for extension in sorted({sample.extension for sample in block}):
                if (compared := self._comparison(modality, extension)) is not None:
                    others = [(sample.key, sample.look) for sample in block if sample.extension == extension and sample.look is not None]
                    self._compare_looks(compared, modality, others, split)

    def _compare_looks(self, compared: Comparison, modality: str, others: Sequence[tuple[str, Print]], split: str) -> None:
        for held in self._held[modality].values():
            places, prints = held.looks.get(compared.name, ([], []))
            for pair in compared.pairs(prints, [look for _, look in others]) if places else ():
                name = Leak(compared.name, held.owner, modality, held.names[places[pair.held]], others[pair.other][0], split)
                self._take(pair, name)

    def _take(self, pair: Pair, leak: Leak) -> None:
        if pair.hit:
            self._found.add(replace(leak, detail=", ".join(f"{name} {value:g}" for name, value in pair.measures.items())))
        elif (leak.held, leak.modality, leak.test, leak.training) not in self._found.known:
            self._found.near(leak.kind, pair.rank, {"test": leak.test, "training": leak.training, "split": leak.split, **pair.measures},
                             held=leak.held, modality=leak.modality)

    def _compare_exactly(self, modality: str, sample: _Described, split: str) -> None:
        for kind, value in (("copy", sample.sha256), ("content", sample.content)):
            for held in self._held[modality].values():
                for place in held.by_hash.get((kind, value), ()):
                    self._found.add(Leak(kind, held.owner, modality, held.names[place], sample.key, split))
        for name in sample.owned(modality):
            if (test := self._tests.owned.get(name)) is not None:
                kind = "key" if name == (modality, sample.key) == (modality, test) else "part"
                self._found.add(Leak(kind, TEST, modality, test, sample.key, split, "" if kind == "key" else name[1]))
        if (modality, sample.group) in self._tests.groups:
            self._found.add(Leak("group", TEST, modality, sample.group, sample.key, split))

    def _comparison(self, modality: str, extension: str) -> Comparison | None:
        if (modality, extension) not in self._comparisons:
            self._comparisons[modality, extension] = comparison(modality, extension, self._thresholds[modality])
        return self._comparisons[modality, extension]

    def _described(self, modality: str, folders: Sequence[Path], split: str) -> Iterator[_Described]:
        """The samples of a split, decoded a block at a time."""
        paths = [path for folder in folders for path in sorted(folder.glob(f"{split}-[0-9]*.tar"))]
        samples = (sample for path in paths for sample in read_shard(path))
        with track(label=f"audit, {modality} {split}", unit="media") as bar:
            while block := list(islice(samples, DECODED)):
                yield from self._threads.map(lambda sample: self._describe(modality, sample), block)
                bar.update(len(block))

    def _describe(self, modality: str, sample: Sample) -> _Described:
        sha256 = hashlib.sha256(sample.data).hexdigest()
        compared = self._comparison(modality, sample.extension)
        if compared is None:
            return _Described(sample.key, sample.extension, sample.meta, sha256, sha256)
        content, look = compared.describe(sample.data, f"{modality} {sample.key}.{sample.extension}")
        return _Described(sample.key, sample.extension, sample.meta, sha256, content, compared.name, look)


@dataclass(frozen=True)
class _Described:
    """A sample without its bytes."""

    key: str
    extension: str
    meta: dict[str, Any]
    sha256: str
    content: str
    compared: str | None = None
    look: Print | None = None

    @property
    def group(self) -> str:
        return str(self.meta.get("group", self.key))

    def owned(self, modality: str) -> list[tuple[str, str]]:
        """Itself, and the pictures that it was composed of."""
        return [(modality, self.key), *(("image", part) for part in self.meta.get("parts", ()))]


def _fold(text: str) -> str:
    return " ".join(text.lower().split())


def _compare_features(found: Found, modality: str, folder: Path, least: float) -> None:
    """Compare the encoder's features, pooled: what looks or sounds the same to it."""
    splits = {shard["name"].rsplit("-", 1)[0] for shard in FeatureStore(folder).info["shards"]}
    if TEST not in splits:
        return
    test = FeatureStore(folder, TEST)
    held = np.concatenate([rows for _, rows in _pooled(test)])
    keys = [test.meta(row)["key"] for row in range(len(test))]
    for split in sorted(splits & set(TRAINING)):
        store = FeatureStore(folder, split)
        for start, rows in _pooled(store):
            alike = held @ rows.T
            for i, j in zip(*(axis.tolist() for axis in np.nonzero(alike >= least)), strict=True):
                found.add(Leak("features", TEST, modality, keys[i], store.meta(start + j)["key"], split, f"cosine {alike[i, j]:.4f}"))
            left = np.where(alike >= least, -np.inf, alike)
            i, j = divmod(int(np.argmax(left)), left.shape[1])
            if np.isfinite(left[i, j]):
                pair = {"test": keys[i], "training": store.meta(start + j)["key"], "split": split, "cosine": round(float(left[i, j]), 4)}
                found.near("features", -pair["cosine"], pair, held=TEST, modality=modality)


def _pooled(store: FeatureStore) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(store), BLOCK):
        yield start, pool(store.features(range(start, min(start + BLOCK, len(store)))).numpy())


def _check_instructions(found: Found, folder: Path, tests: Tests) -> None:
    """Whether training instructions ask about a test medium, or a training medium that is the same as one."""
    splits = [split for split in TRAINING if (folder / f"{split}.json").is_file()]
    if not splits:
        raise DataError(f"{folder}: holds neither train.json nor val.json; give a folder of instructions")
    copies = found.copies()
    for split in splits:
        for record in read_instructions(folder, split):
            counts = found.instructions[record.origin]
            counts.update({"records": 1, "media": len(record.media)})
            for medium in record.media:
                name = (medium.modality, medium.key)
                test = medium.key if name in tests.texts else copies.get(name)
                if test is not None:
                    counts["leaks"] += 1
                    repeated = ", and says what the test says" if _says(record, tests.texts[medium.modality, test]) else ""
                    found.add(Leak("instruction", TEST, medium.modality, test, record.id, split, f"{record.origin}{repeated}"))


def _says(record: Instruction, texts: frozenset[str]) -> bool:
    said = " ".join(_fold(text) for turn in record.turns for text in turn)
    return any(text in said for text in texts)


def summary(found: Found, thresholds: Mapping[str, Thresholds]) -> dict[str, Any]:
    """The document `results/leakage.json`: how much was compared, by what thresholds, the leaks by kind, and the most alike pairs."""

    def of(held: str, modality: str) -> dict[str, Any]:
        return {"leaks": {kind: found.counts[held, modality, kind] for kind in KINDS},
                "nearest": {kind: pair for (owner, name, kind), (_, pair) in sorted(found.nearest.items()) if (owner, name) == (held, modality)}}

    modalities = sorted({modality for modality, split in found.media if split in (TEST, *TRAINING)})
    benchmarks = sorted({(name, modality) for modality, name in found.media if name not in (TEST, *TRAINING)})
    return {
        "passed": not found.counts.total(),
        "leaks": found.counts.total(),
        "modalities": {name: {"media": {split: found.media[name, split] for split in (*TRAINING, TEST)},
                              "thresholds": {k: v for k, v in vars(thresholds[name]).items() if v is not None}, **of(TEST, name)}
                       for name in modalities},
        "benchmarks": {f"{name}.{modality}": {"media": found.media[modality, name], "compared": modality in modalities, **of(name, modality)}
                       for name, modality in benchmarks},
        "instructions": {name: dict(counts) for name, counts in sorted(found.instructions.items())},
    }  # fmt: skip


def refuse(found: Found, *, shown: int, say: Callable[[str], None]) -> None:
    """Stop if there are leaks.

    Args:
        shown: leaks that are said one by one.
        say: prints a line.

    Raises:
        DataError: with how many there are of each kind, and the first.
    """
    if not found.counts:
        return
    for leak in found.leaks[:shown]:
        say(leak.sentence())
    if (more := found.counts.total() - min(shown, len(found.leaks))) > 0:
        say(f"and {more} more")
    kinds = Counter[str]()
    for (_, _, kind), count in found.counts.items():
        kinds[kind] += count
    by_kind = ", ".join(f"{kind} {kinds[kind]}" for kind in KINDS if kinds[kind])
    raise DataError(f"audit: training data hold {found.counts.total()} of what the model is tested on ({by_kind}); the first: "
                    f"{found.leaks[0].sentence()}; take them out of training, or loosen audit.thresholds if they are none")


def page(document: Mapping[str, Any]) -> str:
    """What `summary` says, as a page for people."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(["html"]), undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    return environment.get_template("leakage.html").render(document=document, kinds=KINDS)
