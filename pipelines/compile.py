"""Compile every pipeline to Kubeflow's intermediate representation: `python -m pipelines.compile [FOLDER] [--profile FILE]`."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kfp import compiler

from anymal.cluster import cluster_of
from anymal.config import read_document
from anymal.errors import ConfigError, report
from pipelines import ablation, alignment, benchmarks, evaluation, instruction, safety, training
from pipelines.ablations import FILE, read_ablations
from pipelines.tasks import Plan, build

ROOT = Path(__file__).parent.parent
PROFILE = ROOT / "params.yaml"


def plans() -> dict[str, Plan]:
    """Name -> pipeline before it is built: the six of the graph, and one for each entry of `ablations.yaml`."""
    known = [module.PLAN for module in (training, alignment, instruction, evaluation, benchmarks, safety)]
    known += [ablation.plan(name, entry) for name, entry in read_ablations(ROOT / FILE).items()]
    return {plan.name: plan for plan in known}


def plan_of(name: str) -> Plan:
    """One of them.

    Raises:
        ConfigError: if there is no such pipeline.
    """
    known = plans()
    if name not in known:
        raise ConfigError(f"{name}: no such pipeline; there are {', '.join(known)}")
    return known[name]


def pipelines(document: Mapping[str, Any], source: str, *, outcome: bool = True) -> dict[str, Any]:
    """Name -> pipeline, with the resources and settings of a profile's section `kubeflow`.

    Args:
        document: the profile.
        source: what it is called.
        outcome: whether they end with the task `outcome`, which kfp's local runners cannot run.

    Raises:
        ConfigError: if the section is wrong.
    """
    cluster = cluster_of(document, source)
    return {name: build(plan, cluster, outcome=outcome) for name, plan in plans().items()}


def compile_one(name: str, document: Mapping[str, Any], source: str, file: Path, *, outcome: bool = True) -> None:
    """Write one pipeline to a file ending in .yaml; the same sources and profile give the same bytes.

    Raises:
        ConfigError: if there is no such pipeline, or the profile's section `kubeflow` is wrong.
    """
    _write(build(plan_of(name), cluster_of(document, source), outcome=outcome), file)


def compile_all(folder: Path, profile: Path = PROFILE) -> list[Path]:
    """Write `folder/NAME.yaml` for each pipeline.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, pipeline in pipelines(read_document(profile), str(profile)).items():
        _write(pipeline, folder / f"{name}.yaml")
        written.append(folder / f"{name}.yaml")
    return written


def _write(pipeline: Any, file: Path) -> None:
    temporary = file.with_name(f".{file.stem}.partial.yaml")
    compiler.Compiler().compile(pipeline, str(temporary))
    temporary.replace(file)


def main() -> None:
    """The command; errors the user can mend are printed as sentences."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.compile", description="Compile every pipeline.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("dist"))
    parser.add_argument("--profile", type=Path, default=PROFILE, help="whose section `kubeflow` says what tasks ask for  [default: params.yaml]")
    given = parser.parse_args()

    def compiled() -> None:
        for path in compile_all(given.folder, given.profile):
            print(path)

    report("compile", compiled)


if __name__ == "__main__":
    main()
