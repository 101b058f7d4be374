"""What a run is told of where it ran: graph run, revision, user; and knobs as MLflow takes them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_PARAM = 6000
"""Characters of a parameter's value."""


def graph_run() -> str | None:
    """Name of the graph run this process belongs to: `ANYMAL_GRAPH_RUN`, or the `dvc` process above this one; None outside any."""
    import psutil

    if os.environ.get("ANYMAL_GRAPH_RUN"):
        return os.environ["ANYMAL_GRAPH_RUN"]
    for process in psutil.Process().parents():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if any(Path(word).name == "dvc" for word in words[:3]) and {"repro", "exp", "experiments", "exec-run"} & set(words):
                return f"dvc-{socket.gethostname()}-{process.pid}-{int(process.create_time())}"
    return None


def git_version() -> dict[str, str]:
    """`{"revision", "dirty"}` of the repository at hand; `ANYMAL_GIT_REVISION` (set in images) where there is none; {} if unknown."""
    if os.environ.get("ANYMAL_GIT_REVISION"):
        return {"revision": os.environ["ANYMAL_GIT_REVISION"], "dirty": "false"}
    for folder in (Path.cwd(), Path(__file__).parent):
        revision = _git(folder, "rev-parse", "HEAD")
        if revision:
            return {"revision": revision, "dirty": str(bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))).lower()}
    return {}


def _git(folder: Path, *words: str) -> str | None:
    """What git prints; None without git or outside a repository."""
    try:
        answer = subprocess.run(["git", *words], check=False, cwd=folder, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def facts(spec: Mapping[str, Any]) -> dict[str, str]:
    import getpass

    from anymal import __version__

    tags = {"stage": spec["name"], "anymal.version": __version__, "mlflow.source.name": spec["command"], "mlflow.source.type": "JOB"}
    with contextlib.suppress(OSError, KeyError):  # a container's user id may have no name
        tags["mlflow.user"] = getpass.getuser()
    git = git_version()
    if git:
        tags |= {"mlflow.source.git.commit": git["revision"], "git.dirty": git["dirty"]}
    for variable in ("KFP_RUN_ID", "KFP_POD_NAME", "DVC_EXP_NAME"):
        if os.environ.get(variable):
            tags[variable.lower()] = os.environ[variable]
    return tags | {f"input.{port}": digest for port, digest in spec["inputs"].items()}


def flatten_params(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Knobs by dotted name, as text; lists as JSON; values longer than MLflow takes are cut (config.json holds them whole)."""
    flat: dict[str, str] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat |= flatten_params(value, f"{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            flat[clean_key(key)] = text if len(text) <= MAX_PARAM else text[: MAX_PARAM - 1] + "…"
    return flat


def clean_key(key: str) -> str:
    """A name that MLflow takes for a parameter or metric: others than letters, digits and `_-./: ` become `_`; 250 at most."""
    return re.sub(r"[^\w\-./: ]", "_", key, flags=re.ASCII)[:250]
