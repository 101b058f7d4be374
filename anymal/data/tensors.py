"""Writing safetensors: whole or not at all, and readable by whoever may read the folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors (moved to the CPU) under a temporary name and rename the file.

    safetensors creates its files with mode 600; a later stage may run as another user of the same volume, so the mode follows the umask.
    """
    from safetensors.torch import save_file

    contiguous: dict[str, Any] = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    temporary = path.with_name(f".{path.name}.partial")
    save_file(contiguous, temporary)
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o666 & ~umask)
    temporary.replace(path)
