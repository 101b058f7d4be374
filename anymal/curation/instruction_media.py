"""The media of instruction data: found in the curated shards, or taken in as new samples of the same form; compared with the test samples.

A name is a file below the source's folder of media if there is one, else the member of a shard. Limits are those of `anymal.media`, checked in the
headers before decoding; converted files are spooled to a scratch folder, so that memory holds none of them for long.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import TYPE_CHECKING, Any

from anymal.curation import images
from anymal.curation.drops import Drop
from anymal.curation.duplicates import near_pairs
from anymal.curation.images import ImageLimits
from anymal.data.manifest import sha256_of
from anymal.data.shards import MAX_MEMBER_BYTES, Sample, read_shard, shard_paths
from anymal.errors import DataError
from anymal.media import likeness
from anymal.progress import track

if TYPE_CHECKING:
    import numpy as np

    from anymal.curation.detectors import FaceBlur

EXTENSIONS = {"image": ("jpg", "jpeg", "png", "webp"), "audio": ("flac",), "video": ("mp4",), "imu": ("npy",)}
"""Modality -> extensions of its members in curated shards; the first is that of new samples."""
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|data:")


@dataclass(frozen=True)
class MediaSettings:
    """What a file may be and how it is stored: per modality the keyword arguments named at `_image`, `_audio`, `_video` and `_imu`.

    Attributes:
        max_bytes: of a file.
        same_bits, same_colour: from which two pictures are one, as in `near_pairs`.
    """

    max_bytes: int
    image: Mapping[str, Any]
    audio: Mapping[str, Any]
    video: Mapping[str, Any]
    imu: Mapping[str, Any]
    same_bits: int
    same_colour: float


@dataclass(frozen=True)
class Stored:
    """A converted file: where it is spooled, SHA-256 of the file as found and as stored, metadata; hash and miniature of pictures."""

    path: Path
    found: str
    sha256: str
    meta: Mapping[str, Any]
    phash: str = ""
    fingerprint: np.ndarray | None = None


@dataclass(frozen=True)
class Known:
    """A sample of the curated shards: its member name, split, group and the shard that holds it."""

    member: str
    split: str
    group: str
    shard: Path


@dataclass
class Index:
    """What the curated shards hold of the media that were asked for, and of their test samples."""

    members: dict[str, Known] = field(default_factory=dict)
    hashes: dict[str, Known] = field(default_factory=dict)
    """SHA-256 -> sample."""
    test_texts: dict[tuple[str, str], set[tuple[str, str]]] = field(default_factory=lambda: defaultdict(set))
    """(modality, name of the file it was made of) -> its questions and answers, normalised."""
    test_pictures: list[tuple[str, str, np.ndarray]] = field(default_factory=list)
    """(key, pHash, miniature)."""


def locate(name: str, root: Path | None) -> Path | Drop | None:
    """The file that a name means: a plain file below `root`; None if there is no file of that name; or why it is not looked for."""
    if _REMOTE.match(name):
        return Drop("remote_media", f"{name[:80]}: addresses are not followed")
    if "\0" in name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return Drop("path_escapes", name[:80])
    if root is None:
        return None
    path = root / name
    try:
        if not path.is_file():
            return None
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError, ValueError):
        return None
    return path if inside else Drop("path_escapes", f"{name[:80]}: a link that leaves the folder")


def convert(files: Mapping[Path, str], settings: MediaSettings, *, scratch: Path, workers: int) -> dict[Path, Stored | Drop]:
    """Bring files to the form of shards, in threads; the result does not depend on their number.

    Args:
        files: file -> modality.
    """
    converter = _Converter(settings, scratch)
    jobs = sorted(files.items())
    with ThreadPoolExecutor(workers) as pool:
        done = pool.map(lambda job: converter.take(job[1][0], job[1][1], job[0]), enumerate(jobs))
        return {path: made for (path, _), made in zip(jobs, track(done, total=len(jobs), label="convert", unit="media"), strict=True)}


class _Converter:
    def __init__(self, settings: MediaSettings, scratch: Path) -> None:
        self._settings, self._scratch = settings, scratch
        self._lock = Lock()
        self._faces: FaceBlur | None = None
        self._forms: dict[str, Callable[..., tuple[bytes, dict[str, Any]] | Drop]] = {
            "image": self._image, "audio": self._audio, "video": self._video, "imu": self._imu}

    def take(self, path: Path, modality: str, number: int) -> Stored | Drop:
        """Check and store one file; every fault is a `media_unreadable` that says what it is."""
        try:
            made = self._read(path, modality)
        except OSError as error:
            return _unreadable(error.strerror or type(error).__name__)
        except DataError as error:
            return _unreadable(str(error).removeprefix(f"{path.name}: "))
        if isinstance(made, Drop):
            return _unreadable(": ".join(filter(None, (made.reason, made.detail))))
        found, data, meta = made
        if len(data) > MAX_MEMBER_BYTES:
            return _unreadable(f"{len(data)} bytes as stored, more than the {MAX_MEMBER_BYTES} that a shard's member may have")
        target = self._scratch / f"{number:08d}"
        target.write_bytes(data)
        fingerprint = meta.pop("fingerprint", None)
        return Stored(target, found, hashlib.sha256(data).hexdigest(), meta, meta.get("phash", ""), fingerprint)

    def _read(self, path: Path, modality: str) -> tuple[str, bytes, dict[str, Any]] | Drop:
        """SHA-256 of the file, what is to be stored, and its metadata."""
        if modality not in self._forms:
            return Drop("no stored form is known", f"curate {modality} and name the members of its shards")
        size = path.stat().st_size
        if size > self._settings.max_bytes:
            return Drop("file_too_large", f"{size} bytes, more than the {self._settings.max_bytes} allowed")
        made = self._forms[modality](path, **getattr(self._settings, modality))
        return made if isinstance(made, Drop) else (sha256_of(path), *made)

    def _image(self, path: Path, *, max_pixels: int, min_side: int, size: int, background: tuple[int, int, int], jpeg_quality: int,
               face_threshold: float) -> tuple[bytes, dict[str, Any]] | Drop:
        """JPEG of at most `size` pixels a side, faces blurred, as curate_image stores it."""
        limits = ImageLimits(self._settings.max_bytes, max_pixels, min_side)
        with path.open("rb") as stream:
            decoded = images.decode(stream.read(limits.max_bytes + 1), path.suffix.lower(), limits, size)
        if isinstance(decoded, Drop):
            return decoded
        image = images.composite(decoded, background)
        with self._lock:  # the detector serves one thread at a time
            from anymal.curation.detectors import FaceBlur

            self._faces = self._faces or FaceBlur(face_threshold)
            boxes = self._faces.boxes(image)
        image = FaceBlur.blur(image, boxes) if boxes else image
        return images.jpeg(image, jpeg_quality), {
            "width": image.width, "height": image.height, "faces_blurred": len(boxes), "phash": likeness.perceptual_hash(image),
            "fingerprint": likeness.miniature(image)}

    @staticmethod
    def _audio(path: Path, *, rate: int, max_seconds: float) -> tuple[bytes, dict[str, Any]] | Drop:
        """Mono FLAC at `rate` Hz. A longer sound is refused, not cut: the answer may be about its end."""
        from anymal.media.audio import open_audio, write_flac

        samples = open_audio(path, path.name, rate=rate, seconds=max_seconds + 1)
        if len(samples) > max_seconds * rate:
            return Drop("too_long", f"more than {max_seconds:g} s")
        return write_flac(samples, rate), {"duration": round(len(samples) / rate, 6), "rate": rate}

    @staticmethod
    def _video(path: Path, *, side: int, min_side: int, rate: int, max_seconds: float) -> tuple[bytes, dict[str, Any]] | Drop:
        """H.264 of at most `side` pixels a side, `rate` frames a second."""
        from anymal.media.video import to_clip

        clip = to_clip(path, path.name, side=side, rate=rate, min_side=min_side, max_seconds=max_seconds)
        return clip.data, {"duration": clip.seconds, "frames": clip.frames, "rate": rate, "width": clip.width, "height": clip.height}

    @staticmethod
    def _imu(path: Path, *, rate: int, seconds: float) -> tuple[bytes, dict[str, Any]] | Drop:
        """The first `seconds` at `rate` Hz; longer recordings are refused, as a window of them is what the answer is about."""
        from anymal.curation.motions import to_npy
        from anymal.media.motion import cut_window, read_motion

        recording = read_motion(path, path.name)
        period = float(recording[-1, 0] - recording[0, 0]) / max(1, len(recording) - 1)
        if float(recording[-1, 0] - recording[0, 0]) > seconds + period:
            return Drop("too_long", f"more than {seconds:g} s; cut out the window that it is about")
        motion = cut_window(recording, path.name, start=float(recording[0, 0]), seconds=seconds, rate=rate)
        return to_npy(motion, rate), {"duration": seconds, "rate": rate}


def _unreadable(detail: str) -> Drop:
    return Drop("media_unreadable", detail)


def index_shards(folders: Iterable[Path], *, members: Collection[str], hashes: Collection[str], pictures: bool, normalise: Callable[[str], str],
                 ) -> Index:
    """Read curated shards once and keep what matters here, so that memory grows with the instructions and the test samples only.

    Args:
        members: names of members that instructions may mean.
        hashes: SHA-256 of files that may be samples.
        pictures: whether to decode the pictures of the split test, for comparison.
        normalise: of questions and answers.

    Raises:
        DataError: for folders without shards, damaged shards, and a member that several folders hold.
    """
    index = Index()
    wanted, known = set(members), set(hashes)
    for folder in folders:
        for path in track(shard_paths(folder), label=f"index {folder.name}", unit="shards"):
            for sample in read_shard(path):
                _take(index, sample, path, wanted, known, pictures=pictures, normalise=normalise)
    return index


def _take(index: Index, sample: Sample, shard: Path, wanted: set[str], hashes: set[str], *, pictures: bool,
          normalise: Callable[[str], str]) -> None:
    meta, member = sample.meta, f"{sample.key}.{sample.extension}"
    split, digest = str(meta.get("split") or shard.name.partition("-")[0]), str(meta.get("sha256", ""))
    entry = Known(member, split, str(meta.get("group", sample.key)), shard)
    if member in wanted:
        if member in index.members:
            raise DataError(f"{shard}: member {member} is also in {index.members[member].shard}; give each curated folder once")
        index.members[member] = entry
    actual = digest if digest else hashlib.sha256(sample.data).hexdigest()
    if actual in hashes:
        index.hashes.setdefault(actual, entry)
    if split != "test":
        return
    modality = modality_of_member(member)
    original = PurePosixPath(str(meta.get("original") or sample.key)).stem.casefold()
    for question in meta.get("questions", []):
        index.test_texts[modality, original].add((normalise(question["question"]), normalise(question["answer"])))
    if pictures and modality == "image":
        from anymal.media.image import open_image

        image = open_image(io.BytesIO(sample.data), f"{shard}: {member}")
        index.test_pictures.append((sample.key, likeness.perceptual_hash(image), likeness.miniature(image)))


def modality_of_member(member: str) -> str:
    """The modality that a member's extension belongs to; empty for extensions of modalities that are not known here."""
    extension = member.rpartition(".")[2].lower()
    return next((modality for modality, known in EXTENSIONS.items() if extension in known), "")


