"""Held-out features, shards and models of several modalities whose right answers can be read from the features."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from anymal.data.features import BLANK, INDEX, FeatureStore, write_feature_shard
from anymal.data.manifest import sha256_of, write_manifest
from anymal.data.shards import Sample, ShardWriter
from anymal.data.tensors import save_tensors
from anymal.errors import DataError
from anymal.media.image import png
from anymal.model.anymal import Completion
from anymal.model.checkpoint import METADATA, WEIGHTS
from anymal.model.modalities import register_encoder
from anymal.model.projectors import build_projector
from anymal.model.prompt import Template

TOKENS, DIM = 5, 16
ANSWERS = {"image": ("red", "green", "blue"), "imu": ("bicep curls", "rows", "side raises")}
KIND = {"image": "color", "imu": "label"}
TEMPLATES = {"caption": {"system": None, "user": "describe : {media}"}, "question": {"system": "look", "user": "{media} {question}"}}


class ToyEncoder:
    """Reads an .npy of one row of numbers."""

    modality = "image"
    tokens, dim = TOKENS, DIM

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, source: Any, name: str) -> np.ndarray:
        try:
            return np.load(source, allow_pickle=False)
        except ValueError as error:
            raise DataError(f"{name}: is no .npy file") from error

    def blank(self) -> np.ndarray:
        return np.zeros(DIM, dtype=np.float32)

    def picture(self, medium: np.ndarray) -> bytes:
        return png(Image.fromarray((medium[None].repeat(8, axis=0) * 50 + 128).clip(0, 255).astype(np.uint8)))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return batch[:, None].repeat(1, TOKENS, 1)


for _modality in ANSWERS:
    register_encoder(f"toy_{_modality}", _modality, type(f"Toy{_modality.capitalize()}", (ToyEncoder,), {"modality": _modality}))


def codes(modality: str) -> np.ndarray:
    """One feature row an answer, shape (answers, dim)."""
    return np.random.default_rng(sum(map(ord, modality))).normal(size=(len(ANSWERS[modality]), DIM)).astype(np.float32)


def medium(modality: str, index: int) -> np.ndarray:
    """The medium of a sample: its answer's row and a little noise."""
    noise = np.random.default_rng(index).normal(size=DIM).astype(np.float32)
    return codes(modality)[index % len(ANSWERS[modality])] + 0.05 * noise


def meta(modality: str, index: int) -> dict[str, Any]:
    """What curate would write; IMU samples have a label and one of two subjects as their group."""
    answer = ANSWERS[modality][index % len(ANSWERS[modality])]
    known = {"key": f"{modality}-{index:04d}", "kind": "window" if modality == "imu" else "scene", "split": "test", "source": "toys",
             "license": "CC0-1.0", "objects": [], "captions": [f"A person does {answer}." if modality == "imu" else f"A {answer} picture."],
             "questions": [{"question": f"which {KIND[modality]} ?", "answer": answer, "kind": KIND[modality]}],
             "group": f"subject {index % 2}" if modality == "imu" else f"{modality}-{index:04d}"}  # fmt: skip
    return {**known, "label": answer} if modality == "imu" else known


def make_inputs(root: Path, modality: str, count: int = 12) -> dict[str, Path]:
    """`checkpoints`, `features` and `shards` of a modality below a folder, all of split test."""
    folders = {port: root / port / modality for port in ("checkpoints", "features", "shards")}
    metas, media = [], []
    with ShardWriter(folders["shards"], "test", 5) as writer:
        for index in range(count):
            stream = io.BytesIO()
            np.save(stream, medium(modality, index))
            path = root / "medium.npy"
            path.write_bytes(stream.getvalue())
            known = {**meta(modality, index), "sha256": sha256_of(path)}
            writer.write(Sample(known["key"], "npy", stream.getvalue(), {name: value for name, value in known.items() if name != "key"}))
            metas.append(known)
            media.append(medium(modality, index))
    write_manifest(folders["shards"])
    write_features(folders["features"], modality, np.stack(media), metas)
    write_checkpoint(folders["checkpoints"], modality)
    return folders


