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

from tests.graph import runs
from tests.tiny import MEDIA

ROOT = Path(__file__).parent.parent
SMALL = {
    "curate_image": {"samples_per_shard": 64, "val_fraction": 0.1},
    "pretrain_encoder": {"steps": 20, "warmup_steps": 2, "validate_every": 10, "checkpoint_every": 10},
    "align": {"warm_start_steps": 40, "steps": 12, "warmup_steps": 2, "batch_size": 8, "micro_batch_size": 8, "validation_samples": 12,
              "validate_every": 6, "checkpoint_every": 3, "grounding_floor": -10.0},
    "compose_instructions": {"val_share": 0.3},
    "finetune": {"steps": 8, "warmup_steps": 2, "batch_size": 8, "micro_batch_size": 8, "validation_samples": 12, "validate_every": 4,
                 "checkpoint_every": 2, "grounding_floor": -10.0},
    "score": {"bootstrap_resamples": 100},
}
"""Stage -> knobs, for each of its modalities."""
LIMITS = {"caption_samples": 16, "caption_max_new_tokens": 8, "questions": 16, "answer_max_new_tokens": 4, "previews": 4}
"""Of evaluate, where a task has them."""
MODALITIES = ("image", "audio", "video", "imu")
pytestmark = pytest.mark.timeout(2700)  # a first run fetches all packages and goes through 26 runs of stages


def shrink(params):
    """The demo's profile at a small size: fewer samples, steps and answers; the same stages, sources of each modality, LLM and encoders."""
    for name, knobs in SMALL.items():
        for section in params[name].values() if name in ("pretrain_encoder", "align") else [params[name]]:
            section.update(knobs)
    del params["curate_image"]["sources"]["openclipart"]
    params["ingest"]["assets"].remove("openclipart")
    params["curate_image"]["scenes"]["count"] = {"train": 60, "val": 12, "test": 20}
    params["curate_video"]["clips"]["count"] = {"train": 24, "val": 12, "test": 8}
    compose = params["compose_instructions"]
    compose["questions"] = {"image": {"color": 20, "count": 10}, "video": {"direction": 10}}
    for entry in (*compose["captions"].values(), *compose["pairs"]):
        entry["count"] = 10
    for name, count in {"conversation": 40, "detail": 2, "reasoning": 2}.items():
        params["synthesize"]["image"]["kinds"][name].update(train=count, val=2)
    for modality, section in params["evaluate"].items():
        for task in section["tasks"]:
            wanted = ("caption_samples", "caption_max_new_tokens") if task == "caption" else ("questions", "answer_max_new_tokens")
            section.update({name: LIMITS[name] for name in (*wanted, "previews")})
        if modality == "mixed":
            section.update(questions=None)
            section["mixed"]["samples"] = 4


def run(clone, *command, **environment):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, cwd=clone, env={**os.environ, "PATH": path, **environment}, capture_output=True, text=True,
                          timeout=2400, check=False)
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
    shrink(params)
    yaml.dump(params, folder / "params.yaml")
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "small"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    run(folder, "dvc", "repro", ANYMAL_TRACKING="on", MLFLOW_TRACKING_URI=f"sqlite:///{folder / 'mlflow.db'}", ANYMAL_GRAPH_RUN="end-to-end")
    return folder


