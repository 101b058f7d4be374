"""The stage register, through the command line's machinery, with a real SQLite store: bundle, card, versions, alias, and use from MLflow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from anymal.errors import BundleError, ConfigError
from anymal.profile import read_config
from anymal.serving.card import model_card
from anymal.stage import load_stage, run_stage
from tests.model.test_bundle import INFERENCE, contents

CONFIG = {"seed": 0, "name": "anymal", "alias": "candidate", "inference": INFERENCE}
FIGURE = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 40}
EVALUATION = {"image": {"vqa": {
    "accuracy": FIGURE, "groups": {"image": 3}, "normaliser": "VQA", "prompt": "user: <image> {question}", "protocol": "exact match",
    "controls": {"shuffled": {"accuracy": {**FIGURE, "value": 0.125}}, "blank": {"accuracy": {**FIGURE, "value": 0.0625}}}}}}
REFUSED = {side: {who: {"refused": FIGURE, "harmful_classifier": FIGURE} for who in ("model", "guarded")} for side in ("harmful", "harmless")}
INTEGRITY = {"text": REFUSED, "all": REFUSED}
SAFETY = {"text": {"auroc": FIGURE}}
LEAKAGE = {"passed": True, "modalities": {"image": {"copies": 0, "near": 2}}}
SAMPLE = {"branch": "image.vqa", "id": "q1", "group": "a", "scores": {"accuracy": 1.0}}
STATISTICS = {"modality": "image", "samples": {"train": 30, "test": 10}, "dropped": {"too_small": 3}}


def run_register(**changes: Any) -> dict[str, Any]:
    """Run the stage in the working directory; gives registration.json."""
    for folder in ("results", "reports"):
        Path(folder).mkdir(exist_ok=True)
    if not Path("results/evaluate.json").exists():
        Path("results/evaluate.json").write_text(json.dumps(EVALUATION))
    Path("results/curate.json").write_text(json.dumps(STATISTICS))
    Path("results/samples.jsonl").write_text(json.dumps(SAMPLE) + "\n")
    for name, document in (("leakage", LEAKAGE), ("safety", SAFETY), ("safety_integrity", INTEGRITY)):
        Path(f"results/{name}.json").write_text(json.dumps(document))
    stage = load_stage("register")
    ports: dict[str, Any] = {
        "checkpoints": (Path("models/checkpoints/image"),), "statistics": (Path("results/curate.json"),), "evaluation": Path("results/evaluate.json"),
        "samples": Path("results/samples.jsonl"), "leakage": Path("results/leakage.json"),
        "safety": Path("results/safety.json"), "integrity": Path("results/safety_integrity.json"),
        "assets": Path("data/assets"), "bundle": Path("models/bundle"), "registration": Path("reports/registration.json")}
    run_stage(stage, read_config(stage, json.dumps({**CONFIG, **changes})), ports)
    document: dict[str, Any] = json.loads(Path("reports/registration.json").read_text())
    return document


@pytest.fixture
def registered(store: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The tiny bundle in the registry, without a run: the recorder's start takes seconds, and one test has it."""
    monkeypatch.setenv("ANYMAL_TRACKING", "off")
    return run_register()


def test_registers_a_version_that_mlflow_can_load_and_ask(store, workspace, monkeypatch):
    import base64

    import mlflow.pyfunc
    from mlflow.tracking import MlflowClient

    from anymal.model.loading import load_bundle
    from anymal.serving.answer import Request, answer
    from anymal.serving.openai import BadRequest
    from anymal.tracking import tracking_uri
    from tests.safety.tiny_guard import make_guard

    registered = run_register()
    assert registered["version"] == 1 and registered["uri"] == "models:/anymal@candidate"
    client = MlflowClient(tracking_uri())
    version = client.get_model_version_by_alias("anymal", "candidate")
    run = client.get_run(version.run_id)
    assert version.tags["bundle_sha256"] == registered["bundle_sha256"]
    assert {"input.checkpoints.0", "input.evaluation", "input.samples", "input.leakage", "input.safety", "input.integrity",
            "input.image.statistics"} <= set(version.tags)
    assert version.description == Path("models/bundle/README.md").read_text()
    assert run.data.tags["stage"] == "register" and run.info.status == "FINISHED"
    assert run.data.metrics["image.vqa.accuracy.value"] == 0.5
    assert not {k for k in run.data.metrics if "controls" in k and not k.endswith(".value")}

    mlflow.set_tracking_uri(tracking_uri())
    with pytest.raises(ConfigError, match="ANYMAL_GUARD is not set"):
        mlflow.pyfunc.load_model("models:/anymal@candidate")
    monkeypatch.setenv("ANYMAL_GUARD", str(make_guard(Path("guard"), Path("networks"))))
    model = mlflow.pyfunc.load_model("models:/anymal@candidate")
    picture = base64.b64encode(Path("red.png").read_bytes()).decode()
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}, {"type": "text", "text": "what colour ?"}]
    request = {"messages": [{"role": "user", "content": parts}]}
    wanted = answer(load_bundle(Path("models/bundle")), [Request("what colour ?", [("image", Path("red.png"))])], max_new_tokens=5, batch_size=1)
    said = model.predict(request)
    assert [said["choices"][0]["message"]["content"]] == wanted and said["model"] == "anymal/1"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in model.predict_stream(request)) == wanted[0]
    with pytest.raises(BadRequest, match="top_k: is not supported"):
        model.predict({**request, "top_k": 3})
    example = model.input_example
    assert model.predict(example)["object"] == "chat.completion" and example["messages"][0]["content"][0]["type"] == "image_url"
    logged = [file for file in Path("mlartifacts").rglob("*") if file.is_file()]
    assert any(file.name == "MLmodel" for file in logged)
    assert not [file for file in logged if file.suffix in {".pkl", ".pickle", ".bin", ".pt"}]


