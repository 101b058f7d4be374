"""Alignment of the demo's LLM in int8 and nf4 against bf16, in one run: loss after the same steps, memory of the weights, and gradients.

A gradient can differ from that in bf16 because the weights are rounded, or because a backward pass is wrong. So it is also compared with the gradient
through a bf16 LLM whose weights were rounded in the same way: this one must agree, before and after an evaluation pass.

    python benchmarks/quantization.py [--steps 60] [--modality image]      # after `dvc repro encode@image`
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from bitsandbytes import functional as bnb
from torch.nn import functional

from anymal.config import read_document
from anymal.data.features import FeatureStore
from anymal.model.anymal import AnyMAL, embedding_scale, read_templates
from anymal.model.llm import QUANTIZATIONS, load_llm
from anymal.model.projectors import build_projector
from anymal.training.data import Batch, CaptionData, GroundingControls
from anymal.training.warmstart import warm_start

BATCHES = 4
"""Batches that a gradient is summed over."""


def held_bytes(modules: list[torch.nn.Module]) -> int:
    """Memory of parameters and buffers; what bitsandbytes packs counts as it is held."""
    tensors = {id(tensor): tensor for module in modules for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def linear_layers(llm: Any) -> dict[str, torch.nn.Module]:
    """The layers that are quantised."""
    return {name: module for name, module in llm.base_model.named_modules() if isinstance(module, torch.nn.Linear)}


def rounded(llm: Any, folder: Path, attention: str) -> Any:
    """A bf16 LLM with the weights that a quantised one stands for."""
    plain, _ = load_llm(folder, dtype="bfloat16", quantization="none", attention=attention)
    targets = linear_layers(plain)
    for name, layer in linear_layers(llm).items():
        if type(layer).__name__ == "Linear4bit":
            weight = bnb.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        else:
            weight = bnb.int8_vectorwise_dequant(layer.weight.data, layer.weight.SCB)
        targets[name].weight.data = weight.to(torch.bfloat16)
    return plain


def gradient(model: AnyMAL, batches: list[Batch]) -> torch.Tensor:
    """Of the loss with respect to the projectors, as one vector."""
    model.projectors.zero_grad(set_to_none=True)
    for batch in batches:
        model(batch.dialogues).mean().backward()
    return torch.cat([p.grad.flatten() for p in model.projectors.parameters() if p.grad is not None]).double()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--modality", default="image")
    parser.add_argument("--assets", type=Path, default=Path("data/assets"))
    arguments = parser.parse_args()
    knobs = read_document(Path("params.yaml"))["align"][arguments.modality]
    folder = Path("data/features") / arguments.modality
    store, held_out = FeatureStore(folder, "train"), FeatureStore(folder, "val")

    def assemble(llm: Any, tokenizer: Any) -> AnyMAL:
        torch.manual_seed(0)
        shape = {"media_dim": store.dim, "media_tokens": store.tokens, "dim": llm.config.hidden_size, "tokens": knobs["tokens"],
                 "output_scale": round(embedding_scale(llm), 6)}
        if knobs["projector"] == "resampler":
            shape |= {name: knobs[name] for name in ("layers", "heads", "width", "pooled_latents", "layout_rank", "media_positions")}
            shape |= {"media_frames": store.info["frames"]}
        described = {"modality": arguments.modality, "introduction": knobs["introduction"], "projector": {"arguments": shape},
                     "templates": {name: knobs[name] for name in ("caption", "question")}}
        return AnyMAL(llm, tokenizer, {arguments.modality: build_projector(knobs["projector"], shape)}, metadata={arguments.modality: described},
                      encoder_folders={}, templates=read_templates([described]))

    def data(model: AnyMAL) -> CaptionData:
        chosen = {name: knobs[name] for name in ("batch_size", "question_share", "target_captions", "answer_forms", "question_kinds")}
        return CaptionData(model, store, arguments.modality, **chosen, seed=0)

    found: dict[str, dict[str, float]] = {}
    reference = None
    for quantization in QUANTIZATIONS:
        llm, tokenizer = load_llm(arguments.assets / knobs["llm"], dtype="bfloat16", quantization=quantization, attention=knobs["attention"])
        model = assemble(llm, tokenizer)
        samples = data(model)
        warm_start(model, model.projectors[arguments.modality], store, samples.rows("caption"), steps=knobs["warm_start_steps"],
                   batch_size=knobs["warm_start_batch_size"], learning_rate=knobs["warm_start_learning_rate"], seed=0)
        first = [samples.batch(step) for step in range(BATCHES)]
        before = gradient(model, first)
        controls = GroundingControls(model, held_out, arguments.modality, samples=knobs["validation_samples"], batch_size=16, seed=0)
        controls.losses(["right"])  # the evaluation pass that once spoiled every gradient after it (tests/model/test_llm.py)
        after = gradient(model, first)
        reference = before if reference is None else reference
        entry = {"weights": held_bytes([llm]), "layers": held_bytes(list(linear_layers(llm).values())),
                 "cosine": float(functional.cosine_similarity(after, reference, dim=0)),
                 "evaluated": float(functional.cosine_similarity(after, before, dim=0)), "rounded": 1.0}
        if quantization != "none":
            same = assemble(rounded(llm, arguments.assets / knobs["llm"], knobs["attention"]), tokenizer)
            same.projectors.load_state_dict(model.projectors.state_dict())
            entry["rounded"] = float(functional.cosine_similarity(after, gradient(same, first), dim=0))
        optimizer = torch.optim.AdamW(model.projectors.parameters(), lr=knobs["learning_rate"], betas=(0.9, 0.95), weight_decay=knobs["weight_decay"])
        losses, started = [], time.perf_counter()
        for step in range(arguments.steps):
            for group in optimizer.param_groups:
                group["lr"] = knobs["learning_rate"] * min(1.0, (step + 1) / 10)
            optimizer.zero_grad(set_to_none=True)
            loss = model(samples.batch(step).dialogues).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.projectors.parameters(), knobs["gradient_clip"])
            optimizer.step()
            losses.append(float(loss.detach()))
        entry["steps/s"] = arguments.steps / (time.perf_counter() - started)
        found[quantization] = entry | {"held-out loss": controls.losses(["right"])["right"], "training loss": sum(losses[-10:]) / len(losses[-10:])}
        base = found["none"]
        print(f"{quantization:5} held-out loss {found[quantization]['held-out loss']:.4f} "
              f"({found[quantization]['held-out loss'] / base['held-out loss']:.3f}x)  training loss {found[quantization]['training loss']:.4f} "
              f"({found[quantization]['training loss'] / base['training loss']:.3f}x)  weights {entry['weights'] / 2**20:.0f} MiB "
              f"({entry['weights'] / base['weights']:.3f}x; linear layers {entry['layers'] / base['layers']:.3f}x)  "
              f"gradient cosine with bf16 {entry['cosine']:.3f}, with bf16 and the rounded weights {entry['rounded']:.3f}, "
              f"after and before an evaluation pass {entry['evaluated']:.4f}  {entry['steps/s']:.2f} steps/s", flush=True)


if __name__ == "__main__":
    main()
