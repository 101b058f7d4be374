"""Compile every pipeline of this folder to Kubeflow's intermediate representation: `python -m pipelines.compile [FOLDER]`."""

import importlib
import sys
from pathlib import Path

from kfp import compiler

PIPELINES = ("training",)


def compile_all(folder: Path) -> list[Path]:
    """Write `folder/NAME.yaml` for each pipeline; the same sources give the same bytes.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in PIPELINES:
        target = folder / f"{name}.yaml"
        temporary = folder / f".{name}.partial.yaml"
        compiler.Compiler().compile(getattr(importlib.import_module(f"pipelines.{name}"), name), str(temporary))
        written.append(temporary.replace(target))
    return written


if __name__ == "__main__":
    for path in compile_all(Path(sys.argv[1] if len(sys.argv) > 1 else "dist")):
        print(path)
