from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from anymal.curation import cat, scenes
from anymal.curation.captions import Caption
from anymal.curation.parser import load_parser
from anymal.errors import DataError
from tests.curation.drawings import NOUNS, drawing


@pytest.fixture(scope="module")
def stamps(tmp_path_factory: pytest.TempPathFactory) -> list[scenes.Stamp]:
    folder = tmp_path_factory.mktemp("stamps")
    found = []
    for index, noun in enumerate(NOUNS):
        image = drawing(index)
        image = image.crop(image.getchannel("A").getbbox())
        path = folder / f"{noun}.png"
        image.save(path)
        colour = np.asarray(image)[np.asarray(image)[..., 3] > 0][:, :3].mean(axis=0).tolist()
        found.append(scenes.Stamp(f"key-{noun}", noun, noun, path, image.size, tuple(colour)))
    return found


@pytest.fixture(scope="module")
def plans(stamps: list[scenes.Stamp]) -> list[scenes.Scene]:
    return scenes.plan_scenes(stamps, split="train", count=400, size=256, max_objects=4, seed=3)


def test_the_same_seed_gives_the_same_scenes(stamps: list[scenes.Stamp], plans: list[scenes.Scene]) -> None:
    assert scenes.plan_scenes(list(reversed(stamps)), split="train", count=400, size=256, max_objects=4, seed=3) == plans
    assert scenes.plan_scenes(stamps, split="train", count=400, size=256, max_objects=4, seed=4) != plans
    assert len({plan.key for plan in plans}) == 400


def test_boxes_are_exact_and_apart(plans: list[scenes.Scene]) -> None:
    for plan in plans[:60]:
        drawn = np.asarray(scenes.render(plan), dtype=int)
        empty = np.asarray(scenes.render(scenes.Scene(plan.key, plan.size, plan.colour, plan.rgb, plan.shade, (), ())), dtype=int)
        changed = np.abs(drawn - empty).sum(axis=2) > 0
        covered = np.zeros_like(changed)
        for placed in plan.objects:
            x, y, width, height = placed.box
            assert 0 <= x <= x + width <= 256
            assert 0 <= y <= y + height <= 256
            assert not covered[y:y + height, x:x + width].any(), "boxes overlap"
            covered[y:y + height, x:x + width] = True
            inside = changed[y:y + height, x:x + width]
            assert inside.any(axis=0).mean() > 0.9, "the box is as wide as what is drawn in it"
            assert inside.any(axis=1).mean() > 0.9
        assert not (changed & ~covered).any(), "something is drawn outside every box"


def test_every_answer_is_true(plans: list[scenes.Scene]) -> None:
    checked = Counter[str]()
    for plan in plans:
        names = [placed.stamp.name for placed in plan.objects]
        centres = {placed.stamp.name: (placed.box[0] + placed.box[2] / 2, placed.box[1] + placed.box[3] / 2) for placed in plan.objects}
        for asked in plan.questions:
            checked[asked.kind] += 1
            words = asked.question.rstrip("?").split()
            if asked.kind == "presence":
                assert (words[3] in names) == (asked.answer == "yes")
            elif asked.kind == "count":
                assert int(asked.answer) == len(names)
                assert len(set(names)) == 1
            elif asked.kind == "color":
                assert asked.answer == plan.colour
            elif asked.kind == "object":
                assert names == [asked.answer]
            elif asked.kind == "relation":
                first, second = centres[asked.answer], centres[words[-1]]
                assert {"left": first[0] < second[0], "right": first[0] > second[0], "above": first[1] < second[1],
                        "below": first[1] > second[1]}[next(w for w in words if w in ("left", "right", "above", "below"))]
            else:
                x, y = centres[words[2]]
                other = centres.get(words[-1], (128, 128))
                assert {"left": x < other[0], "right": x > other[0], "top": y < other[1], "bottom": y > other[1],
                        "above": y < other[1], "below": y > other[1]}[asked.answer], (asked, plan.objects)
    assert set(checked) == {"presence", "count", "color", "relation", "side", "object"}


def test_answers_cannot_be_guessed_from_the_question(plans: list[scenes.Scene]) -> None:
    answers = {kind: Counter(q.answer for plan in plans for q in plan.questions if q.kind == kind) for kind in ("presence", "count", "color")}
    assert answers["presence"]["yes"] == answers["presence"]["no"]
    assert set(answers["count"]) == {"1", "2", "3", "4"}
    assert max(answers["count"].values()) - min(answers["count"].values()) <= 1
    assert set(answers["color"]) == set(scenes.COLOURS)
    assert max(answers["color"].values()) <= 1.3 * min(answers["color"].values())
    sides = Counter(q.answer for plan in plans for q in plan.questions if q.kind == "side")
    assert abs(sides["left"] - sides["right"]) <= 0.1 * (sides["left"] + sides["right"]) + 2


def test_presence_is_no_matter_of_the_name(plans: list[scenes.Scene]) -> None:
    asked = [q for plan in plans for q in plan.questions if q.kind == "presence"]
    by_answer = {answer: {q.question for q in asked if q.answer == answer} for answer in ("yes", "no")}
    assert len(by_answer["yes"] & by_answer["no"]) > 20, "the same questions have both answers"


def test_captions_pass_the_papers_cat_thresholds(plans: list[scenes.Scene]) -> None:
    documents = list(load_parser().pipe(caption for plan in plans for caption in plan.captions))
    passed = [cat.check(document, min_complexity=1, min_actions=1) is None for document in documents]
    assert np.mean(passed) > 0.95, [document.text for document, ok in zip(documents, passed, strict=True) if not ok][:10]
    assert all(caption[0].isupper() and caption.endswith(".") for plan in plans for caption in plan.captions)


def test_only_clear_names_take_part() -> None:
    assert scenes.stamp_name(Caption("A red apple.", "red apple", "apple")) == "red apple"
    for text, phrase, head in (("Some bread.", "bread", "bread"), ("A pair of pants.", "pair", "pair"), ("A glass of water.", "glass", "glass"),
                               ("Two flowers.", "two flowers", "flower"), ("The Sun.", "sun", "sun")):
        assert scenes.stamp_name(Caption(text, phrase, head)) is None, text


def test_too_few_nouns_is_one_clear_error(stamps: list[scenes.Stamp]) -> None:
    with pytest.raises(DataError, match=r"split val has pictures of only 3 different nouns"):
        scenes.plan_scenes(stamps[:3], split="val", count=5, size=128, max_objects=4, seed=0)
    assert scenes.plan_scenes(stamps[:3], split="val", count=0, size=128, max_objects=4, seed=0) == []
