from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anymal.curation import clips
from anymal.curation.clips import ClipPlan, described, plan_clips, render
from anymal.curation.scenes import COLOURS, Stamp
from anymal.curation.stamps import load_stamps
from anymal.data.manifest import write_manifest
from anymal.errors import DataError
from tests.curation.drawings import NOUNS, drawing


def write_stamps(folder: Path, splits: dict[str, int]) -> Path:
    """Cut-outs as curate_image leaves them: so many of each split."""
    folder.mkdir(parents=True)
    entries, index = [], 0
    for split, count in splits.items():
        for _ in range(count):
            image = drawing(index)
            image = image.crop(image.getchannel("A").getbbox())
            key, noun = f"key-{index:02d}", NOUNS[index]
            image.save(folder / f"{key}.png")
            colour = np.asarray(image)[np.asarray(image)[..., 3] > 0][:, :3].mean(axis=0).tolist()
            entries.append({"key": key, "name": noun, "head": noun, "size": list(image.size), "colour": colour, "split": split,
                            "source": "drawings", "license": "CC0-1.0" if index % 2 else "CC-BY-4.0"})
            index += 1
    (folder / "stamps.json").write_text(json.dumps(entries))
    write_manifest(folder)
    return folder


@pytest.fixture(scope="module")
def stamps(tmp_path_factory: pytest.TempPathFactory) -> list[Stamp]:
    return load_stamps(write_stamps(tmp_path_factory.mktemp("a") / "stamps", {"train": 24}))[0]["train"]


@pytest.fixture(scope="module")
def plans(stamps: list[Stamp]) -> list[ClipPlan]:
    return plan_clips(stamps, split="train", count=400, size=128, frames=16, rate=8, seed=3)


def of(plans: list[ClipPlan], kind: str) -> list[ClipPlan]:
    return [plan for plan in plans if plan.kind == kind]


def answer_of(plan: ClipPlan, kind: str) -> str:
    return next(q.answer for q in plan.questions if q.kind == kind)


def test_the_same_seed_gives_the_same_clips(stamps: list[Stamp], plans: list[ClipPlan]) -> None:
    assert plan_clips(list(reversed(stamps)), split="train", count=400, size=128, frames=16, rate=8, seed=3) == plans
    assert plan_clips(stamps, split="train", count=400, size=128, frames=16, rate=8, seed=4) != plans
    assert len({plan.key for plan in plans}) == 400
    assert {plan.kind for plan in plans} == set(clips.LAYOUTS)
    assert all(len(plan.colours) == 16 and len(plan.questions) <= 3 for plan in plans)


def drawn(plan: ClipPlan) -> list[np.ndarray]:
    """Where anything is drawn, frame by frame: (size, size) bool."""
    return [np.abs(np.asarray(frame, dtype=int) - np.array(rgb)).sum(axis=2) > 6 for frame, rgb in zip(render(plan), plan.colours, strict=True)]


def read_direction(frames: list[np.ndarray]) -> str:
    """From the pixels: where a thing's edge that is in sight in both goes, from the first frame to the last."""
    boxes = []
    for mask in (frames[0], frames[-1]):
        y, x = np.nonzero(mask)
        boxes.append((x.mean(), y.mean()))
    across, down = boxes[1][0] - boxes[0][0], boxes[1][1] - boxes[0][1]
    if abs(across) > abs(down):
        return "right" if across > 0 else "left"
    return "down" if down > 0 else "up"


def test_things_move_as_the_answer_says_and_the_other_way_when_played_backwards(plans: list[ClipPlan]) -> None:
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
    for plan in of(plans, "direction")[:40]:
        frames, answer = drawn(plan), answer_of(plan, "direction")
        assert read_direction(frames) == answer
        assert read_direction(frames[::-1]) == opposite[answer]
        assert all(mask.any() for mask in frames)


