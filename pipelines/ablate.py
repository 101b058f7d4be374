"""Run an ablation on this machine: `python -m pipelines.ablate NAME`.

Each variant is a DVC experiment that runs in a folder of its own (`dvc exp run --temp`): the working tree is left as it was, what the
variant does not change comes from DVC's cache, and variants that are there already are not run again. The stage `compare` then
writes one table and one picture to `reports/ablations/NAME/`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from anymal.config import read_document, validate
from anymal.errors import AnymalError, ConfigError, DataError, Interrupted, report
from anymal.stage import load_stage, run_stage
from pipelines.ablations import FILE, Ablation, Profile, compare_section, read_ablation, read_ablations, variant_sections
from pipelines.signals import stoppable

REPORTS = Path("reports/ablations")
DECIDING = ("params.yaml", "dvc.yaml", "dvc.lock", "assets.lock.yaml", "anymal")
"""Tracked files that decide about a result; an experiment carries their changes since the last commit with it."""
PROFILE: Profile = "demo"
"""dvc.yaml runs params.yaml; the production profile is for Kubeflow (`pipelines.ablations.ablation_arguments`)."""
HISTORY = "history.jsonl"


def run_ablation(name: str) -> Path:
    """Run what is missing of an ablation's variants, compare them, and print the table.

    To be called in the root of the repository.

    Returns:
        The folder with `table.md`, `table.json` and `losses.png`.

    Raises:
        AnymalError: if the ablation is wrong, the graph was never run here, or a variant fails.
        Interrupted: if it is stopped; variants that ended are kept.
    """
    ablation = read_ablation(name)
    variant_sections(ablation, PROFILE)
    head = _git("rev-parse", "HEAD")
    uncached = _uncached()
    experiments = {}
    for variant, overrides in ablation.variants[PROFILE].items():
        settings = [f"{knob}={json.dumps(value)}" for knob, value in overrides.items()]
        experiment = _experiment(name, variant, settings)
        reference = f"refs/exps/{head[:2]}/{head[2:]}/{experiment}"
        if _exists(reference):
            print(f"{variant}: is there already, as experiment {experiment}", flush=True)
        else:
            print(f"{variant}: runs as experiment {experiment}", flush=True)
            _run_experiment(ablation, variant, experiment, settings, uncached)
            if not _exists(reference):
                raise AnymalError(f"{name}: variant '{variant}' ended, but DVC kept no experiment {experiment}; see its messages above")
        experiments[variant] = _git("rev-parse", reference)
    return _compare(name, ablation, experiments)


def _experiment(name: str, variant: str, settings: list[str]) -> str:
    """A name that changes with the overrides and with what is not committed yet; DVC keeps experiments by commit."""
    digest = hashlib.sha256(json.dumps([settings, _git("diff", "HEAD", "--", *DECIDING)]).encode()).hexdigest()
    return f"{name}-{re.sub('[^a-z0-9]+', '-', variant.lower())}-{digest[:8]}"


def _uncached() -> list[str]:
    """Outputs that DVC does not keep and that an experiment's folder therefore needs a copy of."""
    if not Path("dvc.lock").is_file():
        raise DataError("dvc.lock: no such file; run `dvc repro` in the root of the repository first, an ablation starts from its results")
    entries = [entry.get("do", entry) for entry in read_document(Path("dvc.yaml"))["stages"].values()]
    outputs = [item for entry in entries for out in entry.get("outs", []) if isinstance(out, dict) for item in out.items()]
    found = [path for path, settings in outputs if settings.get("cache") is False]
    if missing := [path for path in found if not Path(path).exists()]:
        raise DataError(f"{missing[0]}: not found; run `dvc repro` first, an ablation starts from its results")
    return found


def _run_experiment(ablation: Ablation, variant: str, experiment: str, settings: list[str], uncached: list[str]) -> None:
    """Run one variant in a folder of its own.

    Raises:
        AnymalError: if it fails.
        Interrupted: on SIGINT or SIGTERM; DVC removes the folder.
    """
    words = [sys.executable, "-m", "dvc", "exp", "run", "--temp", "--name", experiment]
    words += [word for setting in settings for word in ("--set-param", setting)]
    words += [word for path in uncached for word in ("--copy-paths", path)]
    defaults = {"MLFLOW_TRACKING_URI": f"sqlite:///{Path('mlflow.db').absolute()}", "ANYMAL_GRAPH_RUN": experiment}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    target = "score" if ablation.modality is None else f"align@{ablation.modality}"
    with stoppable():
        # A session of its own, so that the terminal's ctrl-C comes to it once, from here.
        child = subprocess.Popen([*words, target], env=defaults | os.environ | {"PATH": path}, start_new_session=True)
        try:
            code = child.wait()
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # DVC is cleaning up: a second ctrl-C would leave its folder behind
            os.killpg(child.pid, signal.SIGINT)
            child.wait()
            raise Interrupted(f"stopped during variant '{variant}'; finished variants are kept, run the same command to go on") from None
    if code:
        raise AnymalError(f"variant '{variant}' failed (exit status {code}, messages above); correct its cause or its overrides in {FILE} "
                          "and run the same command: finished variants are kept")


def _compare(name: str, ablation: Ablation, experiments: dict[str, str]) -> Path:
    """Take each experiment's results and loss history, and run the stage `compare` on them."""
    import dvc.api
    from dvc.exceptions import DvcException

    place = "finetune" if ablation.modality is None else f"align/{ablation.modality}"
    sources = {"results": "results/evaluate.json" if ablation.modality is None else f"results/{place}.json", "plots": f"reports/{place}/{HISTORY}"}
    target = REPORTS / name
    with tempfile.TemporaryDirectory() as scratch:
        ports: dict[str, Any] = {port: () for port in sources}
        for number, (variant, revision) in enumerate(experiments.items()):
            for port, source in sources.items():
                copy = Path(scratch) / str(number) / port / Path(source).name
                copy.parent.mkdir(parents=True)
                try:
                    copy.write_text(dvc.api.read(source, repo=".", rev=revision, encoding="utf-8"), encoding="utf-8")
                except (DvcException, OSError) as error:
                    raise DataError(f"{name}: variant '{variant}': {source} of experiment {revision[:7]} cannot be read ({error}); remove it with "
                                    "`dvc exp remove` and run the same command") from error
                ports[port] += (copy if port == "results" else copy.parent,)
        ports |= {"table": target / "table.md", "metrics": target / "table.json", "figure": target / "losses.png"}
        stage = load_stage("compare")
        run_stage(stage, validate(stage.config, compare_section(ablation, PROFILE), "compare"), ports)
    print(f"\n{(target / 'table.md').read_text(encoding='utf-8')}\nLoss curves: {target / 'losses.png'}")
    return target


def _exists(reference: str) -> bool:
    return subprocess.run(["git", "rev-parse", "--verify", "--quiet", reference], capture_output=True, check=False).returncode == 0


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise ConfigError(f"git {words[0]}: {' '.join(done.stderr.split())}; run this in the root of a repository that has a commit")
    return done.stdout.strip()


def main() -> None:
    """The command; errors the user can mend are printed as sentences."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.ablate", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("name", metavar="NAME", nargs="?", help=f"an entry of {FILE}; without it, they are listed")
    name = parser.parse_args().name
    report("ablate", list_ablations if name is None else lambda: run_ablation(name))


def list_ablations() -> None:
    """Print what can be run."""
    for name, entry in read_ablations().items():
        print(f"{name:<14}{entry.title}: {', '.join(entry.variants[PROFILE])}")


if __name__ == "__main__":
    main()
