"""Frozen encoders by kind: pictures in, tokens out. A new encoder is one class and one entry of `KINDS`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from anymal.errors import ConfigError, DataError

SCALED = ((np.arange(256, dtype=np.float32) - 127.0) / 128.0).astype(np.float32)
"""What EfficientNet-Lite reads for each byte of a pixel."""
MAX_PIXELS = 50_000_000
"""Pictures above this are refused from their header, before decoding (public files of 600 megapixels exist)."""


class Encoder(Protocol):
    """What the encode stage and the model need of an encoder."""

    tokens: int
    dim: int

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """One RGB picture to an array (3, height, width), float32, as the network expects it."""
        ...

    def forward(self, batch: Tensor) -> Tensor:
        """(batch, 3, height, width) to (batch, tokens, dim), without gradients."""
        ...


def open_image(source: Any, name: str) -> Image.Image:
    """Open, check and decode one picture: upright, RGB, transparency on white.

    Raises:
        DataError: naming the file, if it is empty, no picture, cut short, or larger than `MAX_PIXELS`.
    """
    from PIL import ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(f"{name}: {image.width} x {image.height} pixels, more than the {MAX_PIXELS} allowed; scale it down")
                upright = ImageOps.exif_transpose(image)
                if not upright.has_transparency_data:
                    return upright.convert("RGB")
                rgba = upright.convert("RGBA")
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: more pixels than the {MAX_PIXELS} allowed; scale it down") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{name}: cannot be read as a picture ({error}); give a PNG, JPEG or WebP file") from error
    background = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(background, rgba).convert("RGB")


class EfficientNetLite:
    """EfficientNet-Lite0 trained on ImageNet: the 7 × 7 grid of its last feature map as 49 tokens of 1280.

    Runs in bfloat16, channels last, with batch norms folded into the convolutions, which a CPU with AVX-512 BF16
    runs several times faster than the plain float32 network.
    """

    tokens, dim, size = 49, 1280, 224

    def __init__(self, folder: Path, layer: int | None) -> None:
        from efficientnet_lite_pytorch import EfficientNet
        from safetensors.torch import load_file

        if layer is not None:
            raise ConfigError(f"encoder layer = {layer}: efficientnet_lite gives its last feature map only; set it to null")
        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(load_file(_only_safetensors(folder)))
        network.eval().requires_grad_(False)
        for module in list(network.modules()):
            _fold_batch_norms(module)
        self._network = network.to(dtype=torch.bfloat16, memory_format=torch.channels_last)

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """Fit the whole picture into 224 × 224 on white, scaled to about -1 … 1 as the network was trained."""
        scale = self.size / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        canvas = Image.new("RGB", (self.size, self.size), "white")
        canvas.paste(image, ((self.size - image.width) // 2, (self.size - image.height) // 2))
        return SCALED[np.asarray(canvas)].transpose(2, 0, 1)

    @torch.inference_mode()
    def forward(self, batch: Tensor) -> Tensor:
        """(batch, 3, 224, 224) to (batch, 49, 1280)."""
        maps: Tensor = self._network.extract_features(batch.to(dtype=torch.bfloat16, memory_format=torch.channels_last))
        return maps.flatten(2).transpose(1, 2).contiguous().float()


def _only_safetensors(folder: Path) -> Path:
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise DataError(f"{folder}: must hold exactly one .safetensors file, found {len(files)}; run ingest")
    return files[0]


def _fold_batch_norms(module: nn.Module) -> None:
    """Fold each batch norm of an EfficientNet block into the convolution before it, and symmetric padding into the convolution."""
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    pairs = (("_conv_stem", "_bn0"), ("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"), ("_conv_head", "_bn1"))
    for conv_name, norm_name in pairs:
        conv, norm = getattr(module, conv_name, None), getattr(module, norm_name, None)
        if conv is None or not isinstance(norm, nn.BatchNorm2d):
            continue
        assert norm.running_mean is not None
        assert norm.running_var is not None
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        setattr(module, norm_name, nn.Identity())
        padding = getattr(conv, "static_padding", None)
        if isinstance(padding, nn.ZeroPad2d) and len(set(padding.padding)) == 1:
            conv.padding, conv.static_padding = (padding.padding[0],) * 2, nn.Identity()


class HuggingFaceVision:
    """Any vision tower of transformers (CLIP, SigLIP, DINOv2, …): the hidden states of one layer, class token included.

    Args:
        folder: a Hugging Face model folder with safetensors weights and its image processor.
        layer: which hidden state; None for the last one, -2 for the one before it (common for CLIP).
    """

    def __init__(self, folder: Path, layer: int | None) -> None:
        from transformers import AutoImageProcessor, AutoModel

        model = AutoModel.from_pretrained(folder, use_safetensors=True, local_files_only=True, dtype="auto")
        tower = getattr(model, "vision_model", model)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._tower = tower.eval().requires_grad_(False).to(self._device)
        self._processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, use_fast=False)
        depth = tower.config.num_hidden_layers + 1
        if layer is not None and not -depth <= layer < depth:
            raise ConfigError(f"encoder layer = {layer}: {folder.name} has hidden states {-depth} to {depth - 1}")
        self._layer = -1 if layer is None else layer
        probe = self.forward(torch.from_numpy(self.preprocess(Image.new("RGB", (64, 64))))[None])
        self.tokens, self.dim = probe.shape[1], probe.shape[2]

    def preprocess(self, image: Image.Image) -> np.ndarray:
        """The model's own image processor."""
        pixels: np.ndarray = self._processor(images=image, return_tensors="np")["pixel_values"][0].astype(np.float32)
        return pixels

    @torch.inference_mode()
    def forward(self, batch: Tensor) -> Tensor:
        """(batch, 3, height, width) to (batch, tokens, dim)."""
        dtype = next(self._tower.parameters()).dtype
        states = self._tower(pixel_values=batch.to(self._device, dtype), output_hidden_states=True).hidden_states
        hidden: Tensor = states[self._layer]
        return hidden.float().cpu()


KINDS: dict[str, Any] = {"efficientnet_lite": EfficientNetLite, "hf_vision": HuggingFaceVision}


def load_encoder(kind: str, folder: Path, layer: int | None) -> Encoder:
    """Load a frozen encoder of a registered kind from its asset folder.

    Raises:
        ConfigError: if the kind is unknown or the layer does not exist.
        DataError: if the folder is missing.
    """
    if kind not in KINDS:
        raise ConfigError(f"encoder kind = {kind}: unknown; known kinds: {', '.join(KINDS)}")
    if not folder.is_dir():
        raise DataError(f"{folder}: no such asset; name it in ingest.assets and run ingest")
    encoder: Encoder = KINDS[kind](folder, layer)
    return encoder

