"""Training speed of align against a plain loop on the same data, LLM and projector, in one run.

The plain loop is what one writes first: pictures decoded and encoded in the loop by the float32 network, random batches padded to
their longest caption, the whole prompt through the LLM each time, logits for every position.

    python benchmarks/align.py [--steps 8]      # after `dvc repro encode@image`
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from anymal.config import read_document
from anymal.data.features import FeatureStore
from anymal.data.shards import Sample, read_shard, shard_paths
from anymal.media.image import open_image
from anymal.model.anymal import AnyMAL
from anymal.model.encoders.image import EfficientNetLite
from anymal.model.llm import load_llm
from anymal.model.projectors import build_projector
from anymal.model.prompt import Medium, Prompt, Template
from anymal.training.data import CaptionData


class PlainLoop:
    """Everything in the loop, nothing left out."""

    def __init__(self, model: AnyMAL, encoder_folder: Path, samples: list[Sample], template: Template) -> None:
        from efficientnet_lite_pytorch import EfficientNet
        from safetensors.torch import load_file

        self.model, self.samples, self.template = model, samples, template
        self.preprocess = EfficientNetLite(encoder_folder).preprocess
        self.encoder = EfficientNet.from_name("efficientnet-lite0")
        self.encoder.load_state_dict(load_file(next(encoder_folder.glob("*.safetensors"))))
        self.encoder.eval()

    def loss(self, rng: np.random.Generator, batch_size: int) -> torch.Tensor:
        rows = [self.samples[i] for i in rng.choice(len(self.samples), batch_size, replace=False)]
        pixels = np.stack([self.preprocess(open_image(io.BytesIO(row.data), row.key)) for row in rows])
        with torch.no_grad():
            features = self.encoder.extract_features(torch.from_numpy(pixels)).flatten(2).transpose(1, 2)
        media = self.model.projectors["image"](features).to(torch.bfloat16)
        embed, tokenizer = self.model.llm.get_input_embeddings(), self.model.tokenizer
        embedded, labels = [], []
        for row, tokens in zip(rows, media, strict=True):
            pieces = self.model.tokenize(Prompt(self.template.messages(["image"]), [Medium("image", features[0])]))
            target = tokenizer(row.meta["captions"][0], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            sequence = torch.cat([embed(torch.tensor(pieces.texts[0])), tokens, embed(torch.tensor([*pieces.texts[1], *target]))])
            embedded.append(sequence)
            labels.append(torch.tensor([-100] * (len(sequence) - len(target)) + target))
        inputs = torch.nn.utils.rnn.pad_sequence(embedded, batch_first=True)
        padded = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
        mask = torch.stack([(torch.arange(inputs.shape[1]) < len(sequence)).long() for sequence in embedded])
        loss: torch.Tensor = self.model.llm(inputs_embeds=inputs, attention_mask=mask, labels=padded).loss
        return loss


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--assets", type=Path, default=Path("data/assets"))
    parser.add_argument("--features", type=Path, default=Path("data/features/image"))
    parser.add_argument("--shards", type=Path, default=Path("data/shards/image"))
    arguments = parser.parse_args()
    knobs = read_document(Path("params.yaml"))["align"]["image"]

    store = FeatureStore(arguments.features, "train")
    llm, tokenizer = load_llm(arguments.assets / knobs["llm"], dtype=knobs["dtype"], quantization="none", attention=knobs["attention"])
    torch.manual_seed(0)
    projector = build_projector("resampler", {
        "media_dim": store.dim, "media_tokens": store.tokens, "dim": llm.config.hidden_size, "tokens": knobs["tokens"], "layers": knobs["layers"],
        "heads": knobs["heads"], "width": knobs["width"], "pooled_latents": knobs["pooled_latents"], "layout_rank": knobs["layout_rank"],
        "media_frames": store.info["frames"], "media_positions": knobs["media_positions"], "output_scale": 0.1})
    templates = {name: Template(**knobs[name], introductions={"image": knobs["introduction"]}) for name in ("caption", "question")}
    model = AnyMAL(llm, tokenizer, {"image": projector}, templates={"image": templates}, metadata={}, encoder_folders={})
    data = CaptionData(model, store, "image", batch_size=knobs["batch_size"], question_share=0.0, target_captions=1,
                       answer_forms={}, question_kinds=None, seed=0)
    samples = [sample for path in shard_paths(arguments.shards, "train") for sample in read_shard(path)]
    plain = PlainLoop(model, arguments.assets / store.info["encoder"]["asset"], samples, templates["caption"])
    plain_attention = "sdpa"  # transformers' default
    optimizer = torch.optim.AdamW(projector.parameters(), lr=1e-4)
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {"align": [], "plain": []}
    tokens = 0
    for step in range(arguments.steps + 1):
        for name, measured in seconds.items():
            llm.set_attn_implementation(knobs["attention"] if name == "align" else plain_attention)
            started = time.perf_counter()
            if name == "align":
                batch = data.batch(step)
                loss = model.dialogue_losses(batch.dialogues).values.mean()
            else:
                loss = plain.loss(rng, knobs["batch_size"])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if step > 0:  # the first one warms up
                measured.append(time.perf_counter() - started)
                tokens += batch.tokens if name == "align" else 0
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name:6} {1 / median:6.2f} steps/s  {knobs['batch_size'] / median:6.1f} samples/s")
    print(f"align  {tokens / sum(seconds['align']):6.1f} target tokens/s")
    print(f"ratio  {medians['plain'] / medians['align']:6.2f}")


if __name__ == "__main__":
    main()
