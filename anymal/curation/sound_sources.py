"""Readers of sounds: how the recordings of a source are found on disk, and what the source says of each.

A reader yields every sound that it meets or is told of, readable or not, in a fixed order: what is wrong with one is said in its `problem` and
counted later. A new kind of source is one function here and one entry in `READERS`.
"""

from __future__ import annotations

import csv
import io
import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from xml.parsers import expat

from anymal.curation.drops import Drop
from anymal.curation.files import read_text
from anymal.errors import DataError
from anymal.media.audio import MAX_BYTES, SUFFIXES

MAX_XML_BYTES = 4 * 2**20
MAX_TEXT_BYTES = 2**20
MAX_CAPTIONS = 20
"""Captions of one sound that are used; the data sets have five."""
VOICE = re.compile(r"_desc(_[a-z]{2,3})?(_[A-Z]{2})?$")


@dataclass(frozen=True)
class Recording:
    """One sound of a source. `words` are tried by the labels' patterns in turn: each entry is a set of names, tried together."""

    name: str
    """Path within the source, with forward slashes."""
    path: Path
    group: str
    """What a split keeps together, within the source."""
    words: tuple[tuple[str, ...], ...] = ()
    captions: tuple[str, ...] = ()
    split: str | None = None
    """The source's own split, where it has one."""
    offset: int | None = None
    """Where its bytes start, for a member of a tar."""
    size: int = 0
    problem: Drop | None = None

    def open(self) -> Path | BinaryIO:
        """What a decoder reads: the file, or the bytes of a tar's member."""
        if self.offset is None:
            return self.path
        with self.path.open("rb") as stream:
            stream.seek(self.offset)
            return io.BytesIO(stream.read(min(self.size, MAX_BYTES + 1)))


@dataclass(frozen=True)
class Table:
    """One CSV file of captions, as AudioCaps and Clotho have them.

    Args:
        file: path of the CSV file within the asset.
        folder: where its sounds lie, within the asset.
        name: the sound's file name, with columns in braces: "{file_name}", "{youtube_id}_{start_time}.wav".
        captions: columns that hold a caption.
        split: that all its sounds belong to; None to split by the hash of the file's name.
    """

    file: str
    folder: str
    name: str
    captions: tuple[str, ...]
    split: str | None


def _sounds(root: Path, source: str) -> list[Path]:
    """All sound files below a folder, in the order of their paths."""
    if not root.is_dir():
        raise DataError(f"curate_audio.sources.{source}: folder {root} not found; run ingest, or correct the asset's name")
    found = (path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and not path.is_dir())
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _leaves(path: Path, root: Path) -> Drop | None:
    return None if path.resolve().is_relative_to(root.resolve()) else Drop("unreadable", "a link that leaves the folder")


def hydrogen_drumkits(root: Path, source: str, _: Sequence[Table]) -> Iterator[Recording]:
    """Kits of the Hydrogen drum machine: a folder with `drumkit.xml`, which says which instrument plays which file. The kit is the group.

    A file that the XML names with another suffix than it has on disk is found; a file that no instrument plays has no words.
    """
    kits: dict[Path, list[Path]] = defaultdict(list)
    for path in _sounds(root, source):
        kits[path.parent].append(path)
    for xml in root.rglob("drumkit.xml"):
        kits.setdefault(xml.parent, [])
    for kit, paths in sorted(kits.items()):
        group = kit.relative_to(root).as_posix()
        try:
            played = read_drumkit(kit / "drumkit.xml")
        except DataError as error:
            problem = Drop("unreadable", str(error))
            yield Recording(f"{group}/drumkit.xml", kit / "drumkit.xml", group, problem=problem)
            for path in paths:
                yield Recording(path.relative_to(root).as_posix(), path, group, problem=Drop("unlabelled", "its kit's drumkit.xml cannot be read"))
            continue
        names = {path.name for path in paths}
        stems = {path.stem: path.name for path in reversed(paths)}
        instruments: dict[str, list[str]] = defaultdict(list)
        for instrument, file in played:
            on_disk = file if file in names else stems.get(PurePosixPath(file).stem, file)
            instruments[on_disk].append(instrument)
        for path in paths:
            name = path.relative_to(root).as_posix()
            if path.name not in instruments:
                yield Recording(name, path, group, problem=Drop("unlabelled", "no instrument of drumkit.xml plays it"))
                continue
            words = (tuple(dict.fromkeys(instruments[path.name])), (path.stem,))
            yield Recording(name, path, group, words, problem=_leaves(path, root))
        for file in sorted(set(instruments) - names):
            yield Recording(f"{group}/{file}", kit / "drumkit.xml", group, problem=Drop("missing", "named in drumkit.xml"))


