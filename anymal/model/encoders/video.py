"""Frozen video encoders: an image encoder on a few frames (paper section 3.1, four of them), or a tower made for video."""

from __future__ import annotations

import inspect
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from anymal.errors import ConfigError, DataError
from anymal.media.video import contact_sheet, open_video
from anymal.model.encoders import load_encoder
from anymal.model.modalities import modality_of

FRAMES_AT_ONCE = 32
"""Frames that go through the image encoder together."""


class VideoFrames:
    """Any registered image encoder on frames spread evenly over the video; their tokens follow each other in time.

    The tokens of a frame carry no time: the resampler adds it (`frames` tells it how many frames there are).

    Args:
        folder: of the image encoder.
        image_kind: kind of the image encoder.
        frames: frames per video.
        grid: side of the grid that each frame's tokens are averaged to, the class token left out; None keeps all tokens as they are.
        image_settings: settings of the image encoder.

    Raises:
        ConfigError: if the kind reads no images, or its tokens cannot be averaged to such a grid.
    """

    modality = "video"

    def __init__(self, folder: Path, image_kind: str, frames: int, grid: int | None, image_settings: Mapping[str, Any] | None = None) -> None:
        _check_frames(frames)
        if modality_of(image_kind) != "image":
            raise ConfigError(f"encoder settings.image_kind = {image_kind}: reads {modality_of(image_kind)}; name a kind that reads images")
        self._image = load_encoder(image_kind, folder, image_settings or {})
        self.frames, self.dim = frames, self._image.dim
        self._grid, self._side = grid, 0
        per_frame = self._image.tokens
        if grid is not None:
            self._side = math.isqrt(per_frame)
            if self._side**2 not in (per_frame, per_frame - 1):
                raise ConfigError(f"encoder settings.grid = {grid}: the {per_frame} tokens of {image_kind} form no square; set it to null")
            if not 1 <= grid <= self._side:
                raise ConfigError(f"encoder settings.grid = {grid}: {image_kind} gives {self._side} x {self._side} tokens; choose 1 to {self._side}")
            per_frame = grid**2
        self.tokens = frames * per_frame

    def read(self, source: Path | BinaryIO, name: str) -> np.ndarray:
        """One video file to (frames, *shape of the image encoder's input)."""
        return np.stack([self._image.read(_stored(frame), name) for frame in open_video(source, name, frames=self.frames)])

    def blank(self) -> np.ndarray:
        """The image encoder's blank, frame after frame."""
        return np.stack([self._image.blank()] * self.frames)

    def picture(self, medium: np.ndarray) -> bytes:
        """The frames as the image encoder sees them, on one sheet."""
        frames = []
        for frame in medium:
            with Image.open(io.BytesIO(self._image.picture(frame))) as picture:
                frames.append(picture.convert("RGB"))
        return contact_sheet(frames)

    def forward(self, batch: Tensor) -> Tensor:
        """(batch, frames, channels, height, width) to (batch, tokens, dim)."""
        parts = [self._pool(self._image.forward(part)) for part in batch.flatten(0, 1).split(FRAMES_AT_ONCE)]
        return torch.cat(parts).reshape(len(batch), self.tokens, self.dim)

    def _pool(self, tokens: Tensor) -> Tensor:
        """(frames, tokens, dim) to (frames, grid², dim)."""
        if self._grid is None:
            return tokens
        patches = tokens[:, tokens.shape[1] - self._side**2 :].transpose(1, 2).unflatten(2, (self._side, self._side))
        return functional.adaptive_avg_pool2d(patches, self._grid).flatten(2).transpose(1, 2)


