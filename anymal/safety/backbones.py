"""What a picture classifier sees: an image network that makes one vector of a picture, EfficientNet-Lite0 or any of transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from anymal.errors import DataError
from anymal.model.encoders.image import EfficientNetLite

Kind = Literal["efficientnet-lite0", "hf"]
KIND = "backbone.json"
BORDER = 0.08
"""What is left of a plain border, as a share of the picture's longer side."""
PLAIN = 12
"""Steps of 255 by which pixels of a plain border may differ from its corner."""


class Backbone(Protocol):
    """An image network."""

    kind: Kind
    dim: int
    network: nn.Module

    def pixels(self, image: Image.Image) -> np.ndarray:
        """An RGB picture as the network reads it, (3, height, width) float32."""

    def features(self, batch: Tensor) -> Tensor:
        """(batch, 3, height, width) to (batch, dim)."""

    def save(self, folder: Path) -> None:
        """Write what `load_backbone` reads."""


def load_backbone(folder: Path, kind: Kind | None = None) -> Backbone:
    """An image network out of its asset folder, or, without `kind`, out of a folder that `save` wrote.

    Raises:
        DataError: if the folder is missing or cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such image network; name its asset in ingest.assets and run ingest")
    if kind is None:
        try:
            kind = json.loads((folder / KIND).read_text(encoding="utf-8"))["kind"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}: holds no image network of ours ({error}); train the classifiers again") from error
    return Lite(folder) if kind == "efficientnet-lite0" else HuggingFace(folder)


def cropped(image: Image.Image) -> Image.Image:
    """The picture without most of a plain border, in the middle of a square of the border's colour; what has no such border stays as it is."""
    values = np.asarray(image, dtype=np.int16)
    corner = values[0, 0]
    drawn = np.abs(values - corner).max(axis=2) > PLAIN
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    if len(rows) == 0 or (len(rows) == image.height and len(columns) == image.width):
        return image
    inner = image.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    side = round(max(inner.size) * (1 + 2 * BORDER))
    square = Image.new("RGB", (side, side), tuple(int(value) for value in corner))
    square.paste(inner, ((side - inner.width) // 2, (side - inner.height) // 2))
    return square


class Lite(EfficientNetLite):
    """EfficientNet-Lite0, frozen: the means of its last feature map and of the one before its last block, each of length 1."""

    kind: Kind = "efficientnet-lite0"
    dim = 1280 + 192

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder
        self.network: nn.Module = nn.Identity()  # nothing of it is ever trained
        self._before: Tensor | None = None
        self._network._blocks[-2].register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self._before = output

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Without its plain border, fitted into 224 × 224."""
        return self.preprocess(cropped(image))

    def features(self, batch: Tensor) -> Tensor:
        """(batch, 3, 224, 224) to (batch, 1472)."""
        last = self.forward(batch).mean(dim=1)
        assert self._before is not None
        before = self._before.float().mean(dim=(2, 3))
        self._before = None
        return torch.cat([functional.normalize(last, dim=-1), functional.normalize(before, dim=-1)], dim=-1)

    def save(self, folder: Path) -> None:
        """Copy the weights and their licence."""
        folder.mkdir(parents=True, exist_ok=True)
        for file in [*sorted(self._folder.glob("*.safetensors")), *sorted(self._folder.glob("LICENSE*"))]:
            shutil.copyfile(file, folder / file.name)
        (folder / KIND).write_text(json.dumps({"kind": self.kind}) + "\n", encoding="utf-8")


class HuggingFace:
    """Any image network of transformers (RegNet, ResNet, ViT, CLIP's vision tower): its pooled output."""

    kind: Kind = "hf"

    def __init__(self, folder: Path) -> None:
        """Load it and its image processor.

        Raises:
            DataError: if transformers cannot read the folder.
        """
        from transformers import AutoImageProcessor, AutoModel

        try:
            model = AutoModel.from_pretrained(folder, use_safetensors=True, local_files_only=True, dtype=torch.float32)
            self._processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True, use_fast=False)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{folder}: cannot be read as an image network of transformers ({error}); give weights and processor") from error
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.network: nn.Module = getattr(model, "vision_model", model).eval().to(self.device)
        self._model = model
        with torch.inference_mode():
            self.dim = self.features(torch.from_numpy(self.pixels(Image.new("RGB", (32, 32))))[None]).shape[1]

    def pixels(self, image: Image.Image) -> np.ndarray:
        """The model's own image processor."""
        values: np.ndarray = self._processor(images=image, return_tensors="np")["pixel_values"][0].astype(np.float32)
        return values

    def features(self, batch: Tensor) -> Tensor:
        """(batch, 3, height, width) to (batch, dim)."""
        out = self.network(pixel_values=batch.to(self.device))
        pooled: Tensor = out.pooler_output if out.pooler_output is not None else out.last_hidden_state[:, 0]
        return pooled.flatten(1).float()

    def save(self, folder: Path) -> None:
        """Write model and image processor in transformers' layout."""
        self._model.save_pretrained(folder, safe_serialization=True)
        self._processor.save_pretrained(folder)
        (folder / KIND).write_text(json.dumps({"kind": self.kind}) + "\n", encoding="utf-8")
