"""The stage on a tiny random model of four modalities, with every benchmark in its official layout."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from anymal.config import validate, without_nulls
from anymal.data.manifest import verify_manifest
from anymal.errors import ConfigError, DataError
from anymal.evaluation import captions
from anymal.evaluation.benchmarks import running
from anymal.evaluation.benchmarks.declaration import declarations
from anymal.evaluation.benchmarks.folder import read_media, read_runs
from anymal.evaluation.benchmarks.scoring import score_benchmarks
from anymal.evaluation.captions import open_meteor
from anymal.evaluation.formats import coco, llava, vqa
from anymal.profile import read_config
from anymal.stage import load_stage
from anymal.stages.benchmark import BenchmarkConfig
from tests.evaluation.benchmarks.small import ask, knobs, make_ports, make_sample_layouts

ROOT = Path(__file__).parents[2]
CONDITIONS = ["right", "shuffled", "blank", "similar"]
QUICK = ("vqav2", "scienceqa", "pope", "clotho")
SCORING = {"resamples": 100, "seed": 0}

pytestmark = pytest.mark.slow


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    return make_sample_layouts(tmp_path_factory.mktemp("layouts"))


@pytest.fixture(scope="module")
def tiny(layouts, tmp_path_factory):
    return make_ports(tmp_path_factory.mktemp("tiny"), layouts)


@pytest.fixture(scope="module")
def asked(tiny, tmp_path_factory):
    """What the tiny model said to all benchmarks."""
    return ask(tiny, tmp_path_factory.mktemp("asked") / "predictions", knobs())


@pytest.fixture(scope="module")
def scored(asked):
    with open_meteor() as meteor:
        return score_benchmarks([asked], meteor=meteor, **SCORING)


def test_every_benchmark_is_asked_under_every_condition(asked):
    runs = read_runs([asked])
    assert set(runs) == set(declarations())
    for name, run in runs.items():
        assert run.records, (name, run.described)
        for record in run.records:
            assert list(record["prediction"]) == sorted(CONDITIONS) or list(record["prediction"]) == CONDITIONS
            assert set(record["finish"].values()) <= {"stop", "length"}
            assert {record["stand_ins"]["shuffled"], record["stand_ins"]["similar"]} & {record["medium"]} == set()
            if record["options"]:
                assert [len(found) for found in record["likelihoods"].values()] == [len(record["options"])] * 4
            text = "\n".join(message["content"] for message in record["prompt"])
            assert text.count(f"<{record['modality']}>") == 1
        assert {record["modality"] for record in run.records} == (
            {declarations()[name].modality} if declarations()[name].modality else {"image", "video", "audio", "imu"})
        similar = {record["id"]: record["stand_ins"]["similar"] for record in run.records}
        truths: dict[str, list[tuple[str, ...]]] = {}
        for record in run.records:
            truths.setdefault(record["medium"], []).append(tuple(record["references"]))
        assert all(tuple(record["references"]) not in truths[similar[record["id"]]] or len(truths[similar[record["id"]]]) > 1
                   for record in run.records)


def test_official_formats_are_written(asked):
    runs = read_runs([asked])
    for name, condition in (("coco_captions", "right"), ("clotho", "similar")):
        assert set(coco.read_captions(asked / f"{name}.{condition}.json")) == {str(record["id"]) for record in runs[name].records}
    said = vqa.read_answers(asked / "vqav2.right.json")
    assert said == {str(record["id"]): record["prediction"]["right"] for record in runs["vqav2"].records}
    assert set(vqa.read_vizwiz_answers(asked / "vizwiz.blank.json")) == {record["id"] for record in runs["vizwiz"].records}
    assert len(llava.read_answers(asked / "star.shuffled.jsonl")) == len(runs["star"].records)


def test_media_are_recorded_for_the_audit(asked, layouts):
    from anymal.data.manifest import sha256_of

    rows = read_media(asked)
    assert {row["benchmark"] for row in rows} == set(declarations())
    assert len({(row["benchmark"], row["id"]) for row in rows}) == len(rows)
    for row in rows:
        assert ("#" in row["id"]) is False
        assert (row["phash"] is not None) == (row["modality"] == "image") == (row["miniature"] is not None)
    first = next(row for row in rows if row["benchmark"] == "vqav2")
    assert first["sha256"] == sha256_of(layouts / "vqav2" / first["id"]) and len(first["phash"]) == 16


def test_figures_of_every_benchmark(scored):
    results, rows = scored
    assert set(results) == set(declarations())
    metrics = {"captions": set(captions.ALL_METRICS), "vqa": {"accuracy"}, "choice": {"accuracy", "accuracy_likelihood"},
               "roc": {"accuracy", "auroc"}, "pope": {"accuracy", "precision", "recall", "f1", "yes_ratio"}}
    for name, found in results.items():
        wanted = metrics[declarations()[name].metric]
        assert wanted <= found.keys()
        for condition in CONDITIONS[1:]:
            assert found["controls"][condition].keys() - {"unparsable"} == wanted == found[f"gap_{condition}"].keys()
        assert set(found["rates"]) == set(CONDITIONS)
        assert found["data"]["real"] is False and found["data"]["asset"].startswith("sample-")
        assert {"normaliser", "prompt", "protocol", "variant", "prompt_protocol"} <= found.keys()
    assert set(results["pope"]["by_kind"]) == {"random", "popular", "adversarial"}
    assert results["coco_captions"]["unparsable"] == 8  # a random model writes no JSON: counted, and scored as nothing
    assert results["vqav2"]["vqa_variant"] == "vqa_eval"
    assert rows == sorted(rows, key=lambda row: (row["branch"], row["id"]))
    assert {row["branch"] for row in rows} == {f"benchmarks.{name}" for name in results}
    for row in rows:
        assert row["scores"] and all(isinstance(value, float) and math.isfinite(value) for value in row["scores"].values())


def test_predictions_alone_are_enough(asked, tmp_path, scored):
    shutil.copytree(asked, tmp_path / "elsewhere")
    with open_meteor() as meteor:
        assert score_benchmarks([tmp_path / "elsewhere"], meteor=meteor, **SCORING) == scored


def test_parts_give_what_one_run_gives(tiny, tmp_path):
    section = knobs(*QUICK, pool=4)
    whole = ask(tiny, tmp_path / "whole", section)
    parts = [ask(tiny, tmp_path / f"part-{index}", {**section, "part": {"index": index, "of": 3}}) for index in range(3)]
    merged, single = read_runs(parts[::-1]), read_runs([whole])
    assert {name: run.records for name, run in merged.items()} == {name: run.records for name, run in single.items()}
    counts = [len(lines(part / "vqav2.jsonl")) for part in parts]
    assert sorted(counts) == [0, 12, 12] and len(single["vqav2"].records) == 24  # two pools of four pictures
    with open_meteor() as meteor:
        assert score_benchmarks(parts, meteor=meteor, **SCORING) == score_benchmarks([whole], meteor=meteor, **SCORING)
    with pytest.raises(DataError, match=r"is one of 3 parts of a run, of which number 1 \(from 0\) is missing"):
        read_runs([parts[0], parts[2]])
    with pytest.raises(DataError, match=r"is part 0 of 3 of a run, as .*part-0 is; give each part once"):
        read_runs([parts[0], *parts[:1]])
    with pytest.raises(DataError, match=r"holds clotho, as another run does"):
        read_runs([whole, *parts])


DYING = """
import json, os, pathlib, signal, sys
from anymal.evaluation.benchmarks import running
from tests.evaluation.benchmarks.small import ask

