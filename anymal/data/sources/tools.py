"""Running pip and apt as the user has set them up; their settings, addresses of package indexes among them, are never logged, stored or shown."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from typing import Any

PIP = [sys.executable, "-m", "pip"]


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, in English and without pip's advertisement of itself."""
    environment = os.environ | {"LC_ALL": "C", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return subprocess.run(command, check=False, capture_output=True, text=True, errors="replace", env=environment, **options)


@functools.cache
def pip_certificates() -> str | None:
    """The certificate bundle of pip's settings; requests reads its own environment variables by itself."""
    if chosen := os.environ.get("PIP_CERT"):
        return chosen
    result = run([*PIP, "config", "get", "global.cert"])
    return result.stdout.strip() or None if result.returncode == 0 else None
