"""What each process of the pool does: bring one picture to its stored form, or draw one scene. Pixels stay in the worker and on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from anymal.curation import cat, images
from anymal.curation.drops import Drop
from anymal.curation.images import ImageLimits
from anymal.curation.scenes import Scene, render
from anymal.errors import AnymalError
from anymal.media import likeness

if TYPE_CHECKING:
    import numpy as np

    from anymal.curation.detectors import FaceBlur, TextReader
    from anymal.curation.sources import Item

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ImageSettings:
    """How pictures are judged and stored; pixels for sides, 0 to 1 for thresholds, 1 to 95 for JPEG quality."""

    limits: ImageLimits
    image_size: int
    background: tuple[int, int, int]
    jpeg_quality: int
    face_threshold: float
    ocr_side: int
    ocr_min_characters: int


@dataclass(frozen=True)
class Picture:
    """What is known of a stored picture. `cutout` and `colour` (mean RGB of what is opaque) are None unless it can take part in scenes."""

    jpeg: Path
    width: int
    height: int
    sha256: str
    pixels: str
    phash: str
    fingerprint: np.ndarray
    faces: int
    cutout: Path | None = None
    cutout_size: tuple[int, int] | None = None
    colour: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class ImageJob:
    """One picture to bring to its stored form at `target` (a path without suffix)."""

    item: Item
    caption: str
    target: Path
    wants_cutout: bool


@dataclass(frozen=True)
class SceneJob:
    """One scene to draw at `target` (a path without suffix)."""

    scene: Scene
    target: Path


_STATE: dict[str, Any] = {}


def start(settings: ImageSettings) -> None:
    """Prepare this process; the detectors are loaded at their first use."""
    _STATE.clear()
    _STATE["settings"] = settings


def _faces() -> FaceBlur:
    from anymal.curation.detectors import FaceBlur

    if "faces" not in _STATE:
        _STATE["faces"] = FaceBlur(_STATE["settings"].face_threshold)
    return _STATE["faces"]


def _reader() -> TextReader:
    from anymal.curation.detectors import TextReader

    if "reader" not in _STATE:
        _STATE["reader"] = TextReader(_STATE["settings"].ocr_side)
    return _STATE["reader"]


def take_picture(job: ImageJob) -> Picture | Drop:
    """Decode, check, read text, blur faces, hash and store one picture."""
    settings: ImageSettings = _STATE["settings"]
    try:
        data = job.item.read(settings.limits.max_bytes + 1)
    except OSError as error:
        return Drop("unreadable", error.strerror or type(error).__name__)
    decoded = images.decode(data, job.item.suffix, settings.limits, settings.image_size)
    if isinstance(decoded, Drop):
        return decoded
    image = images.composite(decoded, settings.background)
    if images.is_blank(image):
        return Drop("blank_image")
    if cat.could_repeat(job.caption, settings.ocr_min_characters):
        repeated = cat.repeated_text(_reader().read(image), job.caption, settings.ocr_min_characters)
        if repeated is not None:
            return Drop("text_in_image", repeated)
    boxes = _faces().boxes(image)
    blurred = _faces().blur(image, boxes) if boxes else image
    cutout, size, colour = None, None, None
    handy = min(decoded.size) >= 32 and max(decoded.size) <= 4 * min(decoded.size)
    if job.wants_cutout and handy and not boxes and images.cutout_fraction(decoded) >= 0.05:
        cutout, size, colour = job.target.with_suffix(".png"), decoded.size, _mean_colour(decoded)
        decoded.save(cutout, compress_level=1)
    return _store(blurred, job.target, quality=settings.jpeg_quality, faces=len(boxes), cutout=cutout, cutout_size=size, colour=colour)


def draw_scene(job: SceneJob) -> Picture:
    """Draw and store one scene."""
    settings: ImageSettings = _STATE["settings"]
    return _store(render(job.scene), job.target, quality=settings.jpeg_quality)


def _store(image: Any, target: Path, *, quality: int, faces: int = 0, cutout: Path | None = None, cutout_size: tuple[int, int] | None = None,
           colour: tuple[float, float, float] | None = None) -> Picture:
    import hashlib

    data = images.jpeg(image, quality)
    path = target.with_suffix(".jpg")
    path.write_bytes(data)
    return Picture(path, image.width, image.height, hashlib.sha256(data).hexdigest(), likeness.pixel_hash(image), likeness.perceptual_hash(image),
                   likeness.miniature(image), faces, cutout, cutout_size, colour)


def _mean_colour(image: Any) -> tuple[float, float, float]:
    import numpy as np

    pixels = np.asarray(image, dtype=np.float32).reshape(-1, 4)
    red, green, blue = np.average(pixels[:, :3], axis=0, weights=np.maximum(pixels[:, 3], 1e-3)).tolist()
    return red, green, blue


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started meanwhile get one thread for maths, unless the user set a number; this process and later ones are left as they are."""
    name = "OMP_NUM_THREADS"
    if name in os.environ:
        yield
        return
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]


def parallel(function: Callable[[Job], Result], jobs: Iterable[Job], *, settings: ImageSettings, workers: int) -> Iterator[Result]:
    """Results of `function` for each job, in the jobs' order, whatever the number of processes.

    Raises:
        AnymalError: if a process was killed.
    """
    if workers == 1:
        start(settings)
        yield from map(function, jobs)
        return
    # Started afresh, not forked: a fork of a process that holds the parser's and the maths library's threads may hang.
    with _one_thread_each(), ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=start, initargs=(settings,)) as pool:
        try:
            yield from pool.map(function, jobs, chunksize=16)
        except BrokenProcessPool as error:
            raise AnymalError(f"curate_image.workers = {workers}: a worker process was killed, most likely for lack of memory; "
                              "use fewer workers or a lower curate_image.images.max_pixels") from error