made, batches = running.RecordedModel._answer, []

def dying(self, digests, do_ask):
    def counted(left):
        for batch in do_ask(left):
            batches.append(batch)
            if len(batches) == 20:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch
    return made(self, digests, counted)

running.RecordedModel._answer = dying
ports, target, section = json.loads(sys.argv[1])
ask({"checkpoints": tuple(map(pathlib.Path, ports["checkpoints"])), "assets": pathlib.Path(ports["assets"])}, pathlib.Path(target), section)
"""
"""A run of the stage that kills itself after the twentieth batch was answered and before it is written."""


def test_a_run_that_was_killed_goes_on_and_gives_the_same_bytes(tiny, tmp_path, monkeypatch):
    section = knobs("vqav2", "pope", pool=4)
    made, sizes = running.RecordedModel._answer, []
    monkeypatch.setattr(running.RecordedModel, "_answer", lambda self, digests, do_ask: made(
        self, digests, lambda left: (sizes.append(len(batch)) or batch for batch in do_ask(left))))
    whole = verify_manifest(ask(tiny, tmp_path / "whole", section))
    asked_in_all, sizes[:] = list(sizes), []
    given = json.dumps([{"checkpoints": list(map(str, tiny["checkpoints"])), "assets": str(tiny["assets"])}, str(tmp_path / "killed"), section])
    died = subprocess.run([sys.executable, "-c", DYING, given], cwd=ROOT, capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert list((tmp_path / ".killed.partial/state").glob("*.done"))
    assert not (tmp_path / "killed").exists()
    assert verify_manifest(ask(tiny, tmp_path / "killed", section)) == whole
    assert sizes == asked_in_all[19:]  # the nineteen batches that were written are not asked again


def test_what_cannot_be_asked_is_named(tiny, tmp_path):
    section = knobs("vqav2", "how2qa", "clotho", "okvqa")
    section["benchmarks"]["vqav2"]["asset"] = None
    section["benchmarks"]["okvqa"]["asset"] = "not-there"
    ports = {**tiny, "checkpoints": tiny["checkpoints"][:1]}  # a model of pictures alone
    results, rows = score_benchmarks([ask(ports, tmp_path / "p", section)], meteor=None, **SCORING)
    assert {name: found["skipped"] for name, found in results.items()} == {
        "clotho": "the model reads image, and this benchmark's media are of audio", "how2qa": (
            "the model reads image, and this benchmark's media are of video"),
        "okvqa": "no data: the asset not-there is not there; name it in ingest.assets, and where it is in ingest.sources",
        "vqav2": "no data: benchmark.benchmarks.vqav2.asset is null; name an asset that holds its official files"}
    assert results["okvqa"]["paper"] == "okvqa" and rows == []


def test_media_that_cannot_be_read_are_listed(tiny, layouts, tmp_path):
    assets = tmp_path / "assets"
    shutil.copytree(tiny["assets"], assets, symlinks=True)
    (assets / "sample-mm_it").unlink()
    shutil.copytree(layouts / "mm_it", assets / "sample-mm_it")
    next((assets / "sample-mm_it/media").glob("*.jpg")).write_bytes(b"no picture")
    folder = ask({**tiny, "assets": assets}, tmp_path / "p", knobs("mm_it", conditions=["right"]))
    with open_meteor() as meteor:
        results, _ = score_benchmarks([folder], meteor=meteor, **SCORING)
    unusable = results["mm_it"]["unusable"]
    assert unusable["counts"] == {"medium_unreadable": 1, "no_stand_in": 1}
    assert "cannot be read as a picture" in unusable["first"]["medium_unreadable"][0]
    assert results["mm_it"]["data"]["available"] == 8 and results["mm_it"]["cider_d"]["n"] == 6
    assert results["mm_it"]["controls"] == {}


def test_a_wrong_layout_stops_the_run_before_a_model_is_loaded(tiny, layouts, tmp_path, monkeypatch):
    import anymal.model.anymal as model

    monkeypatch.setattr(model, "load_anymal", lambda *_, **__: pytest.fail("loaded"))
    assets = tmp_path / "assets"
    (assets / "sample-vizwiz/Annotations").mkdir(parents=True)
    (assets / "sample-vizwiz/Annotations/val.json").write_text("{}")
    with pytest.raises(DataError, match=r"val\.json: the file must be a list of records"):
        ask({**tiny, "assets": assets}, tmp_path / "p", knobs("vizwiz"))


@pytest.mark.parametrize(("change", "words"), [
    ({"conditions": ["blank"]}, "conditions must hold right, and each condition once; they are blank"),
    ({"part": {"index": 2, "of": 2}}, "index = 2 must be below of = 2"), ({"pool": 1}, "benchmark.pool"),
    ({"benchmarks": {"vqav3": knobs("vqav2")["benchmarks"]["vqav2"]}}, "benchmarks.vqav3: no such benchmark; there are coco_captions"),
    ({"benchmarks": {"how2qa": {**knobs("how2qa")["benchmarks"]["how2qa"], "protocol": "lmms-eval"}}}, "protocol = lmms-eval: must be one of paper"),
    ({"benchmarks": {"vqav2": {**knobs("vqav2")["benchmarks"]["vqav2"], "split": "train"}}}, "vqav2.split = train: must be one of val"),
])  # fmt: skip
def test_bad_knobs_are_named(change, words):
    with pytest.raises(ConfigError, match=words):
        validate(BenchmarkConfig, knobs("vqav2", **change) if "benchmarks" not in change else {**knobs("vqav2"), **change}, "benchmark")


def test_kubeflow_can_leave_the_nulls_out():
    section = knobs("vqav2", "star")
    section["benchmarks"]["star"]["asset"] = None
    assert read_config(load_stage("benchmark"), json.dumps(without_nulls(section))) == BenchmarkConfig.model_validate(section)
