"""The picture classifier: an image network, a small head, and calibrated probabilities per category."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from anymal.data.tensors import save_tensors
from anymal.errors import DataError
from anymal.safety.backbones import Backbone, load_backbone
from anymal.safety.taxonomy import CODES
from anymal.safety.thresholds import Calibration

SETTINGS, HEAD, BACKBONE = "classifier.json", "head.safetensors", "backbone"
AT_ONCE = 16
"""Pictures that go through the network together."""


class Head(nn.Module):
    """Features to logits: normalised, one hidden layer."""

    def __init__(self, dim: int, hidden: int, categories: int, *, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(dim), nn.Dropout(dropout), nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(dropout),
                                    nn.Linear(hidden, categories))

    def forward(self, features: Tensor) -> Tensor:
        """(batch, dim) to (batch, categories)."""
        logits: Tensor = self.layers(features)
        return logits


class ImageClassifier:
    """Probabilities of the taxonomy's categories for pictures; a category that no training picture had is never given (0)."""

    def __init__(self, backbone: Backbone, head: Head, *, trained: Sequence[str], hidden: int, calibration: Calibration | None) -> None:
        """Put it to use.

        Args:
            trained: the categories of the head's columns.
            calibration: None gives the plain sigmoid of the logits.
        """
        self.backbone, self.head, self.trained, self.hidden, self.calibration = backbone, head.eval(), tuple(trained), hidden, calibration

    @classmethod
    def load(cls, folder: Path) -> ImageClassifier:
        """Read what `save` wrote.

        Raises:
            DataError: if something is missing or does not fit.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        backbone = load_backbone(folder / BACKBONE)
        path = folder / SETTINGS
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            trained, hidden = [str(code) for code in settings["trained"]], int(settings["hidden"])
            calibration = Calibration.read(settings["calibration"], str(path))
            head = Head(backbone.dim, hidden, len(trained), dropout=0.0)
            head.load_state_dict(load_file(folder / HEAD))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise DataError(f"{folder}: is no picture classifier ({error}); train the classifiers again") from error
        return cls(backbone, head, trained=trained, hidden=hidden, calibration=calibration)

    def save(self, folder: Path) -> None:
        """Write network, head and settings, no pickles."""
        assert self.calibration is not None
        folder.mkdir(parents=True, exist_ok=True)
        self.backbone.save(folder / BACKBONE)
        save_tensors(folder / HEAD, self.head.state_dict())
        document = {"trained": list(self.trained), "hidden": self.hidden, "calibration": self.calibration.document()}
        (folder / SETTINGS).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """What the image network makes of RGB pictures, (pictures, dim); a few at a time."""
        return looked_at(images, self.backbone)

    @torch.inference_mode()
    def judge(self, seen: Sequence[Tensor]) -> np.ndarray:
        """Calibrated probabilities of all categories of the taxonomy, (pictures, categories), for pictures as `features` saw them."""
        logits = self.head(torch.stack(list(seen))) if len(seen) else torch.zeros(0, len(self.trained))
        return spread(logits.double().numpy(), self.trained, self.calibration)

    def probabilities(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Calibrated probabilities of all categories of the taxonomy, (pictures, categories)."""
        return self.judge(list(self.features(images)))


@torch.inference_mode()
def looked_at(images: Sequence[Image.Image], backbone: Backbone) -> Tensor:
    """What an image network makes of RGB pictures, (pictures, dim); a few at a time."""
    parts = [backbone.features(torch.from_numpy(np.stack([backbone.pixels(image) for image in images[start : start + AT_ONCE]]))).cpu()
             for start in range(0, len(images), AT_ONCE)]
    return torch.cat(parts) if parts else torch.zeros(0, backbone.dim)


def spread(logits: np.ndarray, trained: Sequence[str], calibration: Calibration | None) -> np.ndarray:
    """Logits of some categories to calibrated probabilities of all, (samples, categories): 0 for those that were not trained."""
    calibration = calibration or Calibration((1.0,) * len(trained), (0.0,) * len(trained))
    found = np.zeros((len(logits), len(CODES)))
    found[:, [CODES.index(code) for code in trained]] = calibration.probabilities(logits)
    return found
