"""Loss histories: written, read back, refused when broken, drawn to the same bytes."""

from __future__ import annotations

import json
import math

import pytest

from anymal.errors import DataError
from anymal.training import plots
from anymal.training.plots import HISTORY, draw_comparison, draw_history, read_history, write_history


def history_of(steps: int, start: float = 3.0) -> list[dict]:
    """A loss that falls, measured on held-out samples every fifth step."""
    records = []
    for step in range(1, steps + 1):
        loss = start / step
        checked = {"validation": {"right": loss, "shuffled": loss + 1, "blank": loss + 2}} if step % 5 == 0 else {}
        records.append({"step": step, "loss": loss, "learning_rate": 1e-3, "gradient_norm": 1.0} | checked)
    return records


def test_history_is_drawn_and_kept_as_data(tmp_path):
    history = history_of(10)
    for name in ("one", "two"):
        draw_history(history, tmp_path / name, title="Run")
    written = {name: {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")}
    assert set(written["one"]) == {HISTORY, "loss.png", "grounding.png"}
    assert written["one"] == written["two"]
    assert read_history(tmp_path / "one" / HISTORY) == history


def test_what_is_not_finite_becomes_null(tmp_path):
    write_history([{"step": 1, "loss": 1.0, "validation": {"right": math.nan, "shuffled": math.inf}}], tmp_path / HISTORY)
    (record,) = read_history(tmp_path / HISTORY)
    assert record["validation"] == {"right": None, "shuffled": None}
    draw_comparison({"a": [record], "b": history_of(5)}, tmp_path / "losses.png", title="With gaps")
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")


GOOD = json.dumps({"step": 1, "loss": 1.0})


@pytest.mark.parametrize(("text", "complaint"), [
    ("", "is empty"),
    ("nonsense\n", "line 1"),
    (f"{GOOD}\n[1]\n", "line 2"),
    (f"{GOOD}\n{GOOD}\n", "line 2"),
    ('{"step": 1}\n', "line 1"),
    ('{"step": "1", "loss": 1.0}\n', "line 1"),
    ('{"step": 1, "loss": "low"}\n', "line 1"),
    ('{"step": 1, "loss": NaN}\n', "line 1"),
    ('{"step": 1, "loss": 1.0, "validation": {"right": "low"}}\n', "line 1"),
    ("\xff\n", "line 1"),
])  # fmt: skip
def test_a_broken_history_is_refused(tmp_path, text, complaint):
    path = tmp_path / HISTORY
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=complaint) as caught:
        read_history(path)
    assert str(path) in str(caught.value)


def test_a_missing_or_oversized_history_is_refused(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no such file; run the training stage again"):
        read_history(tmp_path / HISTORY)
    write_history(history_of(3), tmp_path / HISTORY)
    monkeypatch.setattr(plots, "MAX_HISTORY_BYTES", 10)
    with pytest.raises(DataError, match="more than the 10"):
        read_history(tmp_path / HISTORY)


def test_comparison_depends_on_every_run(tmp_path):
    """The same runs give the same picture; another loss, name or order another one."""
    runs = {"a": history_of(10), "b": history_of(10, 4.0)}
    variants = {"same": runs, "again": dict(runs), "loss": runs | {"b": history_of(10, 5.0)}, "name": {"a": runs["a"], "c": runs["b"]},
                "order": {"b": runs["b"], "a": runs["a"]}}
    pictures = {}
    for name, histories in variants.items():
        draw_comparison(histories, tmp_path / f"{name}.png", title="Runs")
        pictures[name] = (tmp_path / f"{name}.png").read_bytes()
    assert pictures["same"] == pictures["again"]
    assert len(set(pictures.values())) == 4
