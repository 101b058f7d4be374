"""Composed clips: cut-out pictures that move, come and go on plain backgrounds, so that direction, order and number are known exactly.

The questions are about time. Every clip played backwards is as likely as itself, with the other answer: a still frame without its time tells
nothing, nor do the first and the last frame of clips about order (they show neither thing, or a white background). Where a thing starts
and where it ends overlap for both directions. Planning is pure and cheap; `render` draws one plan.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from anymal.curation.scenes import COLOURS, MIN_CONTRAST, NUMBERS, Question, Stamp, a, plural
from anymal.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

LAYOUTS = ("direction", "order", "direction", "color", "count")
"""What clips show, in turn: one thing moving, two things one after the other, a background that changes, things adding up."""
DIRECTIONS = {"left": (-1, 0, "to the left"), "right": (1, 0, "to the right"), "up": (0, -1, "up"), "down": (0, 1, "down")}
TURNS = sorted(set(COLOURS) - {"white"})
"""Colours that a background turns to; it is white before and after."""
MIN_HEADS = 3
"""Different nouns that a split needs: two in a clip, and a choice."""
MIN_FRAMES = 8
CLOSED = ("direction", "first_side", "first_color", "count")
"""Kinds of questions with few answers, which must be equally frequent."""
_TRIES = 400
_WHITE = (255, 255, 255)

Box = tuple[int, int, int, int]
RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Moved:
    """One stamp in a clip: its box (x, y, width, height; may reach over the edge) in each frame, None where it is not there."""

    stamp: Stamp
    boxes: tuple[Box | None, ...]


@dataclass(frozen=True)
class ClipPlan:
    """Everything that is true of a clip, before it is drawn; `colours` are the backgrounds of its frames."""

    key: str
    split: str
    kind: str
    size: int
    rate: int
    colours: tuple[RGB, ...]
    objects: tuple[Moved, ...]
    captions: tuple[str, ...]
    questions: tuple[Question, ...]


def plan_clips(stamps: Sequence[Stamp], *, split: str, count: int, size: int, frames: int, rate: int, seed: int) -> list[ClipPlan]:
    """Plan `count` clips of one split from that split's stamps; the same arguments give the same clips.

    Answers, and the order in which a question names them, come in turn: a guess from the question alone gains nothing.

    Args:
        size: side of the square picture in pixels.
        frames: per clip, at least `MIN_FRAMES`.
        rate: frames a second.

    Raises:
        DataError: if there are too few different things.
    """
    heads = {stamp.head for stamp in stamps}
    if count and len(heads) < MIN_HEADS:
        raise DataError(f"curate_video.clips.count.{split} = {count}: the stamps of this split show only {len(heads)} different nouns, at least "
                        f"{MIN_HEADS} are needed; give curate_image more pictures with scenes = true, or set the count to 0")
    ordered = sorted(stamps, key=lambda stamp: stamp.key)
    colours = sorted(COLOURS)
    pairs = list(combinations(TURNS, 2))
    random.Random(f"{seed}:{split}:pairs").shuffle(pairs)  # noqa: S311 (reproducible on purpose)
    turns: dict[str, int] = {}
    plans = []
    for index in range(count):
        rng = random.Random(f"{seed}:clip:{split}:{index}")  # noqa: S311
        layout = LAYOUTS[index % len(LAYOUTS)]
        turn = turns[layout] = turns.get(layout, -1) + 1
        draft = _Draft(ordered, rng, turn, size, frames, colours[(index + index // len(LAYOUTS)) % len(colours)], pairs[turn // 4 % len(pairs)])
        shades, objects, captions, questions = _LAYOUTS[layout](draft)
        plans.append(ClipPlan(f"clip-{split}-{index:05d}", split, layout, size, rate, shades, objects, tuple(map(_sentence, captions)), questions))
    return plans


@dataclass(frozen=True)
class _Draft:
    """What a layout is made from. `turn` counts the clips of the layout; `pair` are the colours of a changing background."""

    stamps: Sequence[Stamp]
    rng: random.Random
    turn: int
    size: int
    frames: int
    colour: str
    pair: tuple[str, str]

    def shade(self, colour: str) -> RGB:
        red, green, blue = (min(255, max(0, channel + self.rng.randint(-8, 8))) for channel in COLOURS[colour])
        return red, green, blue

    def choose(self, number: int, *backgrounds: RGB) -> list[Stamp]:
        """Stamps of different nouns that stand out from the backgrounds; the last resort is a weaker contrast, never a repeated noun."""
        chosen: list[Stamp] = []
        attempt = 0
        while len(chosen) < number:
            attempt += 1
            stamp = self.rng.choice(self.stamps)
            contrast = min(sum((x - y) ** 2 for x, y in zip(stamp.colour, rgb, strict=True)) ** 0.5 for rgb in backgrounds)
            if all(stamp.head != other.head for other in chosen) and (contrast >= MIN_CONTRAST or attempt > _TRIES):
                chosen.append(stamp)
        return chosen

    def stages(self) -> tuple[range, range]:
        """Two spans of frames one after the other, a little empty time before and after: backwards they are as likely."""
        rest = max(1, self.frames * 3 // 16)
        middle = self.frames // 2 + self.rng.randint(-(self.frames // 16), self.frames // 16)
        return range(self.rng.randint(1, rest), middle), range(middle, self.frames - self.rng.randint(1, rest))


Layout = tuple[tuple[RGB, ...], tuple[Moved, ...], tuple[str, ...], tuple[Question, ...]]


def _direction(draft: _Draft) -> Layout:
    """One thing goes straight in one of four directions, over a quarter to a third of the picture; up to half of it may be out of sight."""
    rng, size, last = draft.rng, draft.size, draft.frames - 1
    direction = list(DIRECTIONS)[draft.turn % 4]
    across, down, words = DIRECTIONS[direction]
    rgb = draft.shade(draft.colour)
    stamp = draft.choose(1, rgb)[0]
    width, height = _fit(stamp, size * rng.uniform(0.28, 0.42))
    way = rng.uniform(0.25, 0.35)
    # The middle of the way is drawn alike for both directions, from all places that keep the centre in the picture.
    middle = rng.uniform(way / 2, 1 - way / 2)
    path = [(middle + (step / last - 0.5) * way * (across + down)) * size for step in range(draft.frames)]
    beside = rng.uniform(height / 2, size - height / 2) if across else rng.uniform(width / 2, size - width / 2)
    centres = [(moment, beside) if across else (beside, moment) for moment in path]
    boxes = tuple((round(x - width / 2), round(y - height / 2), width, height) for x, y in centres)
    named = ("left", "right") if across else ("up", "down")
    first, second = named if draft.turn // 4 % 2 == 0 else named[::-1]
    question = f"Does the {stamp.name} move to the {first} or to the {second}?" if across else f"Does the {stamp.name} move {first} or {second}?"
    background = f"on {a(draft.colour)} background"
    captions = (f"{a(stamp.name)} moves {words} {background}", f"{background}, {a(stamp.name)} is moving {words}",
                f"the video shows {a(stamp.name)} that moves {words}")
    extra = Question("What moves in the video?", stamp.name, "object") if draft.turn // 8 % 2 == 0 else _background(draft.colour)
    return (rgb,) * draft.frames, (Moved(stamp, boxes),), captions, (Question(question, direction, "direction"), extra)


def _order(draft: _Draft) -> Layout:
    """Two things, one left and one right: the first comes and goes, then the second."""
    rgb = draft.shade(draft.colour)
    things = draft.choose(2, rgb)
    sides = ("left", "right") if draft.turn % 2 == 0 else ("right", "left")
    objects = []
    for stamp, side, span in zip(things, sides, draft.stages(), strict=True):
        half = draft.size // 2
        box = _place(stamp, (0 if side == "left" else half, 0, half, draft.size), draft.rng, 0.55, 0.85)
        objects.append(Moved(stamp, tuple(box if step in span else None for step in range(draft.frames))))
    first, second = (stamp.name for stamp in things)
    background = f"on {a(draft.colour)} background"
    captions = (f"first {a(first)} appears on the {sides[0]}, then {a(second)} appears on the {sides[1]}",
                f"{a(first)} on the {sides[0]} is followed by {a(second)} on the {sides[1]} {background}",
                f"{background}, {a(first)} appears on the {sides[0]} before {a(second)} appears on the {sides[1]}")
    named = ("left", "right") if draft.turn // 2 % 2 == 0 else ("right", "left")
    things_named = (first, second) if draft.turn // 4 % 2 == 0 else (second, first)
    questions = (Question(f"Is the first thing on the {named[0]} or on the {named[1]}?", sides[0], "first_side"),
                 Question(f"What appears first, the {things_named[0]} or the {things_named[1]}?", first, "first_thing"))
    return (rgb,) * draft.frames, tuple(objects), captions, questions


def _color(draft: _Draft) -> Layout:
    """The background turns from white to one colour, to another, and back, behind a thing that stays."""
    first, second = draft.pair if draft.turn % 2 == 0 else draft.pair[::-1]
    named = draft.pair if draft.turn // 2 % 2 == 0 else draft.pair[::-1]
    shades = draft.shade(first), draft.shade(second)
    spans = draft.stages()
    stamp = draft.choose(1, *shades)[0]
    box = _place(stamp, (0, 0, draft.size, draft.size), draft.rng, 0.35, 0.6)
    colours = tuple(shades[0] if step in spans[0] else shades[1] if step in spans[1] else _WHITE for step in range(draft.frames))
    captions = (f"the background turns {first} and then {second} behind {a(stamp.name)}",
                f"behind {a(stamp.name)}, {first} comes first and {second} comes after it",
                f"{a(stamp.name)} sits on a background that turns {first}, then {second}")
    questions = (Question(f"Which color comes first, {named[0]} or {named[1]}?", first, "first_color"),
                 Question("What is in the video?", stamp.name, "object"))
    return colours, (Moved(stamp, (box,) * draft.frames),), captions, questions


def _count(draft: _Draft) -> Layout:
    """One to four of a kind appear one after another, and stay."""
    rng, half = draft.rng, draft.size // 2
    number = draft.turn % 4 + 1
    rgb = draft.shade(draft.colour)
    stamp = draft.choose(1, rgb)[0]
    cells = rng.sample([(x, y, half, half) for y in (0, half) for x in (0, half)], number)
    starts = sorted(rng.sample(range(1, draft.frames * 3 // 4 + 1), number))
    objects = []
    for cell, start in zip(cells, starts, strict=True):
        box = _place(stamp, cell, rng, 0.6, 0.85)
        objects.append(Moved(stamp, tuple(box if step >= start else None for step in range(draft.frames))))
    background = f"on {a(draft.colour)} background"
    if number == 1:
        captions: tuple[str, ...] = (f"{a(stamp.name)} appears {background}", f"only one {stamp.name} appears in the video",
                                     f"{background}, one {stamp.name} pops up")
    else:
        many = f"{NUMBERS[number]} {plural(stamp.name)}"
        captions = (f"{many} appear one after another {background}", f"one by one, {many} appear in the video",
                    f"{background}, {many} pop up one after the other")
    return (rgb,) * draft.frames, tuple(objects), captions, (Question("How many things appear?", str(number), "count"), _background(draft.colour))


_LAYOUTS: dict[str, Callable[[_Draft], Layout]] = {"direction": _direction, "order": _order, "color": _color, "count": _count}


def _background(colour: str) -> Question:
    return Question("What color is the background?", colour, "color")


def _fit(stamp: Stamp, side: float) -> tuple[int, int]:
    """Width and height of a stamp whose longer side is `side` pixels."""
    scale = side / max(stamp.size)
    return max(1, round(stamp.size[0] * scale)), max(1, round(stamp.size[1] * scale))


def _place(stamp: Stamp, area: Box, rng: random.Random, low: float, high: float) -> Box:
    """Somewhere inside an area, a random share (low to high) of the largest size that fits."""
    x, y, width, height = area
    scale = min(width / stamp.size[0], height / stamp.size[1]) * rng.uniform(low, high)
    w, h = max(1, round(stamp.size[0] * scale)), max(1, round(stamp.size[1] * scale))
    return x + rng.randint(0, width - w), y + rng.randint(0, height - h), w, h


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def render(plan: ClipPlan) -> Iterator[Image.Image]:
    """Draw a plan's frames: RGB, `size` × `size` pixels, one at a time."""
    from PIL import Image

    cutouts: list[Image.Image] = []
    for moved in plan.objects:
        width, height = next(box[2:] for box in moved.boxes if box is not None)
        with Image.open(moved.stamp.path) as stamp:
            cutouts.append(stamp.convert("RGBA").convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA"))
    for step, rgb in enumerate(plan.colours):
        canvas = Image.new("RGB", (plan.size, plan.size), rgb)
        for moved, cutout in zip(plan.objects, cutouts, strict=True):
            box = moved.boxes[step]
            if box is not None:
                canvas.paste(cutout, box[:2], cutout)
        yield canvas


def described(plan: ClipPlan) -> list[dict[str, Any]]:
    """The things of a clip for its metadata: name, and its visible box in each frame (None where there is none)."""
    def visible(box: Box | None) -> list[int] | None:
        if box is None:
            return None
        left, top = max(0, box[0]), max(0, box[1])
        return [left, top, min(plan.size, box[0] + box[2]) - left, min(plan.size, box[1] + box[3]) - top]

    return [{"name": moved.stamp.name, "boxes": [visible(box) for box in moved.boxes]} for moved in plan.objects]
