"""What `dvc repro` makes on real packages and real weights at a small size: what `make demo` does, with fewer steps."""

import json

import pytest
from ruamel.yaml import YAML

from tests.graph import runs
from tests.road import run
from tests.tiny import MEDIA

MODALITIES = ("image", "audio", "video", "imu")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(4500)]  # a first run fetches all packages and goes through 27 runs of stages


def test_the_road_ends_at_a_registered_model_that_answers(road):
    results = json.loads((road / "results" / "evaluate.json").read_text())
    assert set(results) >= {*MODALITIES, "mixed"}
    for task, figure in (("caption", "nll"), ("caption", "cider_d"), ("vqa", "accuracy")):
        block = results["image"][task]
        assert block[figure]["low"] <= block[figure]["value"] <= block[figure]["high"]
        assert {"shuffled", "blank"} <= block["controls"].keys()
    for modality in MODALITIES:
        counts = json.loads((road / "results" / "curate" / f"{modality}.json").read_text())
        assert counts["seen"] == counts["kept"] + sum(counts["dropped"].values()), modality
        assert counts["kept"] > 0, modality
    assert {"baseline", "shuffled", "blank"} <= results["image"]["vqa"]["controls"].keys()
    written = json.loads((road / "data" / "instructions" / "synthetic" / "image" / "train.json").read_text())
    figures = json.loads((road / "results" / "instructions" / "synthetic-image.json").read_text())
    assert len(written) == figures["splits"]["train"]["conversations"] > 0
    assert {record["origin"] for record in written} == {"synthetic"}
    assert (road / "models" / "bundle" / "adapter" / "adapter_model.safetensors").is_file()
    for modality in ("audio", "imu"):
        assert json.loads((road / "results" / "pretrain_encoder" / f"{modality}.json").read_text())["steps"] == 20
    files = {}
    for modality, (name, content) in MEDIA.items():
        files[modality] = road / name
        files[modality].write_bytes(content())
    uri = {"MLFLOW_TRACKING_URI": f"sqlite:///{road / 'mlflow.db'}"}
    options = [word for modality in ("image", "imu", "audio") for word in (f"--{modality}", str(files[modality]))]
    from_folder = run(road, "anymal", "ask", "models/bundle", *options, "What is this?")
    assert from_folder.strip() and from_folder == run(road, "anymal", "ask", "models:/anymal@candidate", *options, "What is this?", **uri)


def test_a_second_repro_runs_nothing_and_a_knob_reruns_what_follows_only(road):
    assert "Running stage" not in run(road, "dvc", "repro")
    yaml = YAML()
    before = (road / "params.yaml").read_bytes()
    params = yaml.load(road / "params.yaml")
    params["score"]["bootstrap_resamples"] = 120
    yaml.dump(params, road / "params.yaml")
    said = run(road, "dvc", "repro", ANYMAL_TRACKING="off")
    assert [line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")] == ["score", "register"]
    (road / "params.yaml").write_bytes(before)
    assert "Running stage" not in run(road, "dvc", "repro")  # the first results come back from DVC's run cache


def test_one_parent_run_holds_a_run_per_stage_run(road):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{road / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("anymal").experiment_id])
    parents = {run.data.tags.get("mlflow.parentRunId") for run in found} - {None}
    assert len(parents) == 1
    named = sorted(run.info.run_name for run in found if run.data.tags.get("mlflow.parentRunId"))
    assert named == sorted(run.section for run in runs().values())  # "align.audio", …, each once
    align = next(run for run in found if run.info.run_name == "align.audio")
    assert align.data.params["align.audio.steps"] == "8"
    assert sorted(metric.step for metric in client.get_metric_history(align.info.run_id, "loss")) == list(range(1, 9))
