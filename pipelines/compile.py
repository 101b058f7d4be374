"""Compile every pipeline to Kubeflow's intermediate representation: `python -m pipelines.compile [FOLDER]`."""

import sys
from pathlib import Path
from typing import Any

from kfp import compiler

from pipelines.ablation import ablation_pipeline
from pipelines.ablations import FILE, read_ablations
from pipelines.training import training

ROOT = Path(__file__).parent.parent


def pipelines() -> dict[str, Any]:
    """Name -> pipeline: `training`, and one for each entry of `ablations.yaml`."""
    return {"training": training} | {f"ablation-{name}": ablation_pipeline(name, entry) for name, entry in read_ablations(ROOT / FILE).items()}


def compile_all(folder: Path) -> list[Path]:
    """Write `folder/NAME.yaml` for each pipeline; the same sources give the same bytes.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, pipeline in pipelines().items():
        target = folder / f"{name}.yaml"
        temporary = folder / f".{name}.partial.yaml"
        compiler.Compiler().compile(pipeline, str(temporary))
        written.append(temporary.replace(target))
    return written


if __name__ == "__main__":
    for path in compile_all(Path(sys.argv[1] if len(sys.argv) > 1 else "dist")):
        print(path)
