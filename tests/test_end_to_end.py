"""The whole road on real packages and real weights at a small size: what `make demo` does, with fewer steps."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
SMALL = {
    "ingest": {"assets": ["smollm2-135m-instruct", "efficientnet-lite0", "tuxpaint-stamps"]},
    "curate": {"samples_per_shard": 64, "val_fraction": 0.1},
    "align": {"warm_start_steps": 40, "steps": 12, "warmup_steps": 2, "batch_size": 8, "micro_batch_size": 8, "validation_samples": 12,
              "validate_every": 6, "checkpoint_every": 3, "grounding_floor": -10.0},
    "evaluate": {"caption_samples": 16, "vqa_questions": 16, "caption_max_new_tokens": 8, "vqa_max_new_tokens": 4, "bootstrap_resamples": 100},
}


def run(clone, *command, **environment):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, cwd=clone, env={**os.environ, "PATH": path, **environment}, capture_output=True, text=True,
                          timeout=1500, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the tracked files with a small profile, after one `dvc repro`; assets come through the user's cache, if there is one."""
    folder = tmp_path_factory.mktemp("clone")
    files = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, files.decode().split("\0")):
        if (ROOT / name).is_file() and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    yaml = YAML()
    params = yaml.load(folder / "params.yaml")
    for section, knobs in SMALL.items():
        params[section].update(knobs)
    del params["curate"]["sources"]["openclipart"]
    params["curate"]["scenes"]["count"] = {"train": 60, "val": 12, "test": 20}
    yaml.dump(params, folder / "params.yaml")
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "small"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    run(folder, "dvc", "repro", ANYMAL_TRACKING="on", MLFLOW_TRACKING_URI=f"sqlite:///{folder / 'mlflow.db'}", ANYMAL_GRAPH_RUN="end-to-end")
    return folder


@pytest.mark.slow
def test_the_road_ends_at_a_registered_model_that_answers(clone):
    figures = json.loads((clone / "results" / "evaluate.json").read_text())["image"]
    for task, figure in (("caption", "nll"), ("caption", "cider_d"), ("vqa", "accuracy")):
        block = figures[task]
        assert block[figure]["low"] <= block[figure]["value"] <= block[figure]["high"]
        assert {"shuffled", "blank"} <= block["controls"].keys()
    counts = json.loads((clone / "results" / "curate.json").read_text())
    assert counts["seen"] == counts["kept"] + sum(counts["dropped"].values())
    picture = clone / "red.png"
    from tests.tiny import picture as plain

    picture.write_bytes(plain("red"))
    uri = {"MLFLOW_TRACKING_URI": f"sqlite:///{clone / 'mlflow.db'}"}
    from_folder = run(clone, "anymal", "ask", "models/bundle", "--image", str(picture), "What is this?")
    from_registry = run(clone, "anymal", "ask", "models:/anymal@candidate", "--image", str(picture), "What is this?", **uri)
    assert from_folder.strip() and from_folder == from_registry


@pytest.mark.slow
def test_a_second_repro_runs_nothing_and_a_knob_reruns_what_follows_only(clone):
    assert "Running stage" not in run(clone, "dvc", "repro")
    yaml = YAML()
    before = (clone / "params.yaml").read_bytes()
    params = yaml.load(clone / "params.yaml")
    params["align"]["learning_rate"] = 5.0e-4
    yaml.dump(params, clone / "params.yaml")
    said = run(clone, "dvc", "repro", ANYMAL_TRACKING="off")
    ran = [line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")]
    assert ran == ["align", "evaluate", "register"]
    (clone / "params.yaml").write_bytes(before)
    assert "Running stage" not in run(clone, "dvc", "repro")  # the first results come back from DVC's run cache


@pytest.mark.slow
def test_align_killed_on_the_real_llm_ends_with_the_same_bits(clone, tmp_path):
    command = [sys.executable, "-m", "anymal", "align", "--config", "params.yaml", "--features", "data/features", "--assets", "data/assets",
               "--checkpoint", str(tmp_path / "image"), "--plots", str(tmp_path / "plots"), "--metrics", str(tmp_path / "align.json")]
    state = tmp_path / ".image.partial" / "state" / "latest" / "state.json"
    moment = random.Random(time.time_ns()).choice([3, 6, 9])
    process = subprocess.Popen(command, cwd=clone, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (state.is_file() and f'"step": {moment}' in state.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    run(clone, *command)
    for name in ("projector.safetensors", "manifest.json"):
        assert (tmp_path / "image" / name).read_bytes() == (clone / "models" / "image" / name).read_bytes(), f"{name}, killed after step {moment}"


@pytest.mark.slow
def test_one_parent_run_holds_a_run_per_stage(clone):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{clone / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("anymal").experiment_id])
    parents = {run.data.tags.get("mlflow.parentRunId") for run in runs} - {None}
    assert len(parents) == 1
    names = {run.info.run_name for run in runs if run.data.tags.get("mlflow.parentRunId")}
    assert names == {"ingest", "curate", "encode", "align", "evaluate", "register"}
    align = next(run for run in runs if run.info.run_name == "align")
    assert align.data.params["align.steps"] == "12"
    assert sorted(metric.step for metric in client.get_metric_history(align.info.run_id, "loss")) == list(range(1, 13))