def alike(stored: Sequence[Stored], index: Index, *, bits: int, colour: float) -> tuple[list[tuple[int, int]], dict[int, str]]:
    """Which of the new pictures are one with each other, and which with a test picture.

    Returns:
        Pairs of places in `stored`; place -> key of the test sample.
    """
    import numpy as np

    places = [place for place, entry in enumerate(stored) if entry.phash]
    if not places:
        return [], {}
    hashes = [stored[place].phash for place in places] + [phash for _, phash, _ in index.test_pictures]
    miniatures = [stored[place].fingerprint for place in places] + [miniature for *_, miniature in index.test_pictures]
    pairs: list[tuple[int, int]] = []
    leaks: dict[int, str] = {}
    for left, right in near_pairs(hashes, np.stack([entry for entry in miniatures if entry is not None]), max_bits=bits, max_colour=colour):
        if right < len(places):
            pairs.append((places[left], places[right]))
        elif left < len(places):
            leaks.setdefault(places[left], index.test_pictures[right - len(places)][0])
    return pairs, leaks


def preview(modality: str, data: bytes) -> tuple[bytes, str] | None:
    """A picture of a stored medium for people and its format; None for modalities that are not known here."""
    if modality == "image":
        from anymal.media.image import open_image

        image = open_image(io.BytesIO(data), "preview")
        image.thumbnail((160, 160))
        return images.jpeg(image, 70), "jpeg"
    if modality == "audio":
        from anymal.media.audio import open_audio, spectrogram

        return spectrogram(open_audio(io.BytesIO(data), "preview", rate=16_000), 16_000), "png"
    if modality == "video":
        from anymal.media.video import contact_sheet, open_video

        return contact_sheet(open_video(io.BytesIO(data), "preview", frames=4), 80), "png"
    if modality == "imu":
        import numpy as np

        from anymal.media.motion import traces

        table = np.load(io.BytesIO(data), allow_pickle=False)
        return traces(table[:, 1:].T, max(1, round((len(table) - 1) / float(table[-1, 0] - table[0, 0])))), "png"
    return None


def read_members(entries: Iterable[Known]) -> Iterator[tuple[str, bytes]]:
    """(member, bytes) of samples of curated shards, each shard read as far as needed."""
    by_shard: dict[Path, set[str]] = defaultdict(set)
    for entry in entries:
        by_shard[entry.shard].add(entry.member)
    for shard, members in sorted(by_shard.items()):
        for sample in read_shard(shard):
            member = f"{sample.key}.{sample.extension}"
            if member in members:
                members.discard(member)
                yield member, sample.data
            if not members:
                break

