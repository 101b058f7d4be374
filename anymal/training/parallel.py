"""How the work of a training step is spread over processes: one alone, replicas (DDP), or shards of the model (FSDP).

Every process makes the same batch, takes its own part of it and scales its loss so that the mean gradient over processes, which DDP and FSDP
form, is the gradient of one process with the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from anymal import processes
from anymal.errors import ConfigError

if TYPE_CHECKING:
    from anymal.model.anymal import AnyMAL

Parallelism = Literal["ddp", "fsdp"]


class Alone:
    """One process does it all.

    Args:
        model: whose forward pass gives the losses that are trained on.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def begin(self, trained: nn.Module) -> None:
        """Spread the model over the processes; the weights of `trained` are those that training begins with."""

    def losses(self, *inputs: Any) -> Tensor:
        """The model's forward pass in training."""
        losses: Tensor = self._model(*inputs)
        return losses

    @contextmanager
    def part(self, last: bool) -> Iterator[None]:
        """Around the forward and backward pass of one part of a step; gradients meet in the last."""
        yield

    def total(self, *values: float) -> list[float]:
        """Each value, summed over the processes."""
        return list(values)

    def end(self, trained: nn.Module) -> None:
        """Give every process all of the trained weights; no step comes after it."""


class _Several(Alone):
    """What all ways to use several processes share."""

    def begin(self, trained: nn.Module) -> None:
        # What is frozen was read from the same hash-checked files; what trains may have been started on devices that round differently.
        for tensor in trained.state_dict().values():
            distributed.broadcast(tensor, 0)

    def total(self, *values: float) -> list[float]:
        device = next(self._model.parameters()).device
        sums = torch.tensor(values, dtype=torch.float64, device=device)
        distributed.all_reduce(sums)
        return [float(value) for value in sums]


class Replicas(_Several):
    """Each process holds the whole model, quantised or not, and gradients are averaged (DDP)."""

    def begin(self, trained: nn.Module) -> None:
        from torch.nn.parallel import DistributedDataParallel

        super().begin(trained)
        # Not every batch holds all modalities, so some projectors go without a gradient.
        self._replica = DistributedDataParallel(self._model, find_unused_parameters=True, broadcast_buffers=False, init_sync=False,
                                                gradient_as_bucket_view=True)

    def losses(self, *inputs: Any) -> Tensor:
        losses: Tensor = self._replica(*inputs)
        return losses

    @contextmanager
    def part(self, last: bool) -> Iterator[None]:
        if last:
            yield
            return
        with self._replica.no_sync():
            yield


class Shards(_Several):
    """Each process holds a part of every weight, and a block of the LLM is whole only while it works (FSDP)."""

    def __init__(self, model: AnyMAL) -> None:
        super().__init__(model)
        self._blocks = model.blocks()
        model.shares_prefixes = False  # gradients of a block are reduced after its backward pass; a prefix would give it two

    def begin(self, trained: nn.Module) -> None:
        from torch.distributed.fsdp import fully_shard

        super().begin(trained)
        for block in self._blocks:
            fully_shard(block)
        # By default the root stays whole from a forward pass to its backward pass; that of a validation would outlive the next step.
        fully_shard(self._model, reshard_after_forward=True).set_reduce_scatter_unused_params(True)

    def end(self, trained: nn.Module) -> None:
        for module in trained.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(whole(parameter.detach()), requires_grad=parameter.requires_grad))


def spread(model: AnyMAL, parallelism: Parallelism, *, batch_size: int, quantization: str) -> Alone:
    """How the processes that torchrun started share the work; alone if there is one.

    Raises:
        ConfigError: if the batch cannot be divided, or a quantised LLM is to be sharded.
    """
    count = processes.count()
    if count == 1:
        return Alone(model)
    if batch_size % count:
        raise ConfigError(f"batch_size = {batch_size}: does not divide among {count} processes; make it a multiple of {count}")
    if parallelism == "ddp":
        return Replicas(model)
    if quantization != "none":
        raise ConfigError(f"parallelism = fsdp: cannot shard weights of quantization = {quantization}; a quantised LLM is small enough "
                          "for each process to hold it whole: set parallelism to ddp")
    return Shards(model)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which each process may hold a part; all processes must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divided_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """This process's part of what belongs to a parameter, if the parameter itself is divided."""
    if isinstance(parameter, DTensor) and tensor.shape == parameter.shape:
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)
    return tensor