def test_the_same_bundle_keeps_its_version_and_another_gets_a_new_one(registered, workspace):
    first = contents(Path("models/bundle"))
    shutil.rmtree("models/bundle")
    again = run_register()
    assert again == registered and contents(Path("models/bundle")) == first
    changed = json.loads(json.dumps(EVALUATION).replace("0.5", "0.625"))
    Path("results/evaluate.json").write_text(json.dumps(changed))
    other = run_register()
    assert other["version"] == 2 and other["bundle_sha256"] != registered["bundle_sha256"]
    from mlflow.tracking import MlflowClient

    from anymal.tracking import tracking_uri

    assert int(MlflowClient(tracking_uri()).get_model_version_by_alias("anymal", "candidate").version) == 2


def test_what_was_registered_passes_the_gates_that_ask_where_it_comes_from(registered):
    """Bundle and lineage as the stage itself writes them; the figures are for the others."""
    from anymal.gates import rules_of
    from anymal.promotion import promote
    from tests import planted

    made = promote("models:/anymal@candidate", rules_of(planted.RULES), dry_run=True)
    passed = {result["rule"]: [] for result in made.document["results"]}
    for result in made.document["results"]:
        passed[result["rule"]].append(result["passed"])
    assert passed["bundle"] == [True] and all(passed["lineage"]) and len(passed["lineage"]) == 9


def test_card_is_filled_from_the_artifacts(registered):
    """And the hub's own reader finds the figures in its header."""
    from huggingface_hub import EvalResult, ModelCard

    text = Path("models/bundle/README.md").read_text()
    card = ModelCard(text)
    assert card.data.eval_results == [EvalResult(
        task_type="image-text-to-text", task_name="image vqa", dataset_type="anymal-curated", dataset_name="held-out split", metric_type="accuracy",
        metric_name="accuracy", metric_value=0.5)]  # fmt: skip
    assert card.data.license == "cc0-1.0" and card.data.pipeline_tag == "image-text-to-text" and card.data.library_name == "anymal"
    body = card.text
    table = ["| Figure | Value | 95% interval | n | blank | shuffled |", "|---|---|---|---|---|---|",
             "| accuracy | 0.5 | 0.25 to 0.75 | 40 | 0.0625 | 0.125 |"]
    assert "\n".join(table) + "\n" in body
    assert "measured on 3 groups of image only" in body
    assert "### image\n\n| Statistic | Value |\n|---|---|\n| dropped.too_small | 3 |\n| samples.test | 10 |\n" in body
    assert "| samples.train | 30 |" in body and "tiny-llm" in body and "50% of its answers" in body
    assert "Safety, harmful texts of the trained sources: alone it refused 0.50 [0.25, 0.75] of 40, behind the guard 0.50" in body
    assert "passed. What it found:\n\n| Check | Value |\n|---|---|\n| modalities.image.copies | 0 |\n| modalities.image.near | 2 |\n" in body


