"""Processors of a server: the thread that decodes computes with all of them, whatever runs beside it with one.

OpenMP gives each thread that computes in parallel helpers of its own, for as long as it lives. Where all of them together are more than the
processors, none waits awake between two operations any longer, and decoding, which is many small operations, takes twice the time: on two processors
an idle thread that had computed in parallel once was enough (`docs/serving.md`).
"""

from __future__ import annotations

import threading


def set_aside() -> int:
    """Let this thread, and those that begin after it, compute with one thread.

    Returns:
        How many this thread computed with: for `compute_with` in the thread that decodes.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    return threads


def compute_with(threads: int) -> None:
    """Let this thread compute with so many, and leave other threads as they are."""
    import torch

    others = torch.get_num_threads()  # asked first: torch sets a thread up when it is first used there, and would undo the next line
    torch.set_num_threads(threads)
    restoring = threading.Thread(target=torch.set_num_threads, args=(others,))  # sets what threads begin with, too
    restoring.start()
    restoring.join()
