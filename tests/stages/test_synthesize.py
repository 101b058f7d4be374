import json

import pytest

from anymal.data.instructions import read_instructions
from anymal.data.manifest import verify_manifest, write_manifest
from anymal.data.shards import ShardWriter
from anymal.errors import AnymalError, ConfigError, DataError
from anymal.profile import read_config
from anymal.stage import load_stage, run_stage
from anymal.stages.synthesize import SynthesizeConfig
from pipelines.servers import free_port
from tests.cards import check_dataset_card
from tests.synthesis.scripted import Scripted
from tests.tiny import make_llm, sample

LLM = {"llm": "tiny-llm", "dtype": "float32", "quantization": "none", "attention": "sdpa", "batch_size": 4}
KNOBS = {
    "seed": 0, "modality": "image", "in_process": None, "server": {"url": "http://127.0.0.1:1/v1", "model": "m", "concurrency": 1, "timeout": 5,
                                                                   "retries": 0},
    "max_new_tokens": 16, "temperature": 0, "top_p": 1, "manner": "free", "captions": 2, "min_description_words": 5,
    "kinds": {"conversation": {"train": 30, "val": None, "questions": 1, "answer_words": [1, 30], "unsupported": 0.2},
              "detail": {"train": 4, "val": 0, "questions": 1, "answer_words": [1, 30], "unsupported": 0.2}},
    "question_words": [3, 30], "blind": None, "duplicates": {"similarity": 0.9, "most": 2}, "harmful": [], "safety": None,
    "report_examples": 5,
}
NAMES = ("cat", "dog", "zebra", "apple", "kite", "bell", "lemon", "drum")


def write_shards(folder, *, count=24, **changed):
    for split, number in (("train", count), ("val", 4), ("test", 2)):
        with ShardWriter(folder, split, 10) as writer:
            for index in range(number):
                name, colour = NAMES[index % 8], ("red", "green", "blue")[index % 3]
                captions = [f"A {name} sits on a {colour} background.", f"Here is {split} {index}."]
                meta = {"captions": captions, "objects": [{"name": name, "box": [4, 6, 20, 30]}]} | changed
                if index == 5:
                    meta["captions"] = ["A cat."]
                writer.write(sample(f"{split}-{index:03d}", split, colour, **meta))
    write_manifest(folder)
    return folder


@pytest.fixture
def scripted(tmp_path):
    server = Scripted(tmp_path / "answers.log", free_port())
    yield server
    server.stop()


def knobs(scripted=None, **changed):
    found = {**KNOBS, **changed}
    return {**found, "server": {**KNOBS["server"], "url": scripted.url}} if scripted else found


def run(config, shards, out, assets=None):
    out.mkdir(exist_ok=True)
    ports = {"shards": shards, "assets": assets or shards, "guard": shards, "instructions": out / "instructions", "report": out / "report.html",
             "statistics": out / "statistics.json"}
    run_stage(load_stage("synthesize"), SynthesizeConfig.model_validate(config), ports)
    return ports


