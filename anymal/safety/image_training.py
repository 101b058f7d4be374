"""Training of the picture classifier: a head over the features of several views of each picture, or all of the network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor, nn

from anymal.errors import DataError
from anymal.media.image import open_image
from anymal.progress import track
from anymal.safety.backbones import Backbone, Kind, load_backbone
from anymal.safety.fitting import Fit, Loss, calibrated_loss, fit
from anymal.safety.image_classifier import AT_ONCE, Head, ImageClassifier
from anymal.safety.lists import PictureRecord, truth_of
from anymal.safety.taxonomy import CODES
from anymal.safety.thresholds import calibrate


def train_images(
    *, backbone: Path, kind: Kind, whole: bool, safety: Path, train: Sequence[PictureRecord], val: Sequence[PictureRecord], output: Path, work: Path,
    views: int, hidden: int, dropout: float, how: Fit, stop_after: int | None = None,
) -> dict[str, Any]:
    """Train on labelled pictures, keep the epoch of the least validation loss, calibrate it and write it to `output`.

    Called again after an interruption it goes on after the last whole epoch and ends with the same bytes.

    Args:
        backbone, kind: the image network's folder and what it is.
        whole: train all of the network, on a fresh view of each picture in each epoch; else its features are computed once and the head alone learns.
        safety: the folder that the records' files begin at.
        work: folder of features and training state; the caller removes it when the stage is done.
        views: views of each training picture: itself, and turned, mirrored, scaled and recoloured ones.
        hidden, dropout: of the head.

    Returns:
        `history`, `best` (epoch), `pictures`, `trained` (categories).

    Raises:
        DataError: if the network or a picture cannot be read, or a split lacks harmful or harmless pictures.
    """
    for name, records in (("train", train), ("val", val)):
        if {bool(record.labels) for record in records} != {True, False}:
            raise DataError(f"images/{name}.jsonl: needs harmful and harmless pictures; run curate_safety with other sources or fractions")
    network = load_backbone(backbone, kind)
    trained = [code for code in CODES if any(code in record.labels for record in train)]
    truth = torch.from_numpy(truth_of(train, trained)).float()
    torch.manual_seed(how.seed)
    module = _Whole(network, Head(network.dim, hidden, len(trained), dropout=dropout), trainable=whole)
    data = _Views(network, safety, train, views=views, work=None if whole else work / "train", seed=how.seed)
    held_out = _Views(network, safety, val, views=1, work=None if whole else work / "val", seed=how.seed)
    loss, expected = Loss(truth.numpy()), torch.from_numpy(truth_of(val, trained)).float()

    def of_rows(rows: np.ndarray, epoch: int) -> Tensor:
        return loss(module(data.inputs(rows, epoch)), truth[rows])

    def logits() -> Tensor:
        with torch.inference_mode():
            parts = [module(held_out.inputs(np.arange(start, min(start + AT_ONCE, len(val))), None)) for start in range(0, len(val), AT_ONCE)]
        return torch.cat(parts)

    history = fit(module, len(train), loss=of_rows, measure=lambda: calibrated_loss(logits(), expected), how=how, folder=work / "state",
                  label="image", stop_after=stop_after)
    if stop_after is None:
        calibration = calibrate(logits().double().numpy(), expected.numpy().astype(bool))
        ImageClassifier(network, module.head, trained=trained, hidden=hidden, calibration=calibration).save(output)
    return {"history": history, "best": 1 + int(np.argmin([entry["val"] for entry in history])), "pictures": len(train), "trained": trained}


class _Whole(nn.Module):
    """Network and head; features go to the head alone. The network stays in evaluation mode, with the statistics of its pre-training."""

    def __init__(self, backbone: Backbone, head: Head, *, trainable: bool) -> None:
        super().__init__()
        self.head, self.network, self._backbone = head, backbone.network.requires_grad_(trainable), [backbone]

    def train(self, mode: bool = True) -> _Whole:
        """Training mode for the head alone."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """Features (batch, dim) or pixels (batch, 3, height, width) to logits."""
        features = self._backbone[0].features(inputs).cpu() if inputs.ndim == 4 else inputs
        logits: Tensor = self.head(features)
        return logits


class _Views:
    """Pictures as the classifier's inputs: features of all views, computed once into a memory-mapped file, or pixels of a fresh view."""

    def __init__(
        self, backbone: Backbone, safety: Path, records: Sequence[PictureRecord], *, views: int, work: Path | None, seed: int
    ) -> None:
        self._backbone, self._safety, self._records, self._views, self._seed = backbone, safety, records, views, seed
        self._features: np.ndarray | None = None
        if work is not None:
            path = work.with_suffix(".npy")
            if not path.is_file():
                self._compute(path)
            self._features = np.load(path, mmap_mode="r", allow_pickle=False)

    def inputs(self, rows: np.ndarray, epoch: int | None) -> Tensor:
        """Features or pixels of some pictures: a view that the epoch draws, or the picture itself where it is None."""
        if self._features is None:
            return torch.from_numpy(np.stack([self._pixels(int(row), 0 if epoch is None else epoch + 1) for row in rows]))
        drawn = np.zeros(len(rows), dtype=int) if epoch is None else np.random.default_rng((self._seed, 17, epoch, int(rows[0]))).integers(
            self._views, size=len(rows))
        return torch.from_numpy(np.array(self._features[rows, drawn]))

    def _pixels(self, row: int, view: int) -> np.ndarray:
        record = self._records[row]
        image = open_image(self._safety / record.file, str(self._safety / record.file))
        return self._backbone.pixels(image if view == 0 else changed(image, self._seed, record.id, view))

    def _compute(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.partial")
        features = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=(len(self._records), self._views, self._backbone.dim))
        with track(total=len(features) * self._views, label=f"features of {path.stem} pictures", unit="views") as bar, torch.inference_mode():
            for places in _chunks([(row, view) for row in range(len(self._records)) for view in range(self._views)]):
                found = self._backbone.features(torch.from_numpy(np.stack([self._pixels(row, view) for row, view in places])))
                for (row, view), vector in zip(places, found.cpu().numpy(), strict=True):
                    features[row, view] = vector
                bar.update(len(places))
        features.flush()
        temporary.replace(path)


def _chunks(places: Sequence[tuple[int, int]]) -> Iterator[Sequence[tuple[int, int]]]:
    for start in range(0, len(places), AT_ONCE):
        yield places[start : start + AT_ONCE]


def changed(image: Image.Image, seed: int, name: str, view: int) -> Image.Image:
    """A view of a picture that shows the same: turned, mirrored, of other colours or in shades of grey; a function of its arguments."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed}:{name}:{view}".encode()).digest()[:8], "big"))
    background = image.getpixel((0, 0))
    fill = background if isinstance(background, tuple) else (255, 255, 255)
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    side = round(np.hypot(*image.size))
    square = Image.new("RGB", (side, side), tuple(int(value) for value in fill[:3]))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    image = square.rotate(float(rng.uniform(-50, 50)), resample=Image.Resampling.BILINEAR, fillcolor=tuple(int(value) for value in fill[:3]))
    if rng.random() < 0.3:
        image = ImageOps.grayscale(image).convert("RGB")
    if rng.random() < 0.3:
        # Other hues: the channels change places.
        order = rng.permutation(3)
        channels = image.split()
        image = Image.merge("RGB", [channels[int(place)] for place in order])
    return ImageEnhance.Contrast(image).enhance(float(rng.uniform(0.6, 1.2)))
