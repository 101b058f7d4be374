"""Training of the classifier of pairs: frozen encoders look at each picture and read each text once, and the fusion learns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anymal.data.tensors import save_tensors
from anymal.errors import DataError
from anymal.media.image import open_image
from anymal.progress import track
from anymal.safety.backbones import Backbone, Kind, load_backbone
from anymal.safety.fitting import Fit, Loss, calibrated_loss, fit
from anymal.safety.image_classifier import AT_ONCE
from anymal.safety.lists import PairRecord, truth_of
from anymal.safety.pair_classifier import Fusion, PairClassifier, Sentences
from anymal.safety.taxonomy import CODES
from anymal.safety.thresholds import calibrate


class Halves:
    """Features of the distinct pictures and texts of pairs."""

    def __init__(self, records: Sequence[PairRecord], images: Tensor, texts: Tensor) -> None:
        """From features in the order of `distinct`."""
        self.images, self.texts = images, texts
        files, sayings = distinct(records)
        places = {name: number for number, name in enumerate(files)}, {name: number for number, name in enumerate(sayings)}
        self.image_of = torch.tensor([places[0][record.image] for record in records])
        self.text_of = torch.tensor([places[1][record.text] for record in records])

    def of(self, rows: np.ndarray | slice) -> tuple[Tensor, Tensor]:
        """Features of the halves of some pairs, (pairs, dim) each."""
        return self.images[self.image_of[rows]], self.texts[self.text_of[rows]]


def distinct(records: Sequence[PairRecord]) -> tuple[list[str], list[str]]:
    """The distinct pictures and texts of pairs, sorted."""
    return sorted({record.image for record in records}), sorted({record.text for record in records})


def halves(records: Sequence[PairRecord], safety: Path, backbone: Backbone, sentences: Sentences, cache: Path | None) -> Halves:
    """Look at each picture and read each text once, unless `cache` (a file) holds it from before an interruption.

    Raises:
        DataError: if a picture cannot be read.
    """
    from safetensors.torch import load_file

    if cache is not None and cache.is_file():
        kept = load_file(cache)
        return Halves(records, kept["images"], kept["texts"])
    files, sayings = distinct(records)
    parts = []
    with track(total=len(files), label="features of pictures", unit="pictures") as bar, torch.inference_mode():
        for start in range(0, len(files), AT_ONCE):
            batch = files[start : start + AT_ONCE]
            pixels = np.stack([backbone.pixels(open_image(safety / name, str(safety / name))) for name in batch])
            parts.append(backbone.features(torch.from_numpy(pixels)).cpu())
            bar.update(len(batch))
    # Clones: what inference mode made cannot be trained on.
    images, texts = torch.cat(parts).clone(), sentences.features(sayings).clone()
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(cache, {"images": images, "texts": texts})
    return Halves(records, images, texts)


def train_pairs(
    *, backbone: Path, kind: Kind, encoder: Path, max_tokens: int, safety: Path, train: Sequence[PairRecord], val: Sequence[PairRecord], output: Path,
    work: Path, hidden: int, dropout: float, how: Fit, stop_after: int | None = None,
) -> dict[str, Any]:
    """Train the fusion, keep the epoch of the least validation loss, calibrate it and write it to `output`.

    Called again after an interruption it goes on after the last whole epoch and ends with the same bytes.

    Args:
        backbone, kind: the frozen image network's folder and what it is.
        encoder: the frozen text encoder's folder.
        max_tokens: of a text that are read.
        safety: the folder that the records' pictures begin at.
        work: folder of features and training state; the caller removes it when the stage is done.
        hidden, dropout: of the fusion.

    Returns:
        `history`, `best` (epoch), `pairs`, `trained` (categories).

    Raises:
        DataError: if an encoder or a picture cannot be read, or a split lacks harmful or harmless pairs.
    """
    for name, records in (("train", train), ("val", val)):
        if {bool(record.labels) for record in records} != {True, False}:
            raise DataError(f"pairs/{name}.jsonl: needs harmful and harmless pairs; run curate_safety with other sources or fractions")
    network, sentences = load_backbone(backbone, kind), Sentences(encoder, max_tokens)
    data, held_out = (halves(records, safety, network, sentences, work / f"{name}.safetensors") for name, records in (("train", train), ("val", val)))
    trained = [code for code in CODES if any(code in record.labels for record in train)]
    truth, expected = (torch.from_numpy(truth_of(records, trained)).float() for records in (train, val))
    torch.manual_seed(how.seed)
    fusion = Fusion(network.dim, sentences.dim, hidden, len(trained), dropout=dropout)
    loss = Loss(truth.numpy())
    everything = slice(None)
    history = fit(fusion, len(train), loss=lambda rows, _: loss(fusion(*data.of(rows)), truth[rows]),
                  measure=lambda: calibrated_loss(fusion(*held_out.of(everything)), expected), how=how, folder=work / "state", label="pairs",
                  stop_after=stop_after)
    if stop_after is None:
        with torch.inference_mode():
            calibration = calibrate(fusion(*held_out.of(everything)).double().numpy(), expected.numpy().astype(bool))
        PairClassifier(network, sentences, fusion, trained=trained, hidden=hidden, calibration=calibration).save(output)
    return {"history": history, "best": 1 + int(np.argmin([entry["val"] for entry in history])), "pairs": len(train), "trained": trained}
