"""The stage compare: one table and one picture of several runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anymal.config import validate
from anymal.errors import AnymalError, ConfigError, DataError
from anymal.evaluation import comparison
from anymal.stage import load_stage, run_stage
from anymal.training.plots import HISTORY, write_history

STAGE = load_stage("compare")
SECTION = {"seed": 0, "title": "Layers", "variants": ["2 layers", "6 layers"],
           "figures": {"held-out loss": "history.validation.right", "accuracy": "image.vqa.accuracy", "parameters": "parameters"}}


@pytest.fixture(autouse=True)
def _no_tracking(monkeypatch):
    monkeypatch.setenv("ANYMAL_TRACKING", "off")


@pytest.fixture
def ports(tmp_path: Path) -> dict:
    """Two runs; the second was not asked questions."""
    results, plots = [], []
    for number, scores in enumerate([{"image": {"vqa": {"accuracy": {"value": 0.75, "low": 0.7, "high": 0.8, "n": 40}}}}, {}]):
        folder = tmp_path / f"run{number}"
        steps = [{"step": step, "loss": 2.0 / (step + number)} for step in (1, 2, 3)]
        steps[1]["validation"] = {"right": 1.5 + number, "shuffled": 2.5}
        write_history(steps, folder / "plots" / HISTORY)
        (folder / "results.json").write_text(json.dumps(scores | {"parameters": 15020192 + number}))
        results.append(folder / "results.json")
        plots.append(folder / "plots")
    return {"results": tuple(results), "plots": tuple(plots), **outputs(tmp_path / "out")}


def outputs(folder: Path) -> dict[str, Path]:
    return {"table": folder / "table.md", "metrics": folder / "table.json", "figure": folder / "losses.png"}


def run(ports: dict, **changes: object) -> None:
    run_stage(STAGE, validate(STAGE.config, SECTION | changes, "compare"), ports)


def test_table_has_intervals_and_names_what_is_missing(ports):
    run(ports)
    lines = ports["table"].read_text().splitlines()
    assert lines[0] == "# Layers"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:6] if not line.startswith("|--")]
    assert cells == [["", "held-out loss", "accuracy", "parameters"], ["2 layers", "1.500", "0.750 [0.700, 0.800]", "15,020,192"],
                     ["6 layers", "2.500", "–", "15,020,193"]]
    assert lines[-1] == "Not measured (1): 6 layers: accuracy."
    assert json.loads(ports["metrics"].read_text()) == {
        "title": "Layers", "absent": {"6 layers": ["accuracy"]},
        "variants": {"2 layers": {"held-out loss": {"value": 1.5}, "accuracy": {"value": 0.75, "low": 0.7, "high": 0.8, "n": 40},
                                  "parameters": {"value": 15020192}},
                     "6 layers": {"held-out loss": {"value": 2.5}, "parameters": {"value": 15020193}}}}
    assert ports["figure"].read_bytes().startswith(b"\x89PNG")


def test_the_same_runs_give_the_same_bytes(ports, tmp_path):
    run(ports)
    again = ports | outputs(tmp_path / "again")
    run(again)
    assert all(again[port].read_bytes() == ports[port].read_bytes() for port in STAGE.outputs)


def test_nothing_is_noted_when_nothing_is_missing(ports):
    run(ports, figures={"parameters": "parameters"})
    assert "Not measured" not in ports["table"].read_text()


def test_figures_that_no_run_has_are_wrong_names(ports):
    with pytest.raises(DataError, match=r"none of image\.vqa\.acuracy, history\.loss\.x is in the results of 2 layers, 6 layers"):
        run(ports, figures={"accuracy": "image.vqa.acuracy", "other": "history.loss.x"})
    assert not ports["table"].parent.exists() or not list(ports["table"].parent.iterdir())


@pytest.mark.parametrize("port", ["results", "plots"])
def test_each_variant_has_its_files(ports, port):
    with pytest.raises(ConfigError, match=f"2 layers, 6 layers: --{port} is given 1 times"):
        run(ports | {port: ports[port][:1]})


@pytest.mark.parametrize(("text", "complaint"), [("{", "cannot be read as JSON"), ("[1]", "must be a JSON object, found list"),
                                                  ("\xff", "cannot be read as JSON")])
def test_results_that_are_no_json_object_are_refused(ports, text, complaint):
    ports["results"][1].write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=complaint) as caught:
        run(ports)
    assert str(ports["results"][1]) in str(caught.value)


def test_oversized_results_are_refused_before_they_are_read(ports, monkeypatch):
    monkeypatch.setattr(comparison, "MAX_RESULT_BYTES", 5)
    with pytest.raises(DataError, match="more than the 5"):
        run(ports)


def test_a_run_without_history_is_refused(ports):
    (ports["plots"][0] / HISTORY).unlink()
    with pytest.raises(DataError, match=r"history\.jsonl: no such file; run the training stage again"):
        run(ports)


@pytest.mark.parametrize(("changes", "complaint"), [
    ({"variants": ["a", "a"]}, "name a run twice"),
    ({"variants": ["a"]}, "at least 2"),
    ({"variants": ["a", "b|c"]}, "cannot head a line"),
    ({"figures": {}}, "at least 1"),
    ({"figures": {"a\nb": "x"}}, "cannot head a line"),
    ({"figure": {}}, "unknown knob; did you mean 'figures'"),
])  # fmt: skip
def test_wrong_knobs_are_named(changes, complaint):
    with pytest.raises(AnymalError, match=complaint):
        validate(STAGE.config, SECTION | changes, "compare")


def test_numbers_that_are_no_figures_are_missing(ports):
    """Text, truth values and half an interval are not taken for figures."""
    ports["results"][0].write_text(json.dumps({"parameters": True, "image": {"vqa": {"accuracy": {"value": 0.5, "low": 0.4}}}}))
    ports["results"][1].write_text(json.dumps({"parameters": "many"}))
    run(ports)
    assert "Not measured (4): 2 layers: accuracy, parameters; 6 layers: accuracy, parameters." in ports["table"].read_text()
