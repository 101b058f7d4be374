"""The frozen LLM: loading (optionally quantised), and the forward pass that training and scoring share."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anymal.errors import ConfigError, DataError
from anymal.model.precision import dtype_of

QUANTIZATIONS = ("none", "nf4", "int8")


def load_llm(folder: Path, *, dtype: str, quantization: str, attention: str) -> tuple[Any, Any]:
    """Load a causal LM and its tokenizer from a Hugging Face folder; all its weights are frozen.

    Args:
        folder: safetensors weights, config, tokenizer and chat template.
        dtype: "auto", "bfloat16", "float16" or "float32" (`precision.dtype_of`): of the weights, or of the computation when quantised.
        quantization: "none", "nf4" or "int8" (bitsandbytes; paper section 3.1 trains the 70B in 4 or 8 bits).
        attention: transformers' attention implementation. "eager" is faster than "sdpa" for short sequences on a CPU.

    Raises:
        DataError: if the folder is missing or has no chat template.
        ConfigError: if the quantisation is unknown.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    if not folder.is_dir():
        raise DataError(f"{folder}: no such asset; name it in ingest.assets and run ingest")
    compute = dtype_of(dtype)
    options: dict[str, Any] = {"dtype": compute, "use_safetensors": True, "local_files_only": True, "attn_implementation": attention}
    if quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=compute)
    elif quantization == "int8":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    elif quantization != "none":
        raise ConfigError(f"quantization = {quantization}: must be one of {', '.join(QUANTIZATIONS)}")
    warnings.filterwarnings("error", message=".*autograd kernel was not registered.*")
    if torch.cuda.is_available():
        options["device_map"] = {"": torch.cuda.current_device()}
    llm = AutoModelForCausalLM.from_pretrained(folder, **options)
    keep_quantized_backward_right(llm)
    keep_prefill_cheap(llm)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if tokenizer.chat_template is None:
        raise DataError(f"{folder}: its tokenizer has no chat template; use an instruction-tuned LLM")
    return llm.eval().requires_grad_(False), tokenizer


def keep_quantized_backward_right(llm: torch.nn.Module) -> None:
    """Stop bitsandbytes' `Linear4bit` from repacking its weights on CPUs with AVX512-BF16.

    An eval-mode forward without gradients repacks them, and each backward after it is silently wrong (seen with 0.50.2: cosine
    0.095 with the right gradient). Tested in `tests/model/test_llm.py`.
    """
    module: Any
    for module in llm.modules():
        if type(module).__name__ == "Linear4bit":
            module.support_avx512bf16_for_cpu = False


def keep_prefill_cheap(llm: Any) -> None:
    """Hand the output layer contiguous positions.

    `generate` slices the last position of each prompt out of the hidden states; for such a view torch multiplies batch by batch and copies
    the whole vocabulary's weights for every sequence: 2.1 of 2.9 s for 32 prompts of the demo's LLM.
    """
    llm.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: tuple(tensor.contiguous() for tensor in inputs))


PREFIXES = 16
"""Prefixes kept at once, the oldest dropped first."""


class PrefixCache:
    """Keys and values of prompt prefixes that a batch shares, computed for one sequence.

    Those of a frozen LLM are kept: nothing in them depends on a projector. Those of an LLM in training (an adapter) are made anew each time,
    with gradients.
    """

    def __init__(self, llm: Any) -> None:
        self._llm = llm
        self._known: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}

    def get(self, prefix: tuple[int, ...], batch: int) -> Any:
        """A fresh cache object that holds the prefix for `batch` sequences."""
        from transformers import DynamicCache

        if any(parameter.requires_grad for parameter in self._llm.parameters()):
            self._known.clear()
            known = self._run(prefix)
        else:
            if prefix not in self._known:
                if len(self._known) == PREFIXES:
                    del self._known[next(iter(self._known))]
                with torch.no_grad():
                    self._known[prefix] = self._run(prefix)
            known = self._known[prefix]
        cache = DynamicCache()
        for index, (keys, values) in enumerate(known):
            cache.update(keys.expand(batch, -1, -1, -1), values.expand(batch, -1, -1, -1), index)
        return cache

    def _run(self, prefix: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
        from transformers import DynamicCache

        filled: Any = DynamicCache()
        self._llm.base_model(input_ids=torch.tensor([prefix], device=self._llm.device), past_key_values=filled, use_cache=True)
        return [(layer.keys, layer.values) for layer in filled.layers]
