"""The media of one pool of samples: read within the encoders' limits, encoded once, features on disk; hashes for the audit of leakage."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from anymal.data.manifest import sha256_of
from anymal.errors import DataError
from anymal.evaluation.benchmarks.items import Medium, Motions
from anymal.media.image import open_image
from anymal.media.likeness import miniature, perceptual_hash

if TYPE_CHECKING:
    import torch

    from anymal.model.anymal import AnyMAL

AT_ONCE = 16
"""Media whose decoded form is in memory together."""
MOTION_RATE = 200
"""Samples a second of a part of a recording (paper: IMU2CLIP)."""


class MediumRow(TypedDict):
    """One line of `media.jsonl`."""

    benchmark: str
    id: str
    modality: str
    sha256: str
    phash: str | None
    """64-bit perceptual hash of a picture, 16 hexadecimal digits."""
    miniature: str | None
    """Colour miniature of a picture, its bytes in hexadecimal."""


@dataclass(frozen=True)
class Encoded:
    """Features of media of one modality."""

    places: dict[str, int]
    """Name of a medium -> its row."""
    features: np.ndarray
    """(media, tokens, dim) float16, memory-mapped."""
    blank: np.ndarray
    """(tokens, dim) float16: of an empty medium."""

    def tensor(self, name: str | None) -> torch.Tensor:
        """Features of a medium (None: of the empty one)."""
        import torch

        row = self.blank if name is None else self.features[self.places[name]]
        return torch.from_numpy(np.array(row))


class Library:
    """Encodes pools of media with a model's encoders; what a killed run encoded is found again in `folder`."""

    def __init__(self, model: AnyMAL, folder: Path, motions: Motions) -> None:
        self._model, self.folder = model, folder
        self._motions = motions
        self._blanks: dict[str, np.ndarray] = {}
        self._recording: tuple[Path, np.ndarray | DataError] | None = None

    def encode(self, label: str, media: Sequence[Medium], modality: str) -> tuple[Encoded | None, dict[str, str]]:
        """Encode media of one modality.

        Args:
            label: of the pool, unique within the folder.
            media: distinct ones.

        Returns:
            Their features (None: none can be read), and name -> why for those that cannot be read.
        """
        file, note = self.folder / f"{label}.{modality}.npy", self.folder / f"{label}.{modality}.json"
        if not note.is_file():
            self._write(file, note, media, modality)
        known: dict[str, Any] = json.loads(note.read_text(encoding="utf-8"))
        if not known["names"]:
            return None, known["failed"]
        features = np.load(file, mmap_mode="r", allow_pickle=False)
        return Encoded({name: row for row, name in enumerate(known["names"])}, features, self._blank(modality)), known["failed"]

    def rows(self, benchmark: str, media: Sequence[Medium]) -> list[MediumRow]:
        """What the audit of leakage compares: one line a file, not a part of one."""
        found: dict[str, MediumRow] = {}
        for medium in media:
            name = medium.name.partition("#")[0]
            if name not in found:
                phash = small = None
                if medium.modality == "image":
                    picture = open_image(medium.path, name)
                    phash, small = perceptual_hash(picture), miniature(picture).tobytes().hex()
                found[name] = MediumRow(benchmark=benchmark, id=name, modality=medium.modality, sha256=sha256_of(medium.path), phash=phash,
                                        miniature=small)
        return list(found.values())

    def draw(self, medium: Medium, target: Path) -> None:
        """Write a picture of what the encoder is fed of a medium, and beside that of a sound the sound itself."""
        from anymal.media.audio import preview

        encoder = self._model.encoder(medium.modality)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encoder.picture(encoder.read(self._source(medium), str(medium.path))))
        if medium.modality == "audio":
            with medium.path.open("rb") as stream:
                target.with_suffix(".mp3").write_bytes(preview(stream, str(medium.path)))

    def forget(self, label: str) -> None:
        """Remove all that was kept of a pool but its results."""
        for file in sorted(self.folder.glob(f"{label}.*")):
            if file.suffix != ".done":
                file.unlink()

    def _blank(self, modality: str) -> np.ndarray:
        if modality not in self._blanks:
            self._blanks[modality] = self._model.encode(modality, [self._model.encoder(modality).blank()])[0].numpy()
        return self._blanks[modality]

    def _write(self, file: Path, note: Path, media: Sequence[Medium], modality: str) -> None:
        """Features row by row into a file as large as they can become, then the note that it is whole."""
        encoder = self._model.encoder(modality)
        names: list[str] = []
        failed: dict[str, str] = {}
        shape = (len(media), encoder.tokens, encoder.dim)
        target = np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=shape)
        for start in range(0, len(media), AT_ONCE):
            chunk, decoded = media[start : start + AT_ONCE], []
            for medium in chunk:
                try:
                    decoded.append(encoder.read(self._source(medium), str(medium.path)))
                    names.append(medium.name)
                except DataError as error:
                    failed[medium.name] = str(error)
            features = self._model.encode(modality, decoded)
            for place, row in enumerate(features, start=len(names) - len(features)):
                target[place] = row.numpy()
        target.flush()
        del target
        temporary = note.with_suffix(".partial")
        temporary.write_text(json.dumps({"names": names, "failed": failed}), encoding="utf-8")
        temporary.replace(note)

    def _source(self, medium: Medium) -> Path | io.BytesIO:
        """The file, or the part of it that is meant in a form that the encoder reads."""
        if medium.start is None or medium.end is None:
            return medium.path
        if medium.modality == "imu":
            return _part_of_recording(self._of_video(medium.path), medium)
        if medium.modality == "video":
            from anymal.media.video import cut_video

            return io.BytesIO(cut_video(medium.path, medium.name, start=medium.start, end=medium.end))
        raise DataError(f"{medium.name}: parts of {medium.modality} files are not read; cut it beforehand")

    def _of_video(self, path: Path) -> np.ndarray:
        """A recording; the last one is kept, for windows of one recording follow each other."""
        if self._recording is None or self._recording[0] != path:
            try:
                self._recording = (path, self._motions.recording(path))
            except DataError as error:
                self._recording = (path, error)
        found = self._recording[1]
        if isinstance(found, DataError):
            raise found
        return found


def _part_of_recording(recording: np.ndarray, medium: Medium) -> io.BytesIO:
    """A window of a recording as an .npy file of (samples, 7), times from zero."""
    from anymal.media.motion import cut_window

    assert medium.start is not None
    assert medium.end is not None
    seconds = medium.end - medium.start
    window = cut_window(recording, medium.name, start=medium.start, seconds=seconds, rate=MOTION_RATE)
    times = np.arange(window.shape[1], dtype=np.float32)[:, None] / MOTION_RATE
    stream = io.BytesIO()
    np.save(stream, np.concatenate([times, window.T], axis=1).astype(np.float32), allow_pickle=False)
    stream.seek(0)
    return stream


def distinct(media: Sequence[Medium]) -> Iterator[Medium]:
    """Each medium once, in the order of their first appearance."""
    seen: set[str] = set()
    for medium in media:
        if medium.name not in seen:
            seen.add(medium.name)
            yield medium
