"""Alignment of the demo's LLM in nf4 and int8 against bf16, in one run: loss after the same steps, memory of the weights, and gradients.

    python benchmarks/quantization.py [--steps 40] [--modality imu]      # after `dvc repro encode@imu`
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from anymal.data.features import FeatureStore
from anymal.model.anymal import AnyMAL, embedding_scale, read_templates
from anymal.model.llm import QUANTIZATIONS, load_llm
from anymal.model.projectors import build_projector
from anymal.stage import read_document
from anymal.training.data import CaptionData, GroundingControls
from anymal.training.warmstart import warm_start


def weights_bytes(llm: torch.nn.Module) -> int:
    """Memory of the LLM's parameters and buffers; what bitsandbytes packs counts as it is held."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*llm.parameters(), *llm.buffers()))


def gradient(model: AnyMAL, batch: Any) -> torch.Tensor:
    """Of the loss with respect to the projectors, as one vector."""
    model.projectors.zero_grad(set_to_none=True)
    model.dialogue_losses(batch.dialogues).values.mean().backward()
    return torch.cat([p.grad.flatten() for p in model.projectors.parameters() if p.grad is not None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--modality", default="imu")
    parser.add_argument("--assets", type=Path, default=Path("data/assets"))
    arguments = parser.parse_args()
    knobs = read_document(Path("params.yaml"))["align"][arguments.modality]
    folder = Path("data/features") / arguments.modality
    store, held_out = FeatureStore(folder, "train"), FeatureStore(folder, "val")
    found: dict[str, dict[str, float]] = {}
    reference = None
    for quantization in QUANTIZATIONS:
        llm, tokenizer = load_llm(arguments.assets / knobs["llm"], dtype="bfloat16", quantization=quantization, attention=knobs["attention"])
        torch.manual_seed(0)
        shape = {"media_dim": store.dim, "media_tokens": store.tokens, "dim": llm.config.hidden_size, "tokens": knobs["tokens"],
                 "output_scale": round(embedding_scale(llm), 6)}
        if knobs["projector"] == "resampler":
            shape |= {name: knobs[name] for name in ("layers", "heads", "pooled_latents", "layout_rank", "media_positions")}
            shape |= {"media_frames": store.info["frames"]}
        projector = build_projector(knobs["projector"], shape)
        described = {"modality": arguments.modality, "introduction": knobs["introduction"], "projector": {"arguments": shape},
                     "templates": {name: knobs[name] for name in ("caption", "question")}}
        model = AnyMAL(llm, tokenizer, {arguments.modality: projector}, metadata={arguments.modality: described}, encoder_folders={},
                       templates=read_templates([described]))
        data = CaptionData(model, store, arguments.modality, batch_size=knobs["batch_size"], question_share=knobs["question_share"],
                           target_captions=knobs["target_captions"], answer_forms=knobs["answer_forms"], question_kinds=knobs["question_kinds"],
                           seed=0)
        controls = GroundingControls(model, held_out, arguments.modality, samples=knobs["validation_samples"], batch_size=16, seed=0)
        warm_start(model, projector, store, data.rows("caption"), steps=knobs["warm_start_steps"], batch_size=knobs["warm_start_batch_size"],
                   learning_rate=knobs["warm_start_learning_rate"], seed=0)
        controls.losses(["right"])  # the evaluation pass that once spoiled every gradient after it (tests/model/test_llm.py)
        first = gradient(model, data.batch(0))
        reference = first if reference is None else reference
        optimizer = torch.optim.AdamW(projector.parameters(), lr=knobs["learning_rate"], betas=(0.9, 0.95), weight_decay=knobs["weight_decay"])
        losses, started = [], time.perf_counter()
        for step in range(arguments.steps):
            for group in optimizer.param_groups:
                group["lr"] = knobs["learning_rate"] * min(1.0, (step + 1) / 10)
            optimizer.zero_grad(set_to_none=True)
            loss = model.dialogue_losses(data.batch(step).dialogues).values.mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(projector.parameters(), knobs["gradient_clip"])
            optimizer.step()
            losses.append(float(loss.detach()))
        took = time.perf_counter() - started
        found[quantization] = {
            "held-out loss": controls.losses(["right"])["right"], "training loss": sum(losses[-10:]) / len(losses[-10:]),
            "weights": weights_bytes(llm),
            "cosine": float(torch.nn.functional.cosine_similarity(first, reference, dim=0)), "steps/s": arguments.steps / took}
    base = found["none"]
    for name, entry in found.items():
        print(f"{name:5}  held-out loss {entry['held-out loss']:.4f} ({entry['held-out loss'] / base['held-out loss']:.3f}x)  "
              f"training loss {entry['training loss']:.4f} ({entry['training loss'] / base['training loss']:.3f}x)  "
              f"weights {entry['weights'] / 2**20:.0f} MiB ({entry['weights'] / base['weights']:.3f}x)  gradient cosine {entry['cosine']:.3f}  "
              f"{entry['steps/s']:.2f} steps/s")


if __name__ == "__main__":
    main()
