"""The processes that torchrun started to run one stage together: which this one is, and how they meet. Loads no torch for a process alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from anymal.errors import ConfigError


def count() -> int:
    """How many processes run this stage."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_main() -> bool:
    """Whether this process writes the outputs, speaks to MLflow and shows progress; there is exactly one."""
    return rank() == 0


@contextmanager
def together() -> Iterator[None]:
    """Connect the processes for as long as they work: NCCL between GPUs, one GPU per process, Gloo between CPUs.

    When one fails the others are not waited for: torchrun ends them.

    Raises:
        ConfigError: if WORLD_SIZE says that there are several, but not how they find each other.
    """
    if count() == 1:
        yield
        return
    import torch
    from torch import distributed

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    except ValueError as error:
        raise ConfigError(f"WORLD_SIZE = {count()}: the processes cannot find each other ({error}); start them with torchrun") from error
    yield
    distributed.destroy_process_group()


def wait() -> None:
    """Go on when all processes have come this far."""
    if count() > 1:
        from torch import distributed

        distributed.barrier()
