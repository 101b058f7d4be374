"""Curation of sounds: labels and captions, decoding, duplicates, the split, and a count of everything.

Names and texts are judged first, sounds second and in threads (FFmpeg decodes outside Python's lock), comparisons last. What a sound leaves in
memory is its text, two hashes and a fingerprint of 512 bytes; its samples are spooled to a scratch folder.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from anymal.curation.drops import Drop, all_dropped
from anymal.curation.duplicates import assign_split
from anymal.curation.files import matches
from anymal.curation.keys import make_key
from anymal.curation.sound_sources import READERS, Recording, Table
from anymal.errors import ConfigError, DataError
from anymal.media.audio import AudioError, open_audio, write_flac
from anymal.media.likeness import ALIKE, BANDS, COMPARED, FRAMES, sound_correlation, sound_fingerprint
from anymal.progress import track

if TYPE_CHECKING:
    import numpy as np

REASONS: dict[str, str] = {
    "excluded_by_profile": "its path matches one of the source's exclude patterns",
    "duplicate_key": "another sound of the same key was taken before it",
    "missing": "it is named by its source but not on disk",
    "ambiguous_split": "its source puts it into several splits",
    "unlabelled": "no label's pattern matches what is said of it",
    "ambiguous_label": "patterns of several labels match what is said of it",
    "no_caption": "nothing is said of it",
    "over_cap": "its label had enough sounds of this source",
    "unreadable": "the file cannot be read as a sound, or leaves its folder",
    "no_audio": "the file holds no sound track",
    "codec_unknown": "FFmpeg has no decoder for its format",
    "empty": "the file holds no byte, or no sample",
    "file_too_large": "the file holds more bytes than allowed",
    "too_many_channels": "it has more channels than allowed",
    "too_long_file": "it lasts longer than a file may",
    "not_finite": "it holds samples that are no finite numbers",
    "silent": "its peak is below the profile's level of silence",
    "too_short": "it lasts less than the profile asks for",
    "exact_duplicate": "the same samples were kept under another key",
    "near_duplicate": "the same recording was kept under another key, at another level or in another format",
}
"""In the order in which the rules are applied, each with the sentence that the report shows."""
BLOCK = 2048


@dataclass(frozen=True)
class Source:
    """One source of sounds: where it is, how it is read, and how its sounds are labelled and split.

    `labels` are regular expressions per label, searched in lower-case names with blanks for `_`. `held_out` names the groups of `val` and `test`
    (all others train); None splits by the hash of the group.
    """

    name: str
    root: Path
    reader: str
    licence: str
    labels: Mapping[str, Sequence[str]]
    exclude: Sequence[str]
    max_per_label: int | None
    held_out: Mapping[str, Sequence[str]] | None
    tables: Sequence[Table] = ()
    question: str | None = None


@dataclass(frozen=True)
class SoundSettings:
    """What a stored sound is. Lengths in seconds, `rate` in Hz, `silence` as a part of full scale; `lead` is what stays before the onset (None: all).

    `same_correlation` is the correlation of waveforms from which two sounds are one recording.
    """

    rate: int
    min_seconds: float
    max_seconds: float
    silence: float
    lead: float | None
    same_correlation: float


@dataclass(frozen=True)
class Clip:
    """A stored sound: its FLAC file, hashes of the file and of its samples, seconds, and the fingerprint."""

    flac: Path
    sha256: str
    samples: str
    duration: float
    trimmed: bool
    cut: bool
    fingerprint: np.ndarray


@dataclass
class Candidate:
    """One sound on its way through the rules."""

    recording: Recording
    source: Source
    key: str
    drop: Drop | None = None
    label: str | None = None
    clip: Clip | None = None
    split: str = ""

    @property
    def group(self) -> str:
        """What the split keeps together; groups of two sources are never one."""
        return f"{self.source.name}/{self.recording.group}"


def collect(sources: Sequence[Source]) -> list[Candidate]:
    """Find every sound of every source, judge its path, and find its label."""
    found: list[Candidate] = []
    for source in sources:
        patterns = {label: [re.compile(pattern) for pattern in texts] for label, texts in source.labels.items()}
        members = []
        for recording in track(READERS[source.reader](source.root, source.name, source.tables), label=f"find {source.name}", unit="sounds"):
            candidate = Candidate(recording, source, make_key(source.name, recording.name))
            if matches(recording.name, source.exclude):
                candidate.drop = Drop("excluded_by_profile")
            elif recording.problem is not None:
                candidate.drop = recording.problem
            elif not recording.captions:
                candidate.label, candidate.drop = find_label(recording.words, patterns)
            members.append(candidate)
        _cap(members, source.max_per_label)
        found += members
    return found


def find_label(words: Sequence[Sequence[str]], patterns: Mapping[str, Sequence[re.Pattern[str]]]) -> tuple[str | None, Drop | None]:
    """The one label whose patterns match, first among the first names, then among the next; or why there is none."""
    for names in words:
        texts = [" ".join(name.lower().replace("_", " ").split()) for name in names]
        found = sorted(label for label, members in patterns.items() if any(member.search(text) for member in members for text in texts))
        if len(found) == 1:
            return found[0], None
        if found:
            return None, Drop("ambiguous_label", f"{' / '.join(names)}: {', '.join(found)}")
    return None, Drop("unlabelled", " / ".join(name for names in words for name in names))


def _cap(members: Sequence[Candidate], most: int | None) -> None:
    """Keep `most` sounds of each label, chosen by a hash of the key."""
    counts: Counter[str] = Counter()
    for candidate in sorted(members, key=lambda c: hashlib.sha256(c.key.encode()).digest()):
        if candidate.label is not None and candidate.drop is None:
            counts[candidate.label] += 1
            if most is not None and counts[candidate.label] > most:
                candidate.drop = Drop("over_cap")


def take_sound(candidate: Candidate, target: Path, settings: SoundSettings) -> Clip | Drop:
    """Decode, judge, trim, cut, fingerprint and store one sound. Loudness is left as it is: it belongs to the sound."""
    import numpy as np

    rate = settings.rate
    try:
        samples = open_audio(candidate.recording.open(), candidate.recording.name, rate=rate)
    except AudioError as error:
        return Drop(error.reason, error.detail)
    except OSError as error:
        return Drop("unreadable", error.strerror or type(error).__name__)
    loud = np.abs(samples) >= settings.silence
    if not loud.any():
        return Drop("silent", f"peak {np.abs(samples).max():.2g}")
    onset = 0 if settings.lead is None else max(0, int(np.argmax(loud)) - round(settings.lead * rate))
    samples = samples[onset:]
    if len(samples) < settings.min_seconds * rate:
        return Drop("too_short", f"{len(samples) / rate:.3f} seconds")
    most = round(settings.max_seconds * rate)
    cut = len(samples) > most
    samples = samples[:most]
    data = write_flac(samples, rate)
    target.write_bytes(data)
    whole = np.round(samples * 32768).astype(np.int32)
    return Clip(target, hashlib.sha256(data).hexdigest(), hashlib.sha256(whole.tobytes()).hexdigest(), len(samples) / rate, onset > 0, cut,
                sound_fingerprint(samples, rate))


def drop_duplicates(candidates: Sequence[Candidate], settings: SoundSettings) -> None:
    """Keep the first of equal sounds and of recordings of one origin; the verdict on the others names the kept key."""
    import numpy as np

    first: dict[str, str] = {}
    for candidate in candidates:
        if candidate.drop is None and candidate.clip is not None:
            kept = first.setdefault(candidate.clip.samples, candidate.key)
            if kept != candidate.key:
                candidate.drop = Drop("exact_duplicate", kept)
    left = [candidate for candidate in candidates if candidate.drop is None]
    prints = np.array([c.clip.fingerprint for c in left if c.clip is not None], dtype=np.float32).reshape(-1, BANDS * FRAMES)
    prints /= np.maximum(np.linalg.norm(prints, axis=1, keepdims=True), 1)
    for start in range(0, len(left), BLOCK):
        near = prints[start : start + BLOCK] @ prints.T >= ALIKE
        for row, other in zip(*np.nonzero(near), strict=True):
            one, two = left[int(other)], left[start + int(row)]
            if other < start + row and one.drop is None and two.drop is None and _same(one, two, settings):
                two.drop = Drop("near_duplicate", one.key)


def _same(one: Candidate, two: Candidate, settings: SoundSettings) -> bool:
    assert one.clip is not None and two.clip is not None
    waves = [open_audio(clip.flac, clip.flac.name, rate=settings.rate, seconds=COMPARED) for clip in (one.clip, two.clip)]
    return sound_correlation(*waves) >= settings.same_correlation


def split_all(candidates: Sequence[Candidate], *, seed: int, val_fraction: float, test_fraction: float) -> None:
    """Give each kept sound its split: the source's own, else by `held_out`, else by a hash of its group.

    Raises:
        ConfigError: if `held_out` names a group that the source does not have.
    """
    groups: dict[str, set[str]] = defaultdict(set)
    for candidate in candidates:
        groups[candidate.source.name].add(candidate.recording.group)
    for source in {candidate.source.name: candidate.source for candidate in candidates}.values():
        for split, names in sorted((source.held_out or {}).items()):
            unknown = sorted(set(names) - groups[source.name])
            if unknown:
                raise ConfigError(f"curate_audio.sources.{source.name}.held_out.{split}: no group {unknown[0]!r}; the source has "
                                  f"{', '.join(islice(sorted(groups[source.name]), 30))}")
    for candidate in candidates:
        if candidate.drop is not None:
            continue
        held_out, group = candidate.source.held_out, candidate.recording.group
        if candidate.recording.split is not None:
            candidate.split = candidate.recording.split
        elif held_out is not None:
            candidate.split = next((split for split, names in sorted(held_out.items()) if group in names), "train")
        else:
            candidate.split = assign_split(candidate.group, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction)


def audit(candidates: Sequence[Candidate]) -> None:
    """Check that no key, group or sound is in two splits.

    Raises:
        DataError: naming the first leak.
    """
    owners: dict[tuple[str, str], str] = {}
    for candidate in candidates:
        if candidate.drop is None and candidate.clip is not None:
            for kind, value in (("key", candidate.key), ("group", candidate.group), ("sound", candidate.clip.samples)):
                split = owners.setdefault((kind, value), candidate.split)
                if split != candidate.split:
                    raise DataError(f"curate_audio: {kind} {value!r} is in {split} and in {candidate.split}; nothing was written")


def refuse_empty(candidates: Sequence[Candidate]) -> None:
    """Stop when nothing is left to train on.

    Raises:
        DataError: naming the reason that took most.
    """
    if not candidates:
        raise DataError("curate_audio.sources: hold no sound at all; check the assets' names and the folders that ingest made")
    if any(candidate.drop is None for candidate in candidates):
        if not any(candidate.drop is None and candidate.split == "train" for candidate in candidates):
            raise DataError("curate_audio: no sound is left for training; lower val_fraction and test_fraction, or hold out fewer groups")
        return
    drops = [(candidate.drop, f"{candidate.source.name}/{candidate.recording.name}") for candidate in candidates if candidate.drop is not None]
    raise all_dropped("curate_audio", "sounds", drops, REASONS)


def curate_sounds(sources: Sequence[Source], *, settings: SoundSettings, val_fraction: float, test_fraction: float, seed: int, scratch: Path,
                  workers: int) -> list[Candidate]:
    """Run all rules over all sources.

    Returns:
        Every sound seen, in a fixed order, with the verdict on it; the kept ones lie in `scratch`.

    Raises:
        ConfigError: if a held-out group does not exist.
        DataError: if a source is missing, nothing is left, or the splits leak.
    """
    candidates = collect(sources)
    left = [candidate for candidate in candidates if candidate.drop is None]
    with ThreadPoolExecutor(workers) as pool:
        results = pool.map(lambda pair: take_sound(pair[1], scratch / f"{pair[0]:08d}.flac", settings), enumerate(left))
        for candidate, result in zip(left, track(results, total=len(left), label="curate sounds", unit="sounds"), strict=True):
            if isinstance(result, Drop):
                candidate.drop = result
            else:
                candidate.clip = result
    drop_duplicates(candidates, settings)
    split_all(candidates, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction)
    refuse_empty(candidates)
    keys = Counter(candidate.key for candidate in candidates if candidate.drop is None)
    assert all(count == 1 for count in keys.values()), keys.most_common(1)
    assert all(candidate.drop is None or candidate.drop.reason in REASONS for candidate in candidates)
    audit(candidates)
    return candidates
