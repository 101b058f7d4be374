"""The bundle with the conventions of Hugging Face's multimodal models: a processor that makes tensors, a model with `generate` and a loss.

    processor = AnyMALProcessor.from_pretrained("models/bundle")
    model = AnyMALForConditionalGeneration.from_pretrained("models/bundle")
    conversation = [{"role": "user", "content": [{"type": "image", "path": "cat.png"}, {"type": "text", "text": "What is this?"}]}]
    inputs = processor.apply_chat_template(conversation, tokenize=True, return_dict=True, add_generation_prompt=True)
    print(processor.batch_decode(model.generate(**inputs, num_beams=4), skip_special_tokens=True)[0])

Tokenisation (`anymal.model.prompt.tokenize`), encoders, projectors and the LLM's `generate` are those of `AnyMAL`, so the answers are as well.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anymal.errors import DataError
from anymal.model.anymal import AnyMAL
from anymal.model.bundle import read_bundle
from anymal.model.loading import load_bundle
from anymal.model.processor import VALUES, AnyMALProcessor, placeholder_ids, token_counts
from anymal.model.prompt import Medium, Pieces
from anymal.model.saving import save_bundle

__all__ = ["AnyMALForConditionalGeneration", "AnyMALProcessor"]

IGNORED = -100
"""Label of a position without loss."""


class AnyMALForConditionalGeneration(nn.Module):
    """A bundle's model, called with the tensors of `AnyMALProcessor`.

    Attributes:
        anymal: the model itself. Its projectors are frozen like all of it; `model.anymal.projectors.requires_grad_(True)` lets them train.
        config: of the LLM.
        generation_config: the LLM's, greedy, ending with the end of turn, and as long as the bundle says. `generate` takes another one.
    """

    def __init__(self, anymal: AnyMAL, bundle: Path) -> None:
        super().__init__()
        self.anymal, self._bundle = anymal, bundle
        self.config = anymal.llm.config
        self.generation_config = copy.deepcopy(anymal.llm.generation_config)
        self.generation_config.update(do_sample=False, eos_token_id=anymal.end_of_turn, pad_token_id=anymal.end_of_turn, max_length=None,
                                      max_new_tokens=read_bundle(bundle)["inference"]["max_new_tokens"])
        self._tokens = token_counts(anymal.metadata)
        self._placeholder_ids = placeholder_ids(anymal.tokenizer, anymal.metadata)

    @classmethod
    def from_pretrained(cls, folder: Path | str, *, dtype: str | torch.dtype | None = None, quantization: str | None = None,
                        attn_implementation: str | None = None) -> AnyMALForConditionalGeneration:
        """Load a bundle. What is not given is as the bundle was measured.

        Args:
            dtype: of the LLM, such as "bfloat16" or `torch.bfloat16`.
            quantization: "none", "nf4" or "int8".

        Raises:
            BundleError: if the bundle, or an asset it names, is incomplete, has extra files or was changed.
            AssetError: if the LLM or an encoder is not on this machine and cannot be fetched.
        """
        name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
        return cls(load_bundle(Path(folder), dtype=name, quantization=quantization, attention=attn_implementation), Path(folder))

    def save_pretrained(self, folder: Path | str) -> None:
        """Write a complete bundle: the one it came from byte for byte, or, if projectors were trained on, one that says so.

        The figures of the evaluation and the model card hold for the projectors that were measured; a bundle with others goes without.

        Raises:
            BundleError: if `folder` holds anything but this very bundle.
        """
        save_bundle(self._bundle, Path(folder), {modality: projector.state_dict() for modality, projector in self.anymal.projectors.items()})

    @property
    def processor(self) -> AnyMALProcessor:
        """A processor that shares this model's encoders."""
        return AnyMALProcessor(self.anymal.tokenizer, self.anymal.encoder, self.anymal.metadata, self._bundle)

    @property
    def device(self) -> torch.device:
        """Where the LLM is."""
        device: torch.device = self.anymal.llm.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Of the LLM."""
        dtype: torch.dtype = self.anymal.llm.dtype
        return dtype

    def get_input_embeddings(self) -> nn.Module:
        """The LLM's token embeddings."""
        embeddings: nn.Module = self.anymal.llm.get_input_embeddings()
        return embeddings

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **inputs: Any) -> Any:
        """The LLM's output: `logits` (batch, tokens, vocabulary) and, with `labels`, the mean `loss` of the labelled positions.

        Args:
            input_ids: (batch, tokens), with placeholder ids, as the processor makes them.
            labels: (batch, tokens); -100 where there is no loss. Padding and media never have one, so `input_ids` can be given.
            inputs: `{modality}_values` (media, *shape), and options of the LLM's forward.

        Raises:
            DataError: if the media do not match the placeholders.
        """
        values, options = self._split(inputs)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        embedded = self._embed(input_ids, values)
        if labels is not None:
            labels = labels.masked_fill((input_ids >= len(self.anymal.tokenizer)) | (mask == 0), IGNORED).to(self.device)
        mask = mask.to(self.device)
        options.setdefault("position_ids", (mask.cumsum(-1) - 1).clamp(min=0))
        return self.anymal.llm(inputs_embeds=embedded, attention_mask=mask, labels=labels, **options)

    @torch.no_grad()
    def generate(self, input_ids: Tensor, attention_mask: Tensor | None = None, generation_config: Any = None, **inputs: Any) -> Any:
        """Token ids of the answers only, (batch, new tokens), or what `return_dict_in_generate` asks for.

        Args:
            inputs: `{modality}_values`, and any option of transformers' `generate` (`max_new_tokens`, `num_beams`, `do_sample`, `temperature`,
                `stopping_criteria`, `streamer`, …).

        Raises:
            DataError: if the media do not match the placeholders, or the prompt is longer than the model can read.
        """
        values, options = self._split(inputs)
        config = copy.deepcopy(self.generation_config if generation_config is None else generation_config)
        options = config.update(**options)  # those that are no part of a configuration are left: streamer, stopping criteria, …
        for name in ("do_sample", "eos_token_id", "pad_token_id"):
            if getattr(config, name) is None:
                setattr(config, name, getattr(self.generation_config, name))
        if config.max_length is None and config.max_new_tokens is None:
            config.max_new_tokens = self.generation_config.max_new_tokens
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        self.anymal.check_fits(mask.sum(1).tolist(), config.max_new_tokens or 0)
        return self.anymal.llm.generate(
            inputs_embeds=self._embed(input_ids, values), attention_mask=mask.to(self.device), generation_config=config, **options)

    def _split(self, inputs: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """`{modality}_values` by modality, and the other arguments."""
        values = {name.removesuffix(VALUES): value for name, value in inputs.items() if name.endswith(VALUES) and value is not None}
        for modality in values:
            if modality not in self._tokens:
                raise DataError(f"{modality}{VALUES}: this model has no projector for '{modality}'; it reads {', '.join(self._tokens)}")
        return values, {name: value for name, value in inputs.items() if not name.endswith(VALUES)}

    def _embed(self, input_ids: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """(batch, tokens) to (batch, tokens, LLM dim): embeddings of text, projected media at the placeholders."""
        input_ids = input_ids.to(self.device)
        embedded = self.get_input_embeddings()(input_ids.masked_fill(input_ids >= len(self.anymal.tokenizer), self.anymal.end_of_turn))
        for modality, token in self._placeholder_ids.items():
            places = input_ids == token
            media = list(values[modality].detach().cpu().float().numpy()) if modality in values else []
            if int(places.sum()) != len(media) * self._tokens[modality]:
                raise DataError(f"input_ids hold {int(places.sum())} tokens of {modality}, but {len(media)} of {modality}{VALUES} take "
                                f"{len(media) * self._tokens[modality]}; make both with one call of the processor")
            if media:
                features = self.anymal.encode(modality, media)
                pieces = Pieces(((),) * (len(features) + 1), tuple(Medium(modality, feature) for feature in features))
                embedded = embedded.masked_scatter(places[..., None], torch.cat(self.anymal.project([pieces])[0]))
        return embedded
