"""Import of instruction data that people wrote (MM-IT, paper section 3.2): checked, freed of duplicates and of what leaks from tests, and split.

Texts are judged first, files second, comparisons with the curated shards last. What the media show is not judged; a person does that.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from anymal.curation import instruction_media
from anymal.curation.drops import Drop, all_dropped
from anymal.curation.duplicates import assign_split, components
from anymal.curation.instruction_media import Index, Known, MediaSettings, Stored
from anymal.curation.instruction_readers import READERS, Raw
from anymal.curation.screening import REASONS as HARMFUL
from anymal.curation.screening import Screen
from anymal.data.instructions import Instruction, InvalidRecordError, MediumName, parse_instruction
from anymal.errors import ConfigError, DataError
from anymal.model.modalities import placeholder

REASONS: dict[str, str] = {
    "not_json": "the line is no JSON",
    "not_a_record": "the record has another form than the reader's",
    "not_text": "a text holds code points that are no characters",
    "not_annotated": "nobody has annotated the task",
    "skipped": "the annotator skipped the task",
    "draft": "the annotation was not submitted",
    "superseded": "another annotation of the task is marked as ground truth",
    "unknown_form": "the annotation was not made with the project's labelling configuration",
    "answerable_without_medium": "it can be answered without the medium",
    "no_consent": "a person in the medium has not agreed to its use",
    "no_conversation": "it has no question",
    "roles": "turns do not alternate between human and gpt",
    "empty_question": "a question holds no text beside placeholders",
    "empty_answer": "an answer holds no text",
    "placeholder_mismatch": "placeholders and media are not equally many, or an answer holds a placeholder",
    "unlabelled": "neither the record nor its source names a licence, an origin and a kind",
    "duplicate_id": "another record of the source has the same id",
    "no_medium": "it is about no medium",
    "too_many_media": "it names more media than allowed",
    "too_long": "it has more turns, or a longer question or answer, than allowed",
    "remote_media": "a medium is named by an address; files must lie beside the records",
    "path_escapes": "the name of a medium leads out of the source's folder",
    "missing_media": "a medium is neither a file of the source nor a member of the curated shards",
    "media_unreadable": "a medium cannot be used",
    "test_leak": "a medium is, or looks like, one of a curated test split",
    "duplicate": "the same was asked of the same media before",
    **{reason: meaning for reason, meaning in HARMFUL.items() if reason != "harmful_together"},
}
"""In the order in which the rules are applied, each with the sentence that the report shows."""


@dataclass(frozen=True)
class Source:
    """One source: its file of records, how it is read, the folder of its media, and what is true of records that do not say.

    Attributes:
        media: folder of files; None where records name members of the curated shards only.
        licence: None where each record must name its own.
    """

    name: str
    file: Path
    reader: str
    media: Path | None
    origin: str
    kind: str
    licence: str | None


@dataclass(frozen=True)
class TextLimits:
    """What a record may hold; `max_characters` of each question and answer."""

    max_characters: int
    max_turns: int
    max_media: int


@dataclass(frozen=True)
class Medium:
    """A medium as resolved: the name that instructions use, its group, and where it is: in a curated shard or among the new ones."""

    name: MediumName
    group: str
    known: Known | None
    stored: Stored | None


@dataclass
class Candidate:
    """One record on its way through the rules."""

    source: Source
    name: str
    drop: Drop | None = None
    instruction: Instruction | None = None
    group: str | None = None
    """What its source says it belongs with, such as the video that clips were cut from."""
    files: tuple[Path | None, ...] = ()
    """Of each medium; None for those that must be members of shards."""
    media: tuple[Medium, ...] = ()
    split: str = ""


@dataclass
class Imported:
    """All that was found, in the order of sources and files."""

    candidates: list[Candidate]
    test_wanted: int
    groups: dict[str, str] = field(default_factory=dict)
    """Group of a medium -> what the split keeps together with it."""
    screened: bool = False
    """Whether safety classifiers were asked."""

    @property
    def kept(self) -> list[Candidate]:
        """The candidates without a reason against them."""
        return [candidate for candidate in self.candidates if candidate.drop is None]


def import_records(sources: Sequence[Source], shards: Sequence[Path], *, limits: TextLimits, media: MediaSettings, test_count: int,
                   val_fraction: float, seed: int, scratch: Path, workers: int, screen: Screen | None = None) -> Imported:
    """Read, check, resolve and split.

    Args:
        shards: folders of curated shards.
        test_count: instructions to hold out for people to judge.
        val_fraction: of the groups that are not held out.
        scratch: folder for converted files; they must stay until everything is written.
        screen: safety classifiers to ask about texts and new pictures; those of the curated shards were looked at there. None for none.

    Raises:
        ConfigError: naming the source whose file or folder is wrong.
        DataError: for a file that is no list of records, damaged shards, and if nothing is left, or nothing to train on.
    """
    candidates = [candidate for source in sources for candidate in _collect(source, limits)]
    _resolve(candidates, shards, media, scratch, workers)
    _drop_duplicates(candidates)
    if screen is not None:
        _drop_harmful([candidate for candidate in candidates if candidate.drop is None], screen)
    imported = Imported(candidates, test_count, screened=screen is not None)
    if sources:
        _refuse_empty(imported)
        _split(imported, test_count=test_count, val_fraction=val_fraction, seed=seed)
    assert all(candidate.drop is None or candidate.drop.reason in REASONS for candidate in candidates)
    return imported


def _collect(source: Source, limits: TextLimits) -> list[Candidate]:
    """The records of one source, their texts judged and their files looked for."""
    if source.media is not None and not source.media.is_dir():
        raise ConfigError(f"import_instructions.sources.{source.name}.media: {source.media} is no folder; correct it, or give null where all media "
                          "are members of the curated shards")
    found, seen = [], set()
    for raw in READERS[source.reader](source.file):
        candidate = Candidate(source, raw.name)
        candidate.drop = raw.drop or _judge(candidate, raw, limits)
        if candidate.drop is None and candidate.name in seen:
            candidate.drop = Drop("duplicate_id")
        if candidate.drop is None:
            seen.add(candidate.name)
            _locate(candidate)
        found.append(candidate)
    return found


def _judge(candidate: Candidate, raw: Raw, limits: TextLimits) -> Drop | None:
    source = candidate.source
    labels = {"origin": source.origin, "kind": source.kind, "source": source.name} | ({} if source.licence is None else {"license": source.licence})
    try:
        parsed = parse_instruction(raw.record, **labels)
    except InvalidRecordError as error:
        return Drop(error.reason, str(error).removeprefix(f"record {raw.name}: "))
    group = raw.record.get("group") if raw.record else None
    candidate.instruction, candidate.group = parsed, None if group is None else f"{source.name}/{group}"
    return _judge_size(parsed, limits)


def _judge_size(parsed: Instruction, limits: TextLimits) -> Drop | None:
    texts = [text for turn in parsed.turns for text in turn]
    try:
        "".join([parsed.id, parsed.kind, parsed.license, *texts, *(medium.member for medium in parsed.media)]).encode()
    except UnicodeEncodeError:
        return Drop("not_text")
    if not parsed.media:
        return Drop("no_medium")
    if len(parsed.media) > limits.max_media:
        return Drop("too_many_media", f"{len(parsed.media)}, more than {limits.max_media}")
    if len(parsed.turns) > limits.max_turns:
        return Drop("too_long", f"{len(parsed.turns)} turns, more than {limits.max_turns}")
    if (longest := max(map(len, texts))) > limits.max_characters:
        return Drop("too_long", f"{longest} characters, more than {limits.max_characters}")
    return None


def _locate(candidate: Candidate) -> None:
    assert candidate.instruction is not None
    places = [instruction_media.locate(medium.member, candidate.source.media) for medium in candidate.instruction.media]
    candidate.drop = next((place for place in places if isinstance(place, Drop)), None)
    candidate.files = tuple(place for place in places if not isinstance(place, Drop))


def _resolve(candidates: Sequence[Candidate], shards: Sequence[Path], settings: MediaSettings, scratch: Path, workers: int) -> None:
    """Find or convert the media of all candidates that are still there, and drop those that have no right to theirs."""
    alive = [candidate for candidate in candidates if candidate.drop is None]
    files: dict[Path, str] = {}
    members: set[str] = set()
    for candidate in alive:
        for medium, file in _pairs(candidate):
            if file is None:
                members.add(_last(medium.member))
            elif files.setdefault(file, medium.modality) != medium.modality:
                candidate.drop = Drop("media_unreadable", f"{medium.member[:80]} is also named as {files[file]}")
    made = instruction_media.convert(files, settings, scratch=scratch, workers=workers)
    stored = {path: entry for path, entry in made.items() if isinstance(entry, Stored)}
    hashes = {digest for entry in stored.values() for digest in (entry.found, entry.sha256)}
    index = instruction_media.index_shards(shards if alive else (), members=members, hashes=hashes, normalise=normalise,
                                           pictures=any(entry.phash for entry in stored.values()))
    same, leaks = instruction_media.alike(list(stored.values()), index, bits=settings.same_bits, colour=settings.same_colour)
    looks = {path: leaks[place] for place, path in enumerate(stored) if place in leaks}
    resolver = _Resolver(made, index, looks, _groups(stored, same))
    for candidate in alive:
        if candidate.drop is None:
            candidate.drop = resolver.attach(candidate)


def _groups(stored: Mapping[Path, Stored], same: Sequence[tuple[int, int]]) -> dict[Path, str]:
    """File -> group: one for all pictures that look alike, named by the smallest hash among them."""
    entries = list(stored.values())
    labels = components(len(entries), same) if entries else []
    names: dict[int, str] = {}
    for entry, label in zip(entries, labels, strict=True):
        names[label] = min(names.get(label, entry.sha256), entry.sha256)
    return {path: f"imported/{names[label]}" for path, label in zip(stored, labels, strict=True)}


@dataclass
class _Resolver:
    """Names of media to media.

    Attributes:
        made: file -> converted file, or why there is none.
        looks: file -> key of the test sample that it looks like.
        groups: file -> group.
        first: (modality, SHA-256) -> the medium that all files of the same content become.
    """

    made: Mapping[Path, Stored | Drop]
    index: Index
    looks: Mapping[Path, str]
    groups: Mapping[Path, str]
    first: dict[tuple[str, str], Medium] = field(default_factory=dict)

    def attach(self, candidate: Candidate) -> Drop | None:
        """Give a candidate its media; the reason to drop it, if one cannot be had or belongs to a test split."""
        media = []
        for name, file in _pairs(candidate):
            found = self._member(name) if file is None else self._file(candidate, name, file)
            if isinstance(found, Drop):
                return replace(found, detail=": ".join(filter(None, (name.member[:80], found.detail))))
            media.append(found)
        assert candidate.instruction is not None
        candidate.media = tuple(media)
        candidate.instruction = replace(candidate.instruction, id=f"{candidate.source.name}-{candidate.instruction.id}",
                                        source=candidate.source.name, media=tuple(medium.name for medium in media))
        return None

    def _member(self, name: MediumName) -> Medium | Drop:
        known = self.index.members.get(_last(name.member))
        return Drop("missing_media") if known is None else self._known(name.modality, known)

    def _known(self, modality: str, known: Known) -> Medium | Drop:
        belongs = instruction_media.modality_of_member(known.member)
        if belongs not in ("", modality):
            return Drop("missing_media", f"is no {modality} but {belongs}")
        if known.split == "test":
            return Drop("test_leak", f"is sample {known.member}")
        return Medium(MediumName(modality, known.member), known.group, known, None)

    def _file(self, candidate: Candidate, name: MediumName, file: Path) -> Medium | Drop:
        stored = self.made[file]
        if isinstance(stored, Drop):
            return stored
        known = self.index.hashes.get(stored.found) or self.index.hashes.get(stored.sha256)
        if known is not None:
            return self._known(name.modality, known)
        if file in self.looks:
            return Drop("test_leak", f"looks like sample {self.looks[file]}")
        if self._asked_in_test(candidate, name):
            return Drop("test_leak", "a test sample made of a file of this name has the same question and answer")
        slot = (name.modality, stored.sha256)
        if slot not in self.first:
            extension = instruction_media.EXTENSIONS[name.modality][0]
            member = f"{make_key(candidate.source.name, file, stored.sha256)}.{extension}"
            self.first[slot] = Medium(MediumName(name.modality, member), self.groups[file], None, stored)
        return self.first[slot]

    def _asked_in_test(self, candidate: Candidate, name: MediumName) -> bool:
        """Whether a test sample that was made of a file of the same name has one of the questions with its answer."""
        assert candidate.instruction is not None
        asked = self.index.test_texts.get((name.modality, Path(name.member).stem.casefold()), set())
        return any((normalise(question), normalise(answer)) in asked for question, answer in candidate.instruction.turns)


def _pairs(candidate: Candidate) -> list[tuple[MediumName, Path | None]]:
    assert candidate.instruction is not None
    return list(zip(candidate.instruction.media, candidate.files, strict=True))


def _last(member: str) -> str:
    return member.rpartition("/")[2]


def make_key(source: str, file: Path, sha256: str) -> str:
    """A shard key: readable, and unique by twelve digits of the stored medium's hash."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", f"{source}-{file.stem}").strip("-")[:60]
    return f"{slug}-{sha256[:12]}"


