"""The media of a study as files that a browser shows or plays, named by their content: a name such as `lemon-3.jpg` would give the answer away."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from anymal.data.shards import read_shard, shard_paths
from anymal.errors import ConfigError, DataError
from anymal.evaluation.human.samples import Medium

MIME = {
    "jpg": "image/jpeg", "jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp", "flac": "audio/flac", "wav": "audio/wav",
    "mp3": "audio/mpeg", "ogg": "audio/ogg", "mp4": "video/mp4", "webm": "video/webm",
}  # fmt: skip
"""Extension of a medium -> its type, of those that browsers take as they are."""
MAX_EMBEDDED_BYTES = 4 * 2**20
"""Of one medium inside the tasks: Label Studio keeps tasks in its database and sends them whole."""


def extract_media(
    wanted: Iterable[Medium], shards: Mapping[str, Sequence[Path]], assets: Mapping[str, Path], folder: Path, *, split: str
) -> dict[Medium, Path]:
    """Write media of shards and assets into a folder, one in memory at a time. Motions are written as drawings of their traces.

    Args:
        shards: modality -> folders of shards.
        assets: benchmark -> folder of its asset.

    Returns:
        Medium -> its file, `SHA-256.EXTENSION`.

    Raises:
        ConfigError: if a modality has no shards, or a benchmark no asset.
        DataError: if a medium is not there, or is of a kind that browsers do not show.
    """
    folder.mkdir(parents=True)
    found: dict[Medium, Path] = {}
    in_shards: dict[str, set[str]] = {}
    for medium in sorted(wanted, key=lambda medium: (medium.benchmark or "", medium.modality, medium.key)):
        if medium.benchmark is None:
            in_shards.setdefault(medium.modality, set()).add(medium.key)
        else:
            data, name = _of_asset(medium, medium.benchmark, assets)
            found[medium] = _write(data, name, folder)
    for modality, keys in sorted(in_shards.items()):
        if modality not in shards:
            raise ConfigError(f"--shards: names no shards of {modality}, of which {len(keys)} media are to be shown; add {modality}=FOLDER")
        for path in (path for source in shards[modality] for path in shard_paths(source, split)):
            for sample in read_shard(path):
                if sample.key in keys:
                    keys.discard(sample.key)
                    found[Medium(modality, sample.key)] = _write(sample.data, f"{path}: {sample.key}.{sample.extension}", folder)
        if keys:
            places = ", ".join(map(str, shards[modality]))
            raise DataError(f"--shards {modality}={places}: no sample {min(keys)} (and {len(keys) - 1} more) in split {split}; give the shards that "
                            "the predictions were made from")
    return found


def _of_asset(medium: Medium, benchmark: str, assets: Mapping[str, Path]) -> tuple[bytes, str]:
    """A file of a benchmark's asset, and its name."""
    if benchmark not in assets:
        raise ConfigError(f"--asset: names no asset of {benchmark}, whose media are to be shown; add {benchmark}=FOLDER")
    path = assets[benchmark] / medium.key
    if not path.resolve().is_relative_to(assets[benchmark].resolve()) or not path.is_file():
        raise DataError(f"--asset {benchmark}={assets[benchmark]}: holds no file {medium.key}; give the asset that the benchmark was run on")
    return path.read_bytes(), str(path)


def _write(data: bytes, name: str, folder: Path) -> Path:
    """Write what a browser can show of a medium into a folder, under the name of its content."""
    extension = name.rpartition(".")[2].lower()
    if extension in ("npy", "csv"):
        from anymal.media.motion import cut_window, read_motion, traces

        recording = read_motion(io.BytesIO(data), name)
        start, seconds = float(recording[0, 0]), float(recording[-1, 0] - recording[0, 0])
        rate = max(1, round((len(recording) - 1) / seconds)) if seconds else 1
        data, extension = traces(cut_window(recording, name, start=start, seconds=seconds, rate=rate), rate), "png"
    if extension not in MIME:
        raise DataError(f"{name}: cannot be shown in a browser; known are motions (npy, csv) and {', '.join(MIME)}")
    file = folder / f"{hashlib.sha256(data).hexdigest()}.{extension}"
    file.write_bytes(data)
    return file


def data_uri(file: Path) -> str:
    """A medium as text inside a task.

    Raises:
        ConfigError: if it is a sound, or larger than `MAX_EMBEDDED_BYTES`.
    """
    kind = MIME[file.suffix[1:]]
    if kind.startswith("audio/"):
        raise ConfigError("--media embed: there are sounds to be heard, which Label Studio's player takes from files only; use --media files")
    if (size := file.stat().st_size) > MAX_EMBEDDED_BYTES:
        raise ConfigError(f"--media embed: a medium holds {size} bytes, more than the {MAX_EMBEDDED_BYTES} that fit into a task; use --media files")
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