def test_order_is_as_the_answer_says_and_turns_when_played_backwards(plans: list[ClipPlan]) -> None:
    for plan in of(plans, "order")[:20]:
        frames, half = drawn(plan), plan.size // 2
        sides = [side for mask in frames for side, part in (("left", mask[:, :half]), ("right", mask[:, half:])) if part.any()]
        assert set(sides) == {"left", "right"}
        assert sides[0] == answer_of(plan, "first_side") != sides[-1], "so the reversed clip has the other answer"
        assert not frames[0].any(), "the first frame tells nothing"
        assert not frames[-1].any()
        assert all(not (mask[:, :half].any() and mask[:, half:].any()) for mask in frames), "never both: a still frame tells no order"
        assert answer_of(plan, "first_thing") == plan.objects[0].stamp.name
        assert sides.index("right" if sides[0] == "left" else "left") in range(4, 12), "both are long enough on screen to be met by four frames"


def test_colors_change_as_the_answer_says(plans: list[ClipPlan]) -> None:
    nearest = {rgb: name for name, rgb in COLOURS.items()}
    for plan in of(plans, "color"):
        named = [nearest[min(nearest, key=lambda rgb: sum((a - b) ** 2 for a, b in zip(rgb, colour, strict=True)))] for colour in plan.colours]
        assert named[0] == named[-1] == "white"
        order = list(dict.fromkeys(name for name in named if name != "white"))
        assert len(order) == 2
        assert order[0] == answer_of(plan, "first_color")
        assert all(f"{order[0]}" in caption and order[1] in caption for caption in plan.captions)
        assert all(moved.boxes == (moved.boxes[0],) * 16 for moved in plan.objects)


def test_numbers_add_up(plans: list[ClipPlan]) -> None:
    for plan in of(plans, "count"):
        there = [sum(moved.boxes[step] is not None for moved in plan.objects) for step in range(16)]
        assert there == sorted(there)
        assert there[0] == 0
        assert str(there[13]) == str(there[-1]) == answer_of(plan, "count")


def test_a_still_frame_hardly_tells_the_direction(plans: list[ClipPlan], stamps: list[Stamp]) -> None:
    many = of(plan_clips(stamps, split="train", count=2500, size=128, frames=16, rate=8, seed=1), "direction")
    across = [(plan, answer_of(plan, "direction") == "right") for plan in many if answer_of(plan, "direction") in ("left", "right")]
    for step, most in ((0, 0.78), (8, 0.6), (15, 0.78)):
        places = np.array([plan.objects[0].boxes[step][0] + plan.objects[0].boxes[step][2] / 2 for plan, _ in across])  # type: ignore[index]
        rightwards = np.array([right for _, right in across])
        best = max(max(np.mean((places > cut) == rightwards), np.mean((places <= cut) == rightwards)) for cut in range(0, 128, 2))
        assert best < most, (step, best)
    counts = []
    for right in (True, False):
        places = [box[0] + box[2] / 2 for plan, way in across if way is right for box in plan.objects[0].boxes if box]
        counts.append(np.histogram(places, bins=16, range=(0, 128))[0])
    assert (np.abs(counts[0] - counts[1]) < 0.25 * np.maximum(*counts) + 20).all(), "without its time, a still occurs in both directions alike"


def test_answers_cannot_be_guessed_from_the_question(plans: list[ClipPlan]) -> None:
    asked = defaultdict(list)
    for plan in plans:
        for question in plan.questions:
            asked[question.kind].append(question)
            assert question.answer == question.answer.lower()
    for kind, answers in (("direction", 4), ("first_side", 2), ("count", 4)):
        counts = Counter(q.answer for q in asked[kind])
        assert len(counts) == answers
        assert max(counts.values()) - min(counts.values()) <= 1, counts
    first_named = Counter()
    orders: dict[str, Counter[str]] = defaultdict(Counter)
    for question in asked["first_color"]:
        names = re.fullmatch(r"Which color comes first, (\w+) or (\w+)\?", question.question)
        assert names is not None
        first_named[names[1] == question.answer] += 1
        orders[question.question][question.answer] += 1
    assert first_named[True] == first_named[False]
    assert all(len(set(counts.values())) == 1 and len(counts) == 2 for counts in orders.values()), "each question has both answers equally often"
    for kind in ("first_side", "direction", "first_thing"):
        named_first = Counter(q.question.index(f" {q.answer}") < min(q.question.index(f" {w}") for w in words if w != q.answer)
                              for q in asked[kind] for words in [_choices(q.question)])
        assert abs(named_first[True] - named_first[False]) <= 4, (kind, named_first)


