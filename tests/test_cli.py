"""The command line: what it lists, what it refuses, and what it must not import to do so."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from anymal.config import read_document
from anymal.stage import load_stage, stage_names
from pipelines.ablations import CONFIGURED_HERE, compare_section, read_ablation

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "transformers", "mlflow", "spacy", "cv2", "onnxruntime", "pandas", "scipy", "matplotlib", "av", "soundfile")


def anymal(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "anymal", *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def test_help_lists_every_stage_with_its_summary():
    done = anymal("--help")
    assert done.returncode == 0
    for name in stage_names():
        assert re.search(rf"^  {name.replace('_', '-')}  +\S", done.stdout, re.MULTILINE), name


@pytest.mark.parametrize("arguments", [["--help"], *([name.replace("_", "-"), "--help"] for name in stage_names())], ids=" ".join)
def test_help_imports_nothing_heavy(arguments):
    code = f"import sys; from anymal.__main__ import cli; cli({arguments!r}, standalone_mode=False); print('LOADED', *sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rpartition("LOADED")[2].split())
    assert "click" in loaded
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("name", stage_names())
def test_stage_help_names_every_port(name):
    done = anymal(name.replace("_", "-"), "--help")
    stage = load_stage(name)
    for port in [*stage.inputs, *stage.outputs, "config", "executor-input"]:
        assert f"--{port.replace('_', '-')} " in done.stdout
    assert ("--modality " in done.stdout) == stage.per_modality
    assert done.stdout.count("repeat it for several") == sum(stage.inputs.values())


def stage_arguments(name: str, folder: Path, config: str, modality: str | None = None) -> list[str]:
    """A command line with every port below `folder`; a port that takes several paths is given two."""
    stage = load_stage(name)
    places = [(port, [port, f"{port}-two"] if stage.inputs.get(port) else [port]) for port in (*stage.inputs, *stage.outputs)]
    ports = [part for port, files in places for file in files for part in (f"--{port.replace('_', '-')}", str(folder / file))]
    return [name.replace("_", "-"), "--config", config, *(["--modality", modality] if modality else []), *ports]


def a_modality(name: str) -> str | None:
    """One that the stage has a section for, if it runs once per modality."""
    return next(iter(read_document(ROOT / "params.yaml")[name])) if load_stage(name).per_modality else None


def test_unknown_knob_is_one_sentence_without_traceback(tmp_path):
    done = anymal(*stage_arguments("align", tmp_path, '{"learnin_rate": 1}'))
    assert done.returncode == 2
    assert "anymal: error: " in done.stderr
    assert "align.learnin_rate: unknown knob; did you mean 'learning_rate'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_negative_learning_rate_names_knob_and_value(tmp_path):
    section = read_document(ROOT / "params.yaml")["align"]["audio"] | {"learning_rate": -1e-3}
    done = anymal(*stage_arguments("align", tmp_path, json.dumps(section)))
    assert (done.returncode, done.stderr) == (2, "anymal: error: align.learning_rate = -0.001: Input should be greater than 0\n")


@pytest.mark.parametrize(("modality", "said"), [
    (None, "align: runs once per modality; add --modality with one of image, audio, video, imu"),
    ("smell", f"--modality smell: {ROOT / 'params.yaml'} has no section 'align.smell'; 'align' has image, audio, video, imu"),
])
def test_a_modality_that_is_missing_or_unknown_is_named(tmp_path, modality, said):
    done = anymal(*stage_arguments("align", tmp_path, str(ROOT / "params.yaml"), modality))
    assert (done.returncode, done.stderr) == (2, f"anymal: error: {said}\n")


def test_a_stage_that_runs_once_knows_no_modality(tmp_path):
    done = anymal(*stage_arguments("score", tmp_path, str(ROOT / "params.yaml"), "audio"))
    assert done.returncode == 2
    assert "No such option" in done.stderr


@pytest.mark.parametrize("name", stage_names())
def test_missing_input_names_the_port_and_leaves_nothing(name, tmp_path):
    inline = json.dumps(compare_section(read_ablation("layers", ROOT / "ablations.yaml"), "demo"))
    done = anymal(*stage_arguments(name, tmp_path, inline if name in CONFIGURED_HERE else str(ROOT / "params.yaml"), a_modality(name)))
    assert done.returncode == 2
    for port, several in load_stage(name).inputs.items():
        for file in [port, f"{port}-two"] if several else [port]:
            assert f"--{port.replace('_', '-')} {tmp_path / file}" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_missing_option_and_unknown_command_say_what_is_known(tmp_path):
    done = anymal("align", "--config", "params.yaml")
    assert done.returncode == 2
    assert "Missing option '--features'" in done.stderr
    done = anymal("alin")
    assert done.returncode == 2
    assert "No such command 'alin'" in done.stderr
