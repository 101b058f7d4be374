"""Tiny random image networks in transformers' layout, and pictures they can learn: red is a weapon, blue is violence, grey is harmless."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {("weapons",): (220, 40, 40), ("violence",): (40, 40, 220), (): (150, 150, 150)}


def tiny_regnet(folder: Path) -> Path:
    """A random RegNetY of 32 × 32 pixels."""
    import torch
    from transformers import ConvNextImageProcessor, RegNetConfig, RegNetModel

    torch.manual_seed(0)
    RegNetModel(RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=4, layer_type="y")).save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=1.0).save_pretrained(folder)
    return folder


def tiny_clip(folder: Path) -> Path:
    """A random CLIP vision tower of 32 × 32 pixels."""
    import torch
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    CLIPVisionModel(CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32,
                                     patch_size=8)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def write_safety(folder: Path, *, pictures: int = 8) -> Path:
    """Lists of pictures and of pairs: a text of `give` is harmful with a red picture, one of `lock` with a grey one."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        rows = []
        for labels, colour in COLOURS.items():
            for number in range(pictures):
                name = f"{split}-{labels[0] if labels else 'none'}-{number}"
                pixels = np.clip(np.array(colour) + rng.integers(-30, 30, size=(32, 32, 3)), 0, 255).astype(np.uint8)
                file = folder / "images/files" / f"{name}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(file)
                rows.append({"id": name, "file": f"images/files/{name}.png", "labels": list(labels), "source": "drawn", "group": name,
                             "kind": "harmful" if labels else "hard_negative"})
        (folder / f"images/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        pairs = []
        for row in rows:
            if row["labels"] == ["violence"]:
                continue
            for verb in ("give", "lock"):
                text = f"{verb} it {row['id'][-1]} {split}"
                harmful = (verb == "give") == bool(row["labels"])
                pairs.append({"id": hashlib.sha256(f"{row['id']}{text}".encode()).hexdigest()[:12], "image": row["file"], "text": text,
                              "labels": ["illegal"] if harmful else [], "group": text, "kind": "composed", "family": "giving"})
            pairs.append({"id": f"n-{row['id']}", "image": row["file"], "text": "what is it", "labels": [], "group": f"what-{split}-{row['id'][-1]}",
                          "kind": "neutral", "family": "neutral"})
        (folder / "pairs").mkdir(exist_ok=True)
        (folder / f"pairs/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return folder
