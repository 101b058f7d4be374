"""`python -m pipelines.ablate` in a small DVC repository of its own, with real experiments; its stages are scripts that draw numbers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.graph import ROOT

pytestmark = pytest.mark.slow

SCRIPT = """
import json, pathlib, sys, time
from ruamel.yaml import YAML

knobs = YAML(typ="safe", pure=True).load(pathlib.Path("params.yaml"))["align"]["image"]
assert pathlib.Path("data/assets/words.txt").read_text() == "hello"
with pathlib.Path(sys.argv[1]).open("a") as stream:
    stream.write(f"{knobs['layers']} {knobs['quantization']}\\n")
if knobs["quantization"] == "int8":
    sys.exit("no int8 here")
if knobs["quantization"] == "nf4":
    time.sleep(120)
for folder in ("reports/align/image", "results/align"):
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
with open("reports/align/image/history.jsonl", "w") as stream:
    for step in range(1, 4):
        loss = 6.0 / step / knobs["layers"]
        stream.write(json.dumps({"step": step, "loss": loss, "validation": {"right": loss, "shuffled": loss + 1}}) + "\\n")
pathlib.Path("results/align/image.json").write_text(json.dumps({"train_loss": loss, "validation": {"right": loss}}))
"""


def words(repository: Path, *arguments: str) -> tuple[list[str], dict]:
    settings = {"PYTHONPATH": str(ROOT), "ANYMAL_TRACKING": "off", "GIT_CONFIG_GLOBAL": os.devnull}
    settings |= {f"GIT_{role}_{part}": "test@example" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
    return [sys.executable, *arguments], {"cwd": repository, "env": os.environ | settings, "text": True}


def call(repository: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command, settings = words(repository, *arguments)
    done = subprocess.run(command, capture_output=True, check=False, **settings)
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    return done


def git(repository: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, stdout=subprocess.PIPE, **words(repository)[1]).stdout


def snapshot(repository: Path) -> dict[str, bytes]:
    """All files that are not git's, DVC's or the comparison's own, and what git thinks of them."""
    outside = {".git", ".dvc"}
    files = {path.relative_to(repository).as_posix(): path.read_bytes() for path in sorted(repository.rglob("*"))
             if path.is_file() and not outside & set(path.relative_to(repository).parts) and "ablations" not in path.parts}
    return files | {"git status": git(repository, "status", "--porcelain").encode(), "stash": git(repository, "stash", "list").encode()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A repository whose one run is done, with a change that is not committed and a file that git does not know."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("params.yaml", "ablations.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "train.py").write_text(SCRIPT)
    (folder / "data" / "assets").mkdir(parents=True)
    stages = {
        "ingest": {"cmd": "echo fetched again && exit 1", "outs": [{"data/assets": {"cache": False}}]},
        "align": {"matrix": {"modality": ["image"]}, "cmd": f"python train.py {folder.parent / 'ran'}",
                  "params": ["align.${item.modality}"], "deps": ["train.py", "data/assets"], "outs": ["reports/align/${item.modality}"],
                  "metrics": [{"results/align/${item.modality}.json": {"cache": False}}]},
    }
    YAML().dump({"stages": stages}, folder / "dvc.yaml")
    git(folder, "init", "--quiet")
    call(folder, "-m", "dvc", "init", "--quiet")
    call(folder, "-m", "dvc", "config", "core.analytics", "false")
    (folder / "data" / "assets" / "words.txt").write_text("hello")
    call(folder, "-m", "dvc", "commit", "--force", "ingest")
    call(folder, "-m", "dvc", "repro", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "done")
    with (folder / ".gitignore").open("a") as stream:
        stream.write("/note.txt.backup\n")
    (folder / "note.txt").write_text("not known to git")
    return folder


@pytest.fixture
def repository(finished: Path) -> Path:
    (finished.parent / "ran").write_text("")
    return finished


def ran(repository: Path) -> list[str]:
    return (repository.parent / "ran").read_text().splitlines()


def test_variants_run_once_and_come_out_as_one_table(repository):
    before = snapshot(repository)
    shown = call(repository, "-m", "pipelines.ablate", "layers").stdout
    folder = repository / "reports" / "ablations" / "layers"
    table = (folder / "table.md").read_text()
    assert table in shown
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")]
    assert [line[:3] for line in (lines[0], *lines[2:])] == [["", "training loss", "held-out loss"], ["2 layers", "1.000", "1.000"],
                                                          ["6 layers", "0.333", "0.333"]]
    assert set(json.loads((folder / "table.json").read_text())["variants"]) == {"2 layers", "6 layers"}
    assert ran(repository) == ["6 none"], "what the profile has already comes from the cache"
    assert snapshot(repository) == before
    experiments = call(repository, "-m", "dvc", "exp", "list", "--name-only").stdout
    assert "layers-2-layers-" in experiments
    assert "layers-6-layers-" in experiments
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = call(repository, "-m", "pipelines.ablate", "layers").stdout
    assert again.count("is there already") == 2
    assert ran(repository) == ["6 none"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == written


def test_a_variant_that_fails_is_named_and_nothing_is_left_behind(repository):
    before = snapshot(repository)
    done = call(repository, "-m", "pipelines.ablate", "quantization", code=2)
    assert "no int8 here" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("ablate: error: variant 'int8' failed (exit status 255, messages above); correct its cause")
    assert snapshot(repository) == before
    assert not (repository / "reports" / "ablations" / "quantization").exists()


def test_interrupted_while_a_variant_runs_the_working_tree_is_as_it_was(repository):
    text = (repository / "ablations.yaml").read_text()
    try:
        (repository / "ablations.yaml").write_text(text.replace("quantization: int8", "quantization: nf4, align.image.seed: 1"))
        before = snapshot(repository)
        command, settings = words(repository, "-m", "pipelines.ablate", "quantization")
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **settings) as process:
            deadline = time.monotonic() + 60
            while "2 nf4" not in ran(repository):
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=60)
        assert process.returncode == 75, errors
        assert errors.splitlines()[-1].startswith("ablate: stopped during variant 'int8'; finished variants are kept")
        assert snapshot(repository) == before
        assert not list((repository / ".dvc" / "tmp" / "exps" / "standalone").glob("tmp*"))
    finally:
        (repository / "ablations.yaml").write_text(text)


def test_without_results_to_start_from_it_says_so(repository, tmp_path):
    copy = shutil.copytree(repository, tmp_path / "copy", symlinks=True)
    shutil.rmtree(copy / "data")
    assert call(copy, "-m", "pipelines.ablate", "layers", code=2).stderr == (
        "ablate: error: data/assets: not found; run `dvc repro` first, an ablation starts from its results\n")
    (copy / "dvc.lock").unlink()
    assert call(copy, "-m", "pipelines.ablate", "layers", code=2).stderr.startswith("ablate: error: dvc.lock: no such file; run `dvc repro`")
    shutil.rmtree(copy / ".git")
    assert "run this in the root of a repository" in call(copy, "-m", "pipelines.ablate", "layers", code=2).stderr
