"""The classifier of a picture with a text: a small network over what a frozen image network and a frozen text encoder make of them."""

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
from anymal.safety.image_classifier import AT_ONCE, looked_at, spread
from anymal.safety.text_classifier import load_encoder
from anymal.safety.thresholds import Calibration

SETTINGS, FUSION, IMAGE, TEXT = "classifier.json", "fusion.safetensors", "image", "text"


class Sentences:
    """A frozen text encoder: the mean of its last hidden states, of length 1."""

    def __init__(self, folder: Path, max_tokens: int) -> None:
        """Load it.

        Raises:
            DataError: if it cannot be read.
        """
        self.tokenizer, self.model = load_encoder(folder)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = self.model.eval().requires_grad_(False).to(self.device)
        self.max_tokens, self.dim = max_tokens, int(self.model.config.hidden_size)

    @torch.inference_mode()
    def features(self, texts: Sequence[str]) -> Tensor:
        """Texts to (texts, dim); what goes beyond `max_tokens` is not read."""
        found = torch.zeros(len(texts), self.dim)
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        for start in range(0, len(order), AT_ONCE):
            places = order[start : start + AT_ONCE]
            batch = [texts[place] for place in places]
            tokens = self.tokenizer(batch, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt").to(self.device)
            mask = tokens["attention_mask"][..., None].float()
            states = self.model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state.float()
            found[places] = nn.functional.normalize((states * mask).sum(1) / mask.sum(1).clamp(min=1), dim=-1).cpu()
        return found

    def save(self, folder: Path) -> None:
        """Write encoder and tokenizer in transformers' layout; how the tokenizer was used last is no property of it."""
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.backend_tokenizer.no_padding()
        self.model.save_pretrained(folder, safe_serialization=True)
        self.tokenizer.save_pretrained(folder)


class Fusion(nn.Module):
    """Both halves brought to one size, beside their product, and a hidden layer: what a text means can turn with the picture."""

    def __init__(self, image_dim: int, text_dim: int, hidden: int, categories: int, *, dropout: float) -> None:
        super().__init__()
        self.image, self.text = _branch(image_dim, hidden, hidden, dropout), _branch(text_dim, hidden, hidden, dropout)
        self.both = _branch(3 * hidden, hidden, categories, dropout)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """(batch, image dim) and (batch, text dim) to logits (batch, categories)."""
        seen, read = self.image(image), self.text(text)
        logits: Tensor = self.both(torch.cat([seen, read, seen * read], dim=-1))
        return logits


def _branch(dim: int, hidden: int, out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(dim), nn.Dropout(dropout), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, out))


class PairClassifier:
    """Probabilities of the taxonomy's categories for pictures with texts; a category that no training pair had is never given (0)."""

    def __init__(
        self, backbone: Backbone, sentences: Sentences, fusion: Fusion, *, trained: Sequence[str], hidden: int, calibration: Calibration | None
    ) -> None:
        """Put it to use.

        Args:
            trained: the categories of the columns.
            calibration: None gives the plain sigmoid of the logits.
        """
        self.backbone, self.sentences, self.fusion = backbone, sentences, fusion.eval()
        self.trained, self.hidden, self.calibration = tuple(trained), hidden, calibration

    @classmethod
    def load(cls, folder: Path) -> PairClassifier:
        """Read what `save` wrote.

        Raises:
            DataError: if something is missing or does not fit.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = folder / SETTINGS
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            trained, hidden, max_tokens = [str(code) for code in settings["trained"]], int(settings["hidden"]), int(settings["max_tokens"])
            calibration = Calibration.read(settings["calibration"], str(path))
            backbone, sentences = load_backbone(folder / IMAGE), Sentences(folder / TEXT, max_tokens)
            fusion = Fusion(backbone.dim, sentences.dim, hidden, len(trained), dropout=0.0)
            fusion.load_state_dict(load_file(folder / FUSION))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise DataError(f"{folder}: is no classifier of pairs ({error}); train the classifiers again") from error
        return cls(backbone, sentences, fusion, trained=trained, hidden=hidden, calibration=calibration)

    def save(self, folder: Path) -> None:
        """Write both encoders, the fusion and settings, no pickles."""
        assert self.calibration is not None
        folder.mkdir(parents=True, exist_ok=True)
        self.backbone.save(folder / IMAGE)
        self.sentences.save(folder / TEXT)
        save_tensors(folder / FUSION, self.fusion.state_dict())
        document = {"trained": list(self.trained), "hidden": self.hidden, "max_tokens": self.sentences.max_tokens,
                    "calibration": self.calibration.document()}
        (folder / SETTINGS).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """What the image network makes of RGB pictures, (pictures, dim); a few at a time."""
        return looked_at(images, self.backbone)

    @torch.inference_mode()
    def of_features(self, image: Tensor, text: Tensor) -> np.ndarray:
        """Calibrated probabilities of all categories of the taxonomy from features, (pairs, categories)."""
        return spread(self.fusion(image, text).double().numpy(), self.trained, self.calibration)

    @torch.inference_mode()
    def judge(self, seen: Sequence[Tensor], texts: Sequence[str]) -> np.ndarray:
        """Calibrated probabilities of each picture, as `features` saw it, with each text, (pictures × texts, categories); those of the first picture
        come first, and each text is read once."""
        read = self.sentences.features(texts)
        return self.of_features(torch.stack(list(seen)).repeat_interleave(len(texts), dim=0), read.repeat(len(seen), 1))

    def probabilities(self, images: Sequence[Image.Image], texts: Sequence[str]) -> np.ndarray:
        """Calibrated probabilities of all categories of the taxonomy, (pairs, categories), of as many pictures as texts."""
        assert len(images) == len(texts), (len(images), len(texts))
        # A picture that comes with several texts is looked at once.
        distinct = list({id(image): image for image in images}.values())
        seen = self.features(distinct)
        place = {id(image): number for number, image in enumerate(distinct)}
        return self.of_features(seen[[place[id(image)] for image in images]], self.sentences.features(texts))