def _choices(question: str) -> tuple[str, str]:
    words = re.fullmatch(r".*?(?:on the|to the|move|first, the) (\w+) or (?:on the |to the |the )?(\w+)\?", question)
    assert words is not None, question
    return words[1], words[2]


def test_captions_say_the_answer(plans: list[ClipPlan]) -> None:
    numbers = {"1": r"\b(an?|one)\b", "2": "two", "3": "three", "4": "four"}
    for plan in plans:
        assert len(set(plan.captions)) == 3
        assert all(caption[0].isupper() and caption.endswith(".") for caption in plan.captions)
        for caption in plan.captions:
            if plan.kind == "count":
                assert re.search(numbers[answer_of(plan, "count")], caption.lower())
            else:
                kind = {"direction": "direction", "order": "first_side", "color": "first_color"}[plan.kind]
                assert answer_of(plan, kind) in caption.lower()


def test_boxes_are_where_things_are_drawn(plans: list[ClipPlan]) -> None:
    for plan in plans[:15]:
        things = described(plan)
        assert [thing["name"] for thing in things] == [moved.stamp.name for moved in plan.objects]
        for step, mask in enumerate(drawn(plan)):
            covered = np.zeros_like(mask)
            for thing in things:
                if thing["boxes"][step] is not None:
                    x, y, width, height = thing["boxes"][step]
                    assert 0 <= x < x + width <= plan.size
                    assert 0 <= y < y + height <= plan.size
                    covered[y : y + height, x : x + width] = True
            assert not (mask & ~covered).any()


def test_stamps_are_read_by_split_and_changes_are_noticed(tmp_path: Path) -> None:
    folder = write_stamps(tmp_path / "stamps", {"train": 4, "test": 3})
    found, licences = load_stamps(folder)
    assert {split: len(members) for split, members in found.items()} == {"train": 4, "test": 3}
    assert licences["key-00"] == "CC-BY-4.0"
    with Image.open(found["test"][0].path) as image:
        assert image.size == found["test"][0].size
    (folder / "key-00.png").unlink()
    with pytest.raises(DataError, match=r"missing key-00\.png"):
        load_stamps(folder)
    (folder / "stamps.json").write_text('{"no": "list"}')
    write_manifest(folder)
    with pytest.raises(DataError, match=r"holds no list of stamps in stamps\.json; give the folder that curate_image wrote"):
        load_stamps(folder)


def test_too_few_things_are_one_clear_error(stamps: list[Stamp]) -> None:
    with pytest.raises(DataError, match=r"curate_video\.clips\.count\.val = 5: the stamps of this split show only 2 different nouns"):
        plan_clips(stamps[:2], split="val", count=5, size=128, frames=16, rate=8, seed=0)
    assert plan_clips([], split="val", count=0, size=128, frames=16, rate=8, seed=0) == []


@pytest.mark.parametrize("frames", [8, 9, 24, 64])
def test_any_number_of_frames_shows_both_things_to_four_samples(stamps: list[Stamp], frames: int) -> None:
    met = [int((2 * index + 1) * frames / 8) for index in range(4)]
    for plan in of(plan_clips(stamps, split="train", count=60, size=64, frames=frames, rate=8, seed=5), "order"):
        for moved in plan.objects:
            assert any(moved.boxes[step] is not None for step in met)