def contents(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_pairs_are_asked_checked_counted_and_written(scripted, tmp_path):
    shards = write_shards(tmp_path / "shards")
    scripted.start()
    ports = run(knobs(scripted), shards, tmp_path / "out")
    made = read_instructions(ports["instructions"], "train")
    assert made
    assert all(one.origin == "synthetic" and one.source == "tiny" and one.license == "CC0-1.0" for one in made)
    for one in made:
        assert one.turns[0][0] == "<image>\nWhat does the picture show?"
        assert "red" in one.turns[0][1]
        assert one.media[0].member.endswith(".png")
    figures = json.loads(ports["statistics"].read_text())
    assert figures["samples"]["train"] == {"seen": 24, "too_little_said": 1}
    assert figures["asked"] == figures["kinds"]["conversation"]["asked"] + 4 == 23 + 4 + 4
    rejected = [json.loads(line) for line in (ports["instructions"] / "rejected.jsonl").read_text().splitlines()]
    assert len(rejected) == sum(figures["dropped"].values())
    reasons = {entry["reason"] for entry in rejected}
    assert {"unparsable", "objects", "cut_off"} <= reasons  # green, the zebra, blue
    assert any(entry["reason"] == "objects" and "zebra" in entry["detail"] for entry in rejected)
    assert figures["kept"] == sum(len(one.turns) for split in ("train", "val") for one in read_instructions(ports["instructions"], split))
    assert figures["diversity"]["first_words"] == {"what": figures["kept"]}
    assert "minute" not in json.dumps(figures)
    names = {path.name for path in ports["instructions"].iterdir()}
    assert names == {"train.json", "val.json", "rejected.jsonl", "README.md", "manifest.json"}
    verify_manifest(ports["instructions"])
    card, report = (ports["instructions"] / "README.md").read_text(), ports["report"].read_text()
    check_dataset_card(ports["instructions"])
    assert "CC0-1.0" in card and "| unparsable |" in card
    assert "What does the picture show?" in report and "unparsable" in report and "http" not in report


def test_a_server_killed_half_way_costs_no_question(scripted, tmp_path):
    shards = write_shards(tmp_path / "shards")
    scripted.start()
    run(knobs(scripted), shards, tmp_path / "whole")
    total = len(scripted.answered())
    scripted.stop()
    scripted.log.unlink()
    scripted.start(dies_after=7)
    with pytest.raises(AnymalError, match=f"7 of {total} answers came and are kept: run the same command again to go on"):
        run(knobs(scripted), shards, tmp_path / "out")
    assert not (tmp_path / "out" / "instructions").exists()
    scripted.stop()
    scripted.start()
    run(knobs(scripted), shards, tmp_path / "out")
    assert len(scripted.answered()) == total
    # Detail and conversation show the same captions, each once per sample and kind.
    assert sorted(scripted.answered()) == sorted(set(scripted.answered()))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_when_nothing_passes_the_reasons_are_said(tmp_path):
    shards = write_shards(tmp_path / "shards", count=4)
    make_llm(tmp_path / "assets" / "tiny-llm")
    small = {"conversation": {**KNOBS["kinds"]["conversation"], "train": 2, "val": 0}}
    said = r"synthesize.image: of 2 answers of tiny-llm nothing passed the checks \((unparsable|cut_off) \d.*take another LLM"
    with pytest.raises(AnymalError, match=said):
        run(knobs(in_process=LLM, server=None, manner="guided", kinds=small, blind={**LLM, "threshold": -0.1}), shards, tmp_path / "out",
            tmp_path / "assets")
    assert not (tmp_path / "out" / "statistics.json").exists()


@pytest.mark.parametrize(("changed", "message"), [
    ({"server": None}, "one of in_process and server must be given"),
    ({"in_process": LLM}, "one of in_process and server must be given"),
    ({"server": {**KNOBS["server"], "url": "127.0.0.1:80"}}, "synthesize.image.server.url = 127.0.0.1:80"),
    ({"server": {**KNOBS["server"], "url": "http://me:secret@host/v1"}}, "synthesize.image.server.url"),
    ({"harmful": ["("]}, "is no regular expression"),
    ({"kinds": {}}, "synthesize.image.kinds"),
    ({"kinds": {"poetry": KNOBS["kinds"]["detail"]}}, "synthesize.image.kinds.poetry"),
])
def test_wrong_knobs_are_named(changed, message, tmp_path):
    (tmp_path / "p.yaml").write_text(json.dumps({"synthesize": {"image": {**KNOBS, **changed}}}))
    with pytest.raises(ConfigError) as error:
        read_config(load_stage("synthesize"), str(tmp_path / "p.yaml"), "image")
    assert message in str(error.value)


@pytest.mark.parametrize(("changed", "message"), [
    ({"captions": "A cat."}, "'captions' must be a list of texts"),
    ({"objects": "cat"}, "'objects' must be a list"),
    ({"objects": [{"name": "cat"}]}, "needs a name and a box"),
    ({"width": 0}, "needs a name and a box"),
    ({"license": ""}, "lacks license"),
    ({"captions": ["A cat."]}, "no sample of train has captions of 5 words or more"),
])
def test_bad_samples_are_named(changed, message, tmp_path):
    shards = tmp_path / "shards"
    with ShardWriter(shards, "train", 4) as writer:
        meta = {"captions": ["A cat sits on a red background."], "objects": [{"name": "cat", "box": [4, 6, 20, 30]}]} | changed
        writer.write(sample("a", "train", **meta))
    write_manifest(shards)
    with pytest.raises(DataError, match=message):
        run(knobs(), shards, tmp_path / "out")


def test_a_changed_shard_and_a_modality_without_prompts_are_refused(tmp_path):
    shards = write_shards(tmp_path / "shards", count=4)
    with pytest.raises(ConfigError, match="add some of imu or leave out the kind conversation"):
        run(knobs(modality="imu"), shards, tmp_path / "out")
    (shards / "train-00000.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"changed train-00000\.tar"):
        run(knobs(), shards, tmp_path / "out")
