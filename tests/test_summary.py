"""The closing words of `make demo`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from scripts import summary

ROOT = Path(__file__).parent.parent


def figure(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 40}


def test_summary_shows_each_headline_figure_beside_its_controls(tmp_path):
    caption = {"nll": figure(1.5), "bleu_4": figure(0.5), "protocol": "greedy", "controls": {
        "shuffled": {"nll": figure(2.5)}, "similar": {"nll": figure(2.0)}, "blank": {"nll": figure(3.5)}}}
    mixed = {"accuracy": figure(0.6), "accuracy_imu": figure(0.8), "controls": {
        "shuffled": {"accuracy": figure(0.0), "accuracy_imu": figure(0.3)}, "shuffled_imu": {"accuracy_imu": figure(0.2)},
        "blank": {"accuracy": figure(0.1), "accuracy_imu": figure(0.1)}}, "accuracy_image": figure(0.7)}
    (tmp_path / "results").mkdir()
    document = {"image": {"caption": caption, "vqa": {"accuracy": figure(0.7)}}, "imu": {"caption": {"class_accuracy": figure(0.9)}},
                "mixed": {"qa": mixed}, "benchmarks": {"vqav2": {"accuracy": figure(0.5), "data": {"real": False}}, "star": {"skipped": "no asset"}}}
    (tmp_path / "results/evaluate.json").write_text(json.dumps(document))
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/registration.json").write_text(json.dumps({"name": "anymal", "version": "3", "alias": "candidate"}))
    words = [sys.executable, str(ROOT / "scripts/summary.py"), "--started", str(time.time() - 120)]
    lines = subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.split("\n")
    assert any(line.startswith("Done in 2.0 minutes: a language model that reads image, imu") for line in lines)
    assert [line.split() for line in lines if line.startswith(("  image.", "  imu.", "  mixed.", "  benchmarks."))] == [
        ["image.caption.nll", "1.500", "[1.400,", "1.600]", "2.500", "2.000", "3.500"],
        ["image.vqa.accuracy", "0.700", "[0.600,", "0.800]", "–", "–", "–"],
        ["imu.caption.class_accuracy", "0.900", "[0.800,", "1.000]", "–", "–", "–"],
        ["mixed.qa.accuracy", "0.600", "[0.500,", "0.700]", "0.000", "–", "0.100"],
        ["mixed.qa.accuracy_image", "0.700", "[0.600,", "0.800]", "–", "–", "–"],
        ["mixed.qa.accuracy_imu", "0.800", "[0.700,", "0.900]", "0.200", "–", "0.100"],
    ]
    assert "Benchmarks  0 on their own data, 1 on sample data in their file layout, 1 skipped for lack of data" in lines
    assert not any(line.startswith("Leakage") for line in lines), "there was no audit"
    text = "\n".join(lines)
    for part in ("reports/curate/", "reports/evaluate.html", "reports/figures/", "version 3 of 'anymal'", "make ui",
                 "anymal promote models:/anymal@candidate --config params.yaml\n",
                 "anymal ask models:/anymal@candidate --image PICTURE.png\n", "--imu MOTION.csv\n",
                 '--image PICTURE.png --imu MOTION.csv "QUESTION"'):  # fmt: skip
        assert part in text


def test_summary_shows_the_decision_about_this_version_only(tmp_path, monkeypatch):
    monkeypatch.setattr(summary, "DECISION", tmp_path / "promotion.json")
    ask = "Promote anymal promote models:/anymal@candidate --config params.yaml"
    assert summary.promotion("models:/anymal@candidate", "3") == ask
    for decision, why in (("promoted", "it answers as models:/anymal@champion"), ("refused", "a floor is not kept")):
        summary.DECISION.write_text(json.dumps({"candidate": {"version": 3}, "decision": decision, "reasons": ["a floor is not kept"]}))
        assert summary.promotion("models:/anymal@candidate", "3") == f"        version 3 is {decision}: {why}"
        assert summary.promotion("models:/anymal@candidate", "4") == ask
