"""The model of a stage on the meta device: the same classes, shapes and precisions as in training, and no data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState
from torch import Tensor, nn

from anymal.errors import ConfigError
from anymal.model.adapter import add_adapter
from anymal.model.anymal import AnyMAL
from anymal.model.projectors import build_projector

BLOCK, NESTED_BLOCK = 64, 256
"""Values that share a scale in nf4, and scales that share one of theirs (double quantisation): bitsandbytes' defaults."""
CODE, NESTED_CODE = 16, 256
"""Entries of the tables that 4-bit values and quantised scales are looked up in."""
OUTLIERS = 6.0
"""Threshold of LLM.int8(), transformers' default."""


def meta_model(config: Mapping[str, Any], *, depth: int, dtype: str, quantization: str, attention: str,
               projectors: Mapping[str, tuple[str, dict[str, Any]]], adapter: Mapping[str, Any] | None, checkpointing: bool, device: str) -> AnyMAL:
    """An AnyMAL as `align` or `finetune` trains it.

    Args:
        config: the LLM's Hugging Face config.
        depth: how many of the LLM's blocks to make; they are all alike.
        projectors: modality -> kind and arguments.
        adapter: rank, alpha and dropout of LoRA; None for none.
        device: "cuda" or "cpu": whose kernels the quantised layers use.

    Raises:
        ConfigError: if transformers cannot build an LLM of this config, or a projector's arguments do not fit it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    # FlashAttention 2 keeps what PyTorch's own fused attention does, and is not needed to plan for it.
    implementation = "sdpa" if attention == "flash_attention_2" else attention
    shape = {name: value for name, value in config.items() if name not in ("architectures", "dtype", "torch_dtype", "quantization_config")}
    try:
        with torch.device("meta"):
            llm = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**shape, "num_hidden_layers": depth}),
                                                   dtype=getattr(torch, dtype), attn_implementation=implementation)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"llm: its config describes no causal LLM that can be built ({' '.join(str(error).split())}); "
                          "give a config.json of a model that transformers knows") from error
    llm.eval().requires_grad_(False)
    if quantization != "none":
        _quantize(llm, quantization, getattr(torch, dtype), device)
    with torch.device("meta"):
        built = {modality: build_projector(kind, arguments) for modality, (kind, arguments) in projectors.items()}
        model = AnyMAL(llm, None, built, templates={}, metadata={}, encoder_folders={})
        if adapter is not None:
            add_adapter(llm, **adapter)
    if checkpointing:
        model.checkpoint_gradients()
    return model


def held(module: nn.Module) -> Iterator[Tensor]:
    """All tensors that a model keeps: parameters, buffers and what quantised layers hold beside them."""
    yield from module.parameters()
    yield from module.buffers()
    for layer in module.modules():
        weight: Any = getattr(layer, "weight", None)
        if isinstance(layer, bnb.nn.Linear4bit) and weight.quant_state is not None:
            state = weight.quant_state
            yield from (state.absmax, state.code)
            if state.nested:
                yield from (state.offset, state.state2.absmax, state.state2.code)
        elif isinstance(layer, bnb.nn.Linear8bitLt):
            yield from (scales for scales in (weight.SCB, layer.state.SCB) if scales is not None)


def held_bytes(module: nn.Module) -> int:
    """Bytes of `held`, shared storage counted once."""
    return sum(storage.nbytes() for storage in {id(found): found for found in (tensor.untyped_storage() for tensor in held(module))}.values())


def _quantize(llm: Any, quantization: str, dtype: torch.dtype, device: str) -> None:
    """Put quantised layers in place of the linear ones of the LLM's blocks, as bitsandbytes does when it loads them."""
    for name, layer in list(llm.base_model.named_modules()):
        if isinstance(layer, nn.Linear):
            parent, _, last = name.rpartition(".")
            made = _four_bit(layer, dtype) if quantization == "nf4" else Int8Linear(layer, device)
            setattr(llm.base_model.get_submodule(parent), last, made.eval().requires_grad_(False))
    setattr(llm, "is_loaded_in_4bit" if quantization == "nf4" else "is_loaded_in_8bit", True)


def _four_bit(layer: nn.Linear, dtype: torch.dtype) -> nn.Module:
    values = layer.weight.numel()
    blocks = -(-values // BLOCK)
    with torch.device("meta"):
        made = bnb.nn.Linear4bit(layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=dtype, quant_type="nf4")
        nested = QuantState(absmax=torch.empty(-(-blocks // NESTED_BLOCK)), code=torch.empty(NESTED_CODE), blocksize=NESTED_BLOCK,
                            dtype=torch.float32)
        state = QuantState(absmax=torch.empty(blocks, dtype=torch.uint8), shape=layer.weight.shape, code=torch.empty(CODE), blocksize=BLOCK,
                           quant_type="nf4", dtype=dtype, offset=torch.empty(()), state2=nested)
        packed = torch.empty(-(-values // 2), 1, dtype=torch.uint8)
    made.weight = bnb.nn.Params4bit(packed, requires_grad=False, quant_state=state, quant_type="nf4", bnb_quantized=True, module=made)
    made.quant_state = state
    made.bias = layer.bias
    made.support_avx512bf16_for_cpu = False  # as `keep_quantized_backward_right` sets it
    return made


class Int8Linear(bnb.nn.Linear8bitLt):
    """LLM.int8() on the meta device: bitsandbytes' own path asks for values (which columns hold outliers); this one takes none for granted."""

    def __init__(self, layer: nn.Linear, device: str) -> None:
        with torch.device("meta"):
            super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None, has_fp16_weights=False, threshold=OUTLIERS)
            values = torch.empty(layer.weight.shape, dtype=torch.int8)
            self.weight = bnb.nn.Int8Params(values, requires_grad=False, has_fp16_weights=False)
            self.state.CB, self.state.SCB = values, torch.empty(layer.out_features)
        self.bias = layer.bias
        self._cuda = device == "cuda"

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        out: Tensor = _Int8Product.apply(x, self.state.CB, self.state.SCB, self._cuda, self.training)
        return out if self.bias is None else out + self.bias


class _Int8Product(torch.autograd.Function):
    """What bitsandbytes' 8-bit product makes on its way, and keeps for its backward pass: the activations in their own precision."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, values, scales, cuda, training = inputs
        ctx.kept = (x, values, scales)
        if training and not cuda:
            return nn.functional.linear(x, _unpacked(values, scales, x.dtype))
        rows = x.reshape(-1, x.shape[-1])
        quantized, row_scales = _rows_to_int8(rows, cuda)
        sums = torch.empty(len(rows), len(values), dtype=torch.int32, device=x.device)
        out = torch.empty_like(sums, dtype=torch.float16) if cuda else sums * (row_scales * scales[None]) * 1.0
        del quantized
        return out.to(x.dtype).reshape(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, values, scales = ctx.kept
        (gradient,) = gradients
        rows = gradient.reshape(-1, gradient.shape[-1]).contiguous().to(x.dtype)
        return torch.matmul(rows, _unpacked(values, scales, x.dtype)).view(x.shape), None, None, None, None


def _rows_to_int8(rows: Tensor, cuda: bool) -> tuple[Tensor, Tensor]:
    half = rows.to(torch.float16)
    outliers = half.abs() >= OUTLIERS
    row_scales = half.abs().amax(1, keepdim=True).float()
    del outliers
    if cuda:
        return torch.empty(rows.shape, dtype=torch.int8, device=rows.device), row_scales
    return torch.round(half * (1.0 / row_scales)).to(torch.int8), row_scales


def _unpacked(values: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype).mul_(scales.unsqueeze(1).mul(1.0))