@pytest.mark.slow
def test_the_road_ends_at_a_registered_model_that_answers(clone):
    results = json.loads((clone / "results" / "evaluate.json").read_text())
    assert set(results) >= {*MODALITIES, "mixed"}
    for task, figure in (("caption", "nll"), ("caption", "cider_d"), ("vqa", "accuracy")):
        block = results["image"][task]
        assert block[figure]["low"] <= block[figure]["value"] <= block[figure]["high"]
        assert {"shuffled", "blank"} <= block["controls"].keys()
    for modality in MODALITIES:
        counts = json.loads((clone / "results" / "curate" / f"{modality}.json").read_text())
        assert counts["seen"] == counts["kept"] + sum(counts["dropped"].values()), modality
        assert counts["kept"] > 0, modality
    assert {"baseline", "shuffled", "blank"} <= results["image"]["vqa"]["controls"].keys()
    written = json.loads((clone / "data" / "instructions" / "synthetic" / "image" / "train.json").read_text())
    figures = json.loads((clone / "results" / "instructions" / "synthetic-image.json").read_text())
    assert len(written) == figures["splits"]["train"]["conversations"] > 0
    assert {record["origin"] for record in written} == {"synthetic"}
    assert (clone / "models" / "bundle" / "adapter" / "adapter_model.safetensors").is_file()
    for modality in ("audio", "imu"):
        assert json.loads((clone / "results" / "pretrain_encoder" / f"{modality}.json").read_text())["steps"] == 20
    files = {}
    for modality, (name, content) in MEDIA.items():
        files[modality] = clone / name
        files[modality].write_bytes(content())
    uri = {"MLFLOW_TRACKING_URI": f"sqlite:///{clone / 'mlflow.db'}"}
    for given in (("image", "imu"), ("audio",)):
        options = [word for modality in given for word in (f"--{modality}", str(files[modality]))]
        from_folder = run(clone, "anymal", "ask", "models/bundle", *options, "What is this?")
        from_registry = run(clone, "anymal", "ask", "models:/anymal@candidate", *options, "What is this?", **uri)
        assert from_folder.strip() and from_folder == from_registry, given


@pytest.mark.slow
def test_a_second_repro_runs_nothing_and_a_knob_reruns_what_follows_only(clone):
    assert "Running stage" not in run(clone, "dvc", "repro")
    yaml = YAML()
    before = (clone / "params.yaml").read_bytes()
    params = yaml.load(clone / "params.yaml")
    params["align"]["audio"]["learning_rate"] = 5.0e-4
    yaml.dump(params, clone / "params.yaml")
    said = run(clone, "dvc", "repro", ANYMAL_TRACKING="off")
    ran = [line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")]
    assert ran[:2] == ["align@audio", "finetune"]
    assert sorted(ran[2:-2]) == ["evaluate@audio", "evaluate@image", "evaluate@imu", "evaluate@video", "evaluate_mixed"]
    assert ran[-2:] == ["score", "register"]
    (clone / "params.yaml").write_bytes(before)
    assert "Running stage" not in run(clone, "dvc", "repro")  # the first results come back from DVC's run cache


@pytest.mark.slow
def test_align_killed_on_the_real_llm_ends_with_the_same_bits(clone, tmp_path):
    command = [sys.executable, "-m", "anymal", "align", "--config", "params.yaml", "--modality", "image", "--features", "data/features/image",
               "--assets", "data/assets", "--checkpoint", str(tmp_path / "image"), "--plots", str(tmp_path / "plots"),
               "--metrics", str(tmp_path / "align.json")]
    state = tmp_path / ".image.partial" / "state" / "latest" / "state.json"
    moment = random.Random(time.time_ns()).choice([3, 6, 9])
    process = subprocess.Popen(command, cwd=clone, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (state.is_file() and f'"step": {moment}' in state.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    run(clone, *command)
    for name in ("projector.safetensors", "manifest.json"):
        finished = clone / "models" / "checkpoints" / "image" / name
        assert (tmp_path / "image" / name).read_bytes() == finished.read_bytes(), f"{name}, killed after step {moment}"


@pytest.mark.slow
def test_one_parent_run_holds_a_run_per_stage_run(clone):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{clone / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("anymal").experiment_id])
    parents = {run.data.tags.get("mlflow.parentRunId") for run in found} - {None}
    assert len(parents) == 1
    named = sorted(run.info.run_name for run in found if run.data.tags.get("mlflow.parentRunId"))
    assert named == sorted(run.section for run in runs().values())  # "align.audio", …, each once
    align = next(run for run in found if run.info.run_name == "align.audio")
    assert align.data.params["align.audio.steps"] == "12"
    assert sorted(metric.step for metric in client.get_metric_history(align.info.run_id, "loss")) == list(range(1, 13))