def described(modality: str) -> dict[str, Any]:
    """The encoder as features and checkpoints name it."""
    return {"asset": "toy", "kind": f"toy_{modality}", "settings": {}}


def write_features(folder: Path, modality: str, media: np.ndarray, metas: Sequence[dict[str, Any]], *, dim: int = DIM) -> None:
    """A feature folder of one shard."""
    folder.mkdir(parents=True)
    write_feature_shard(folder / "test-00000.safetensors", media[:, None, :dim].repeat(TOKENS, axis=1), metas)
    save_tensors(folder / BLANK, {"features": torch.zeros(1, TOKENS, dim, dtype=torch.float16)})
    document = {"modality": modality, "encoder": described(modality), "tokens": TOKENS, "dim": dim,
                "shards": [{"name": "test-00000", "count": len(metas)}]}  # fmt: skip
    (folder / INDEX).write_text(json.dumps(document))
    write_manifest(folder)


def write_checkpoint(folder: Path, modality: str, **changes: Any) -> None:
    """An untrained linear projector."""
    torch.manual_seed(1)
    arguments = {"media_dim": DIM, "media_tokens": TOKENS, "dim": 32, "tokens": TOKENS, "output_scale": 0.5}
    folder.mkdir(parents=True)
    save_tensors(folder / WEIGHTS, build_projector("linear", arguments).state_dict())
    document = {"modality": modality, "llm": "tiny-llm", "projector": {"kind": "linear", "arguments": arguments},
                "encoder": {**described(modality), "tokens": TOKENS, "dim": DIM}, "introduction": "{medium}", "templates": TEMPLATES,
                **changes}  # fmt: skip
    (folder / METADATA).write_text(json.dumps(document))
    write_manifest(folder)


class Seer:
    """Says in words what it reads from the features of each medium; counts what it was asked."""

    def __init__(self, stores: dict[str, FeatureStore], *, blind_to: Sequence[str] = ()) -> None:
        self.templates = {modality: {name: Template(**template) for name, template in TEMPLATES.items()} for modality in stores}
        self.metadata = {m: {"encoder": {**store.info["encoder"], "tokens": store.tokens, "dim": store.dim}} for m, store in stores.items()}
        self.blind_to = blind_to
        self.generated: list[Any] = []
        self.scored: list[Any] = []

    def seen(self, prompt: Any) -> list[str | None]:
        """The answer in each medium; None for an empty one."""
        found: list[str | None] = []
        for part in prompt.media:
            row = part.features[0].float().numpy()
            near = int(np.argmin(np.linalg.norm(codes(part.modality) - row, axis=1)))
            answer = ANSWERS[part.modality][0 if part.modality in self.blind_to else near]
            found.append(answer if row.any() or part.modality in self.blind_to else None)
        return found

    def complete(self, prompts: Sequence[Any], *, max_new_tokens: int, batch_size: int) -> list[Completion]:
        self.generated += prompts
        texts = [self._say(prompt, self.seen(prompt)) for prompt in prompts]
        return [Completion(text, "stop" if len(text.split()) <= max_new_tokens else "length") for text in texts]

    @staticmethod
    def _say(prompt: Any, seen: list[str | None]) -> str:
        if len(seen) > 1:
            return "It is " + " and ".join(answer or "nothing" for answer in seen) + "."
        if "?" in prompt.messages[-1]["content"]:
            return seen[0] or ""
        return f"A person does {seen[0] or 'nothing'}." if prompt.media[0].modality == "imu" else f"A {seen[0] or 'grey'} picture."

    def score(self, prompts: Sequence[Any], targets: Sequence[str], *, batch_size: int) -> list[tuple[float, int]]:
        self.scored += prompts
        return [(4.0 if f" {self.seen(p)[0]}" in target else 8.0, 4) for p, target in zip(prompts, targets, strict=True)]