def test_card_of_several_modalities():
    """One asset may be the encoder of two modalities, and an encoder that was trained here is no asset."""
    asset = {"entry": {"kind": "pip", "package": "p", "version": "1", "licence": {"id": "MIT"}}, "sha256": "a" * 64}
    projector = {"kind": "linear", "arguments": {"tokens": 3}}

    def checkpoint(name: str | None) -> dict[str, Any]:
        encoder = {"asset": name, "kind": "k", "tokens": 4, "dim": 5, **({} if name else {"sha256": "b" * 64})}
        return {"llm": "llm", "encoder": encoder, "projector": projector, "templates": {"caption": {"system": None, "user": "{media}"}}}

    modalities = {"image": checkpoint("eyes"), "video": checkpoint("eyes"), "imu": checkpoint(None)}
    figures = {"imu": {"caption": {"class_accuracy": FIGURE, "groups": {"imu": 3}}}, "mixed": {"qa": {"accuracy": FIGURE, "accuracy_imu": FIGURE}}}
    statistics = {modality: {"kept": number, **{f"x{i:02d}": i for i in range(60)}} for number, modality in enumerate(modalities)}
    card = model_card(
        name="anymal", alias="candidate", checkpoints=modalities, assets={"llm": asset, "eyes": asset}, evaluation=figures, leakage={},
        integrity=None,
        statistics=statistics, inference={}, seed=0, inputs={f"{modality}.statistics": modality * 5 for modality in modalities})  # fmt: skip
    rows = [line.split(" | ")[:2] for line in card.splitlines() if "encoder |" in line]
    assert rows == [["| image and video encoder", "eyes"], ["| imu encoder", "k"]]
    assert "### imu\n\n| Statistic | Value |\n|---|---|\n| kept | 2 |" in card and "21 more are in the curation's statistics (SHA-256 `imu" in card
    assert "imu caption: 50% of its held-out captions named a wrong class" in card and "mixed qa: 50% of its answers" in card
    assert "Its safety was not measured" in card
    assert "does not say that it passed" in card and "so were, before, the encoders of imu" in card and "adapter" not in card
    assert "| accuracy_imu | 0.5 |" in card and "Not measured at all: image, video." in card
    assert all(f"anymal ask models:/anymal@candidate --{modality} FILE" in card for modality in modalities)


def test_card_of_benchmarks():
    """Only a real benchmark goes into the index of results under its name; rates are told, and what was skipped is."""
    from huggingface_hub import ModelCard

    encoder = {"asset": None, "kind": "k", "tokens": 4, "dim": 5, "sha256": "b" * 64}
    checkpoint = {"llm": "llm", "adapter": "c" * 64, "encoder": encoder, "projector": {"kind": "linear", "arguments": {}}, "templates": {}}
    asset = {"entry": {"kind": "pip", "package": "p", "version": "1", "licence": {"id": "MIT"}}, "sha256": "a" * 64}
    rates = {"right": {"eos": 0.975, "max_length": 0.025, "empty": 0.0, "prefix": 0.4, "prefix_words": "a photo of"}}
    known = {"modality": "image", "accuracy": FIGURE, "rates": rates, "variant": "vqa_eval"}
    figures = {"benchmarks": {"vqav2": known | {"data": {"real": True}}, "pope": known | {"data": {"real": False}}, "okvqa": {"skipped": "no file"}}}
    text = model_card(name="anymal", alias="candidate", checkpoints={"image": checkpoint}, assets={"llm": asset}, evaluation=figures,
                      leakage={"passed": True}, integrity=None, statistics={"image": {}}, inference={}, seed=0, inputs={})
    results = ModelCard(text).data.eval_results
    assert [(result.dataset_type, result.dataset_name) for result in results] == [
        ("anymal-curated", "sample data in the layout of pope"), ("vqav2", "vqav2")]
    assert "### benchmark pope (sample data in its layout)" in text and "### benchmark vqav2\n" in text and "- okvqa: no file" in text
    assert ("- answers: 97.5% ended by themselves, 2.5% were cut at the longest length, 0.0% were empty, 40.0% began with `a photo of`, the most "
            "frequent beginning") in text
    assert "adapter (LoRA) of the language model were trained" in text


def test_ask_answers_from_the_registry_and_from_the_folder(registered, workspace):
    from anymal.commands.ask import command

    results = [CliRunner().invoke(command, [place, "--image", "red.png", "what colour ?"], catch_exceptions=False)
               for place in ("models:/anymal@candidate", "models:/anymal/1", "models/bundle")]
    assert [result.exit_code for result in results] == [0, 0, 0]
    assert results[0].stdout == results[1].stdout == results[2].stdout
    assert results[0].stdout.count("\n") == 1


def test_ask_names_what_the_registry_lacks(registered, workspace):
    from anymal.registry import resolve_bundle

    for reference, words in [("models:/anymal@champion", "has the aliases candidate"), ("models:/nobody@candidate", "no model 'nobody'"),
                             ("models:/anymal/7", "has the aliases"), ("models:/anymal", "is no address")]:
        with pytest.raises(BundleError, match=words):
            resolve_bundle(reference)


@pytest.mark.parametrize(("knob", "value", "message"), [
    ("alias", "v2", "MLflow keeps"), ("alias", "champion", "only `anymal promote` makes a champion"),
    ("name", "anymal-decisions", "end in -decisions")])
def test_names_that_have_a_meaning_are_refused(knob, value, message):
    with pytest.raises(ConfigError, match=message):
        read_config(load_stage("register"), json.dumps(CONFIG | {knob: value}))


def test_a_damaged_checkpoint_registers_nothing(store, workspace, monkeypatch):
    monkeypatch.setenv("ANYMAL_TRACKING", "off")
    weights = Path("models/checkpoints/image/projector.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(BundleError, match=r"changed projector\.safetensors"):
        run_register()
    assert not Path("models/bundle").exists() and not Path("reports/registration.json").exists()
    from mlflow.tracking import MlflowClient

    from anymal.tracking import tracking_uri

    assert MlflowClient(tracking_uri()).search_registered_models() == []
