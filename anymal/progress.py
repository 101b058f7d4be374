"""Progress bars with rates, on a terminal and in logs alike."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from anymal import processes


def track(items: Iterable[Any] | None = None, *, total: int | None = None, label: str, unit: str) -> Any:
    """A tqdm bar on stderr; in a log (no terminal) it prints a line every 10 seconds at most. Of several processes, the main one shows it."""
    terminal = sys.stderr.isatty()
    return tqdm(items, total=total, desc=label, unit=f" {unit}", mininterval=0.2 if terminal else 10.0, ascii=not terminal, dynamic_ncols=terminal,
                disable=not processes.is_main())
