"""Frozen CLAP: sound to tokens in time."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from anymal.errors import DataError
from anymal.media.audio import open_audio
from anymal.model.encoders.audio import mel_picture


class HuggingFaceClap:
    """The audio tower of CLAP (HTS-AT): its last feature map, averaged over frequency, is one token per time step; 32 of 10 seconds as published.

    Sounds are heard from their start: what is longer than the tower's window is left out, what is shorter is repeated, as CLAP was trained.

    Args:
        folder: a Hugging Face folder of a `ClapModel` (or of its audio tower alone) with safetensors weights and its feature extractor.
    """

    modality = "audio"

    def __init__(self, folder: Path) -> None:
        from transformers import AutoConfig, ClapAudioModel, ClapFeatureExtractor, ClapModel

        try:
            kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
            self._extractor = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise DataError(f"{folder}: is no Hugging Face folder with config.json and preprocessor_config.json; name a CLAP folder") from error
        loaders: dict[str, Any] = {"clap": ClapModel, "clap_audio_model": ClapAudioModel}
        if kind not in loaders:
            raise DataError(f"{folder}: is a model of type {kind}; encoder kind hf_clap needs a CLAP folder such as laion/clap-htsat-unfused")
        model = loaders[kind].from_pretrained(folder, use_safetensors=True, local_files_only=True, dtype="auto")
        tower: Any = getattr(model, "audio_model", model)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._tower = tower.eval().requires_grad_(False).to(self._device)
        self._fusion = bool(tower.config.enable_fusion)
        probe = self.forward(torch.from_numpy(self.blank())[None])
        self.tokens, self.dim = probe.shape[1], probe.shape[2]

    def read(self, source: Path | BinaryIO, name: str) -> np.ndarray:
        """One sound file's log-mel spectrogram, (1, frames, bands)."""
        return self.preprocess(open_audio(source, name, rate=self._extractor.sampling_rate, seconds=self._extractor.max_length_s))

    def blank(self) -> np.ndarray:
        """Silence."""
        return self.preprocess(np.zeros(self._extractor.nb_max_samples, dtype=np.float32))

    def picture(self, medium: np.ndarray) -> bytes:
        """The spectrogram, as the tower sees it."""
        return mel_picture(medium[0].T, self._extractor.hop_length / self._extractor.sampling_rate)

    def preprocess(self, samples: np.ndarray) -> np.ndarray:
        """(samples,) to (1, frames, bands) by the model's own feature extractor."""
        features = self._extractor(samples[: self._extractor.nb_max_samples], sampling_rate=self._extractor.sampling_rate, return_tensors="np")
        # The extractor of a fused tower gives the same spectrogram four times for what fits the window; one is kept.
        mel: np.ndarray = features["input_features"][0][:1].astype(np.float32)
        return mel

    @torch.inference_mode()
    def forward(self, batch: Tensor) -> Tensor:
        """(batch, 1, frames, bands) to (batch, time steps, dim)."""
        mel = batch.to(self._device, next(self._tower.parameters()).dtype)
        if self._fusion:
            longer = torch.zeros(len(mel), 1, dtype=torch.bool, device=self._device)
            maps = self._tower(input_features=mel.expand(-1, 4, -1, -1), is_longer=longer).last_hidden_state
        else:
            maps = self._tower(input_features=mel).last_hidden_state
        tokens: Tensor = maps.mean(dim=2).transpose(1, 2)
        return tokens.contiguous().float().cpu()