def normalise(text: str) -> str:
    """Words in lower case, without placeholders and punctuation: what two askings have in common."""
    return " ".join(re.findall(r"\w+", placeholder().sub(" ", text).casefold()))


def _drop_duplicates(candidates: Sequence[Candidate]) -> None:
    seen: dict[tuple[tuple[str, ...], tuple[str, ...]], str] = {}
    for candidate in candidates:
        if candidate.drop is None and candidate.instruction is not None:
            asked = tuple(normalise(question) for question, _ in candidate.instruction.turns)
            shown = (tuple(medium.name.member for medium in candidate.media), asked)
            other = seen.setdefault(shown, candidate.instruction.id)
            if other != candidate.instruction.id:
                candidate.drop = Drop("duplicate", f"of {other}")


def _drop_harmful(candidates: Sequence[Candidate], screen: Screen) -> None:
    """Drop what holds a question or answer, or a new picture, that a classifier finds harmful."""
    said = [(candidate, text) for candidate in candidates if candidate.instruction for turn in candidate.instruction.turns for text in turn]
    shown = [(candidate, medium.stored.path) for candidate in candidates for medium in candidate.media
             if medium.stored is not None and medium.name.modality == "image"]
    paths = list(dict.fromkeys(path for _, path in shown))
    texts = list(dict.fromkeys(placeholder().sub(" ", text).strip() for _, text in said))
    of_text = dict(zip(texts, screen.texts(texts), strict=True))
    of_path = dict(zip(paths, screen.pictures(paths), strict=True))
    for candidate, text in said:
        if candidate.drop is None and (category := of_text[placeholder().sub(" ", text).strip()]) is not None:
            candidate.drop = Drop("harmful_text", category)
    for candidate, path in shown:
        if candidate.drop is None and (category := of_path[path]) is not None:
            candidate.drop = Drop("harmful_picture", category)


