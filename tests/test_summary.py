"""The closing words of `make demo`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


def figure(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 40}


def test_summary_shows_each_figure_beside_its_controls(tmp_path):
    caption = {"nll": figure(1.5), "protocol": "greedy", "controls": {"shuffled": {"nll": figure(2.5)}, "blank": {"nll": figure(3.5)}}}
    (tmp_path / "results").mkdir()
    (tmp_path / "results/evaluate.json").write_text(json.dumps({"image": {"caption": caption, "vqa": {"accuracy": figure(0.7)}}}))
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/registration.json").write_text(json.dumps({"name": "anymal", "version": "3", "alias": "candidate"}))
    words = [sys.executable, str(ROOT / "scripts/summary.py"), "--started", str(time.time() - 120)]
    lines = subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.split("\n")
    assert any(line.startswith("Done in 2.0 minutes") for line in lines)
    assert [line.split() for line in lines if line.startswith("  image.")] == [
        ["image.caption.nll", "1.500", "[1.400,", "1.600]", "2.500", "[2.400,", "2.600]", "3.500", "[3.400,", "3.600]"],
        ["image.vqa.accuracy", "0.700", "[0.600,", "0.800]", "–", "–"],
    ]
    text = "\n".join(lines)
    for part in ("reports/curate.html", "reports/evaluate.html", "version 3 of 'anymal'", "make ui", "anymal ask models:/anymal@candidate --image"):
        assert part in text