class HuggingFaceVideo:
    """Any video tower of transformers (VideoMAE, ViViT, TimeSformer, V-JEPA 2, …): the hidden states of one layer; its tokens carry time and place.

    Args:
        folder: a Hugging Face model folder with safetensors weights and its `preprocessor_config.json` (or `video_preprocessor_config.json`).
        frames: frames per video; what the tower was trained on.
        layer: which hidden state; -1 for the last one.

    Raises:
        ConfigError: if the tower takes another number of frames, or has no such layer.
        DataError: if the folder does not hold such a model.
    """

    modality = "video"

    def __init__(self, folder: Path, frames: int, layer: int = -1) -> None:
        from transformers import AutoModel

        _check_frames(frames)
        self._prepare = _Preparation(folder)
        try:
            model: Any = AutoModel.from_pretrained(folder, use_safetensors=True, local_files_only=True, dtype="auto")
        except (OSError, ValueError) as error:
            raise DataError(f"{folder}: is no Hugging Face folder with config.json and safetensors weights; run ingest") from error
        trained = getattr(model.config, "num_frames", frames)
        if trained != frames:
            raise ConfigError(f"encoder settings.frames = {frames}: {folder.name} takes {trained} frames")
        depth = model.config.num_hidden_layers + 1
        if not -depth <= layer < depth:
            raise ConfigError(f"encoder settings.layer = {layer}: {folder.name} has hidden states {-depth} to {depth - 1}")
        self._frames, self._layer = frames, layer
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._tower = model.eval().requires_grad_(False).to(self._device)
        parameters = list(inspect.signature(model.forward).parameters)
        self._input = parameters[0]
        if self._input not in ("pixel_values", "pixel_values_videos"):
            raise DataError(f"{folder}: is a model of type {model.config.model_type}, which reads no videos; name a video tower such as VideoMAE")
        # V-JEPA 2 would also predict what it was not shown.
        self._options = {"skip_predictor": True} if "skip_predictor" in parameters else {}
        probe = self.forward(torch.from_numpy(self.blank())[None])
        self.tokens, self.dim = probe.shape[1], probe.shape[2]

    def read(self, source: Path | BinaryIO, name: str) -> np.ndarray:
        """One video file to (frames, 3, height, width)."""
        return self._prepare(open_video(source, name, frames=self._frames))

    def blank(self) -> np.ndarray:
        """Plain grey frames."""
        return self._prepare([Image.new("RGB", (256, 256), "grey")] * self._frames)

    def picture(self, medium: np.ndarray) -> bytes:
        """The frames as the tower sees them, on one sheet."""
        return contact_sheet(self._prepare.undo(medium))

    @torch.inference_mode()
    def forward(self, batch: Tensor) -> Tensor:
        """(batch, frames, 3, height, width) to (batch, tokens, dim)."""
        dtype = next(self._tower.parameters()).dtype
        states = self._tower(**{self._input: batch.to(self._device, dtype)}, output_hidden_states=True, **self._options).hidden_states
        hidden: Tensor = states[self._layer]
        return hidden.float().cpu()


class _Preparation:
    """What a model's processor does to frames, from its configuration: transformers' own video processors need torchvision."""

    def __init__(self, folder: Path) -> None:
        paths = [folder / name for name in ("video_preprocessor_config.json", "preprocessor_config.json")]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            raise DataError(f"{folder}: has no {paths[1].name}; give the model's whole folder")
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            # Older files give one number for both.
            size, crop = ({"shortest_edge": side} if isinstance(side, int) else side for side in (known["size"], known.get("crop_size")))
            self._shortest = int(size["shortest_edge"]) if "shortest_edge" in size else None
            box = crop if crop and known.get("do_center_crop") else size
            self._size = (int(box["width"]), int(box["height"])) if "width" in box else (int(box["shortest_edge"]),) * 2
            self._resample = Image.Resampling(known.get("resample", Image.Resampling.BILINEAR))
            self._factor = float(known.get("rescale_factor", 1 / 255))
            self._offset = 1.0 if known.get("offset") else 0.0
            plain = not known.get("do_normalize", True)
            self._mean, self._std = (np.array([default] * 3 if plain else known[name], dtype=np.float32).reshape(3, 1, 1)
                                     for name, default in (("image_mean", 0.0), ("image_std", 1.0)))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: does not say how frames are scaled and normalised ({error}); give the model's own file") from error

    def __call__(self, frames: Sequence[Image.Image]) -> np.ndarray:
        """Frames to (frames, 3, height, width), float32."""
        return np.stack([self._frame(frame) for frame in frames])

    def _frame(self, frame: Image.Image) -> np.ndarray:
        width, height = self._size
        if self._shortest is not None:
            scale = self._shortest / min(frame.size)
            # The longer side is cut, not rounded, as the processors do.
            frame = frame.resize((max(self._shortest, int(frame.width * scale)), max(self._shortest, int(frame.height * scale))), self._resample)
            left, top = (frame.width - width) // 2, (frame.height - height) // 2
            frame = frame.crop((left, top, left + width, top + height))
        else:
            frame = frame.resize((width, height), self._resample)
        pixels = np.asarray(frame, dtype=np.float32).transpose(2, 0, 1) * np.float32(self._factor) - np.float32(self._offset)
        prepared: np.ndarray = ((pixels - self._mean) / self._std).astype(np.float32)
        return prepared

    def undo(self, medium: np.ndarray) -> list[Image.Image]:
        """The frames again, for people."""
        pixels = ((medium * self._std + self._mean + self._offset) / self._factor).round().clip(0, 255).astype(np.uint8)
        return [Image.fromarray(frame.transpose(1, 2, 0)) for frame in pixels]


def _check_frames(frames: int) -> None:
    if not 1 <= frames <= 256:
        raise ConfigError(f"encoder settings.frames = {frames}: must be 1 to 256")


def _stored(frame: Image.Image) -> BinaryIO:
    """A frame as a file, for image encoders read files; not compressed."""
    stream = io.BytesIO()
    frame.save(stream, "PNG", compress_level=0)
    stream.seek(0)
    return stream