def read_drumkit(path: Path) -> list[tuple[str, str]]:
    """(instrument, file name) pairs of a `drumkit.xml`, with or without a name space.

    Raises:
        DataError: if the file is missing, too large, no XML, or declares a document type (entities can blow up or read other files).
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_XML_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read ({error.strerror})") from error
    if len(data) > MAX_XML_BYTES:
        raise DataError(f"{path.name}: more than the {MAX_XML_BYTES} bytes allowed")
    reading = _Drumkit()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = reading.start, reading.end, reading.text
    parser.StartDoctypeDeclHandler = reading.doctype
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise DataError(f"{path.name}: is no XML that can be read ({error})") from error
    return [(instrument, file) for instrument, files in reading.found for file in files]


class _Drumkit:
    """Collects the names and files of instruments while expat reads."""

    def __init__(self) -> None:
        self.found: list[tuple[str, list[str]]] = []
        self._open: list[str] = []
        self._name = ""
        self._files: list[str] = []
        self._text = ""

    def doctype(self, *_: object) -> None:
        raise ValueError("a document type is declared, which is not allowed")

    def start(self, tag: str, _: object) -> None:
        self._open.append(tag.rpartition(":")[2])
        self._text = ""
        if self._open[-1] == "instrument":
            self._name, self._files = "", []

    def text(self, text: str) -> None:
        self._text += text

    def end(self, _: str) -> None:
        tag = self._open.pop()
        if tag == "name" and self._open and self._open[-1] == "instrument":
            self._name = self._text.strip()
        elif tag == "filename" and "instrument" in self._open and self._text.strip():
            self._files.append(self._text.strip())
        elif tag == "instrument":
            self.found.append((self._name, self._files))
        self._text = ""


def named_sounds(root: Path, source: str, _: Sequence[Table]) -> Iterator[Recording]:
    """Sounds whose file names are all that is said of them. The group is their folder, or the source at its top."""
    for path in _sounds(root, source):
        name = path.relative_to(root).as_posix()
        folder = PurePosixPath(name).parent.as_posix()
        yield Recording(name, path, source if folder == "." else folder, ((path.stem,),), problem=_leaves(path, root))


def captioned_sounds(root: Path, source: str, _: Sequence[Table]) -> Iterator[Recording]:
    """Sounds of things beside a text file that names the thing in its first line (`frog.ogg`, `frog.txt`), and voices that say it
    (`frog_desc.ogg`, `frog_desc_fr.ogg`). A thing's sound has the text as its caption, a voice has the file's name as words; both are one group.
    """
    for path in _sounds(root, source):
        name = path.relative_to(root).as_posix()
        thing = VOICE.sub("", path.stem)
        group = path.with_name(thing).relative_to(root).as_posix()
        if thing != path.stem:
            yield Recording(name, path, group, ((path.stem,),), problem=_leaves(path, root))
            continue
        sidecar = path.with_name(f"{thing}.txt")
        line = read_text(sidecar, MAX_TEXT_BYTES).split("\n", 1)[0] if sidecar.is_file() else ""
        captions = tidy_captions([line])
        yield Recording(name, path, group, captions=captions, problem=_leaves(path, root) or (None if captions else Drop("no_caption")))


def tidy_captions(texts: Sequence[object]) -> tuple[str, ...]:
    """Captions without surplus blanks, doubles, and what is no text."""
    lines = (" ".join(text.split()) for text in texts if isinstance(text, str))
    return tuple(dict.fromkeys(line for line in lines if line))[:MAX_CAPTIONS]


@dataclass
class _Row:
    split: str | None
    captions: list[str] = field(default_factory=list)
    tables: set[str | None] = field(default_factory=set)


def csv_captions(root: Path, source: str, tables: Sequence[Table]) -> Iterator[Recording]:
    """Sounds beside CSV files with a row per sound (Clotho) or per caption (AudioCaps). The file is the group.

    A row whose file is missing, and a file that no row names, are each one dropped sound.

    Raises:
        DataError: if a table is missing, is no CSV in UTF-8, or lacks a column.
    """
    paths = _sounds(root, source)
    rows: dict[str, _Row] = {}
    for table in tables:
        for name, texts in _read_table(root, source, table):
            row = rows.setdefault(name, _Row(table.split))
            row.captions.extend(texts)
            row.tables.add(table.split)
    on_disk = set()
    for path in paths:
        name = path.relative_to(root).as_posix()
        on_disk.add(name)
        found = rows.get(name)
        captions = tidy_captions(found.captions if found else [])
        problem = _leaves(path, root) or (None if captions else Drop("no_caption", "no row of a table names it" if found is None else ""))
        if found is not None and len(found.tables) > 1:
            problem = Drop("ambiguous_split", "named in tables of several splits")
        yield Recording(name, path, name, captions=captions, split=found.split if found else None, problem=problem)
    for name in sorted(set(rows) - on_disk):
        yield Recording(name, root, name, problem=Drop("missing", "named in a table"))


def _read_table(root: Path, source: str, table: Table) -> Iterator[tuple[str, list[str]]]:
    """(path of the sound within the source, captions) of each row."""
    where = f"curate_audio.sources.{source}.tables: {table.file}"
    columns = re.findall(r"\{([^{}]*)\}", table.name)
    try:
        with (root / table.file).open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            absent = [column for column in (*columns, *table.captions) if column not in (reader.fieldnames or ())]
            if absent:
                raise DataError(f"{where} has no column {absent[0]!r}; it has {', '.join(map(repr, reader.fieldnames or ())) or 'none'}")
            for row in reader:
                file = re.sub(r"\{([^{}]*)\}", lambda match, row=row: (row[match[1]] or "").strip(), table.name)  # type: ignore[misc]
                yield (PurePosixPath(table.folder) / file).as_posix(), [row[column] or "" for column in table.captions]
    except OSError as error:
        raise DataError(f"{where} cannot be read ({error.strerror}); run ingest, or correct its path") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{where} is no CSV in UTF-8 ({error}); save it as UTF-8 with commas") from error


def webdataset(root: Path, source: str, _: Sequence[Table]) -> Iterator[Recording]:
    """Tar shards as LAION's audio tools write them: `KEY.flac` with `KEY.json` (`text` or `caption`: a text or a list of texts) or `KEY.txt`.

    Nothing is unpacked. The key is the group. A damaged shard costs the sounds after the damage, and is one dropped sound itself.
    """
    shards = sorted(root.rglob("*.tar")) if root.is_dir() else []
    if not shards:
        raise DataError(f"curate_audio.sources.{source}: {root} holds no .tar shard; run ingest, or correct the asset's name")
    seen: set[str] = set()
    for shard in shards:
        sounds: list[tuple[str, Recording]] = []
        texts: dict[str, tuple[str, ...]] = {}
        damage: str | None = None
        try:
            with tarfile.open(shard, "r:") as tar:
                for member in tar:
                    _take(member, tar, shard, sounds, texts)
        except (tarfile.TarError, EOFError, OSError) as error:
            damage = str(error)
        place = shard.relative_to(root).as_posix()
        for key, sound in sorted(sounds, key=lambda pair: pair[1].name):
            captions = texts.get(key, ())
            problem = sound.problem or (None if captions else Drop("no_caption"))
            if key in seen:
                problem = Drop("duplicate_key", key)
            seen.add(key)
            yield Recording(f"{place}/{sound.name}", shard, key, captions=captions, offset=sound.offset, size=sound.size, problem=problem)
        if damage is not None:
            yield Recording(place, shard, place, problem=Drop("unreadable", f"damaged shard: {damage}"))


def _take(member: tarfile.TarInfo, tar: tarfile.TarFile, shard: Path, sounds: list[tuple[str, Recording]], texts: dict[str, tuple[str, ...]]) -> None:
    folder, _, name = member.name.rpartition("/")
    base, _, extension = name.partition(".")
    key = f"{folder}/{base}".lstrip("/")
    if f".{extension.lower()}" in SUFFIXES:
        problem = None
        if not member.isfile():
            problem = Drop("unreadable", "not a plain file")
        elif member.offset_data + member.size > shard.stat().st_size:
            problem = Drop("unreadable", "the shard ends before it")
        sounds.append((key, Recording(f"{key}.{extension.lower()}", shard, key, offset=member.offset_data, size=member.size, problem=problem)))
    elif member.isfile() and extension in ("txt", "json"):
        stream = tar.extractfile(member)
        text = stream.read(MAX_TEXT_BYTES).decode("utf-8", errors="replace") if stream else ""
        found: object = text
        if extension == "json":
            try:
                record = json.loads(text)
            except ValueError:
                return
            found = record.get("text") or record.get("caption") if isinstance(record, dict) else None
        captions = tidy_captions(found if isinstance(found, list) else [found])
        if captions and (extension == "json" or key not in texts):
            texts[key] = captions


READERS: dict[str, Callable[[Path, str, Sequence[Table]], Iterator[Recording]]] = {
    "hydrogen_drumkits": hydrogen_drumkits, "named_sounds": named_sounds, "captioned_sounds": captioned_sounds, "csv": csv_captions,
    "webdataset": webdataset,
}
