"""Frozen image encoders."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from anymal.errors import ConfigError, DataError
from anymal.media.image import open_image, png
from anymal.model.precision import dtype_of

SCALED = ((np.arange(256, dtype=np.float32) - 127.0) / 128.0).astype(np.float32)
"""What EfficientNet-Lite reads for each byte of a pixel."""
GREY = Image.new("RGB", (256, 256), "grey")


class EfficientNetLite:
    """EfficientNet-Lite0 trained on ImageNet: the 7 × 7 grid of its last feature map as 49 tokens of 1280.

    Runs channels last, in bfloat16 where the processor multiplies it, with batch norms folded into the convolutions; a CPU with AVX-512 BF16
    does so several times faster than the plain float32 network.
    """

    modality = "image"
    tokens, dim, size = 49, 1280, 224

    def __init__(self, folder: Path) -> None:
        from efficientnet_lite_pytorch import EfficientNet
        from safetensors.torch import load_file

        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(load_file(_only_safetensors(folder)))
        network.eval().requires_grad_(False)
        for module in list(network.modules()):
            _fold_batch_norms(module)
        self._dtype = dtype_of("auto")
        self._network = network.to(dtype=self._dtype, memory_format=torch.channels_last)

    def read(self, source: Path | BinaryIO, name: str) -> np.ndarray:
        """One picture file to (3, 224, 224)."""
        return self.preprocess(open_image(source, name))

    def blank(self) -> np.ndarray:
        """A plain grey picture."""
        return self.preprocess(GREY)

    def picture(self, medium: np.ndarray) -> bytes:
        """The picture as the network sees it."""
        return png(Image.fromarray((medium.transpose(1, 2, 0) * 128 + 127).round().clip(0, 255).astype(np.uint8)))

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
        maps: Tensor = self._network.extract_features(batch.to(dtype=self._dtype, memory_format=torch.channels_last))
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
        layer: which hidden state; -1 for the last one, -2 for the one before it (common for CLIP).
    """

    modality = "image"

    def __init__(self, folder: Path, layer: int = -1) -> None:
        from transformers import AutoImageProcessor, AutoModel

        model = AutoModel.from_pretrained(folder, use_safetensors=True, local_files_only=True, dtype="auto")
        tower = getattr(model, "vision_model", model)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._tower = tower.eval().requires_grad_(False).to(self._device)
        self._processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, use_fast=False)
        depth = tower.config.num_hidden_layers + 1
        if not -depth <= layer < depth:
            raise ConfigError(f"encoder settings.layer = {layer}: {folder.name} has hidden states {-depth} to {depth - 1}")
        self._layer = layer
        probe = self.forward(torch.from_numpy(self.blank())[None])
        self.tokens, self.dim = probe.shape[1], probe.shape[2]

    def read(self, source: Path | BinaryIO, name: str) -> np.ndarray:
        """One picture file to (3, height, width)."""
        return self.preprocess(open_image(source, name))

    def blank(self) -> np.ndarray:
        """A plain grey picture."""
        return self.preprocess(GREY)

    def picture(self, medium: np.ndarray) -> bytes:
        """The picture as the tower sees it, its normalisation undone."""
        channels = [np.asarray(getattr(self._processor, name, default)).reshape(-1, 1, 1) for name, default in (("image_std", 1), ("image_mean", 0))]
        return png(Image.fromarray(((medium * channels[0] + channels[1]) * 255).round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0)))

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