def _refuse_empty(imported: Imported) -> None:
    if imported.kept:
        return
    if not imported.candidates:
        raise DataError("import_instructions.sources: hold no record at all; check each source's `file`, or give {} for no human data")
    raise all_dropped("import_instructions", "records", [
        (candidate.drop, ": ".join(filter(None, (f"{candidate.source.name}/{candidate.name}", candidate.drop.detail))))
        for candidate in imported.candidates if candidate.drop], REASONS)


def _split(imported: Imported, *, test_count: int, val_fraction: float, seed: int) -> None:
    """Hold out for test and val what shares nothing with the rest: not a medium, not a curated group, not a picture that looks alike.

    A curated sample of val is never trained on; one of train was seen in alignment, so it is not among those that people judge.
    """
    kept = imported.kept
    shared = [[medium.group for medium in candidate.media] + ([candidate.group] if candidate.group else []) for candidate in kept]
    names = sorted({name for entry in shared for name in entry})
    places = {name: place for place, name in enumerate(names)}
    pairs = [(places[entry[0]], places[name]) for entry in shared for name in entry[1:]]
    imported.groups = {name: names[label] for name, label in zip(names, components(len(names), pairs), strict=True)}
    together: dict[str, list[Candidate]] = {}
    for candidate in kept:
        together.setdefault(imported.groups[candidate.media[0].group], []).append(candidate)
    left = test_count
    for name in sorted(together, key=lambda name: hashlib.sha256(f"{seed}:test:{name}".encode()).digest()):
        members = together[name]
        curated = {medium.known.split for candidate in members for medium in candidate.media if medium.known is not None}
        if "train" not in curated and len(members) <= left:
            split = "test"
            left -= len(members)
        elif "val" in curated:
            split = "val"
        else:
            split = assign_split(name, seed=seed, val_fraction=val_fraction, test_fraction=0.0)
        for candidate in members:
            candidate.split = split
    if not any(candidate.split == "train" for candidate in kept):
        raise DataError(f"import_instructions.test_count = {test_count}, val_fraction = {val_fraction:g}: of {len(kept)} instructions none is left "
                        "to train on; lower them, or bring more data")


def members_of(candidates: Iterable[Candidate]) -> dict[str, Medium]:
    """Member -> medium, of all media of the candidates."""
    return {medium.name.member: medium for candidate in candidates for medium in candidate.media}
