"""The filter of training data: a limit per check, categories by name, pictures in small batches, classifiers loaded when they are asked."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from anymal.safety import filters
from anymal.safety.filters import open_screen
from anymal.safety.limits import SafetyLimits

LIMITS = {"text": 0.9, "image": 0.5, "pair": None}


class Fake:
    categories = ("violence", "hate")

    def __init__(self):
        self.batches = []
        self.text = self.image = self.pair = self

    def probabilities(self, *columns):
        self.batches.append(len(columns[0]))
        return np.array([[0.1, float(one)] if isinstance(one, str) else [one.getpixel((0, 0))[0] / 255, 0.2] for one in columns[0]])


@pytest.fixture
def models(monkeypatch):
    fake = Fake()
    monkeypatch.setitem(sys.modules, "anymal.safety.models", SimpleNamespace(load_guard=lambda folder: fake))
    monkeypatch.setattr(filters, "AT_ONCE", 2)
    return fake


def test_texts_and_pictures_are_judged_at_their_own_limits(models, tmp_path):
    screen = open_screen(tmp_path, SafetyLimits(**LIMITS))
    assert screen.texts(["0.95", "0.5", "0.9"]) == ["hate", None, "hate"]
    paths = []
    for number, red in enumerate((255, 0, 128)):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (4, 4), (red, 0, 0)).save(paths[-1])
    assert screen.pictures(paths) == ["violence", None, "violence"]
    assert models.batches == [2, 1, 2, 1]


def test_a_check_without_a_limit_and_an_empty_list_load_nothing(monkeypatch, tmp_path):
    def load(folder: Path) -> None:
        raise AssertionError("loaded")

    monkeypatch.setitem(sys.modules, "anymal.safety.models", SimpleNamespace(load_guard=load))
    screen = open_screen(tmp_path, SafetyLimits(**LIMITS))
    assert screen.pairs([tmp_path / "x.png"], ["0.99"]) == [None] and screen.texts([]) == []
    assert open_screen(tmp_path / "none", None) is None


@pytest.mark.parametrize("limit", [0, 1, 1.5, -0.1])
def test_limits_are_probabilities(limit):
    with pytest.raises(ValidationError):
        SafetyLimits(**LIMITS | {"text": limit})
