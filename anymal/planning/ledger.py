"""Who holds memory when: the bytes of all tensors alive while a step runs on the meta device, where tensors have shapes and no data."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class Peak:
    """Most bytes alive at once in a phase, and how many of them were scores over the vocabulary."""

    total: int = 0
    logits: int = 0


@dataclass(eq=False)
class Ledger(TorchDispatchMode):
    """While active, counts the bytes of tensors that operations make, until the last reference to their storage is gone.

    Tensors that were there before (weights, gradients, inputs) are not counted. What a kernel of its own takes for itself is, where it is known.

    Attributes:
        vocabulary: tensors whose last dimension is this long are logits.
        phase: name under which peaks are kept; set it as the work goes on.
    """

    vocabulary: int
    phase: str = "forward"
    alive: int = 0
    logits: int = 0
    peaks: dict[str, Peak] = field(default_factory=dict)
    _seen: dict[int, weakref.ref[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Leave out the storages of these."""
        for tensor in tensors:
            self._remember(tensor.untyped_storage(), 0, False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.ignore(leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        out = func(*args, **kwargs)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                self._remember(storage, storage.nbytes(), leaf.dim() > 0 and leaf.shape[-1] == self.vocabulary)
        if func is torch.ops.bitsandbytes.gemm_4bit.default:
            self._note(_unpacked_bytes(*args))
        return out

    def _remember(self, storage: Any, size: int, logits: bool) -> None:
        key = id(storage)
        if key in self._seen:
            return
        self._seen[key] = weakref.ref(storage, functools.partial(self._forget, key, size, logits))
        self.alive += size
        self.logits += size if logits else 0
        self._note(0)

    def _forget(self, key: int, size: int, logits: bool, _: Any) -> None:
        del self._seen[key]
        self.alive -= size
        self.logits -= size if logits else 0

    def _note(self, more: int) -> None:
        peak = self.peaks.setdefault(self.phase, Peak())
        if self.alive + more > peak.total:
            peak.total, peak.logits = self.alive + more, self.logits


def _unpacked_bytes(activations: Tensor, packed: Tensor, shape: list[int], absmax: Tensor, blocksize: int, *_: Any) -> int:
    """What bitsandbytes' 4-bit product holds while it runs: the whole weight in the activations' precision and its scales in float32."""
    values = math.prod(shape)
    return values * activations.element_size() + 4 * -(-values // blocksize)


class Kernels(TorchFunctionMode):
    """Let functions of PyTorch keep what they keep on a device: on the meta device they would take paths of their own.

    Args:
        device: "cuda" or "cpu".
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self._cuda = device == "cuda"

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return _fused_attention(*args, **kwargs)
        if func is functional.dropout and self._cuda:
            return _fused_dropout(*args, **kwargs)
        if func is Tensor.__bool__ and args[0].is_meta:
            return True  # transformers asks one thing of values: whether positions follow each other, which they do
        return func(*args, **kwargs)


def _fused_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *, dropout_p: float = 0.0,
                     is_causal: bool = False, scale: float | None = None, **_: Any) -> Tensor:
    """Flash and memory-efficient attention keep queries, keys, values, the output and a number per query, and no scores."""
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = attn_mask.to(query.dtype)
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    return out


def _fused_dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """GPUs keep a mask of one byte per value; CPUs one in the values' precision."""
    return torch.native_dropout(input, p, True)[0] if training and p else input
