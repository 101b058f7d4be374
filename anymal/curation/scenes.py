"""Composed scenes: cut-out pictures on plain backgrounds, so that objects, boxes, counts, places and colours are known exactly.

Planning (names, places, captions, questions) is pure and cheap; `render` draws one plan. Verbs say only what is true of any drawing ("appears",
"is placed", "sits"), and answers are lower case and short, in the manner of VQA.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from anymal.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

    from anymal.curation.captions import Caption

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49), "yellow": (250, 222, 77), "green": (86, 171, 92), "blue": (66, 118, 214), "black": (28, 28, 30), "white": (250, 250, 250),
}
"""Of backgrounds: far from each other, for an encoder trained to tell things apart keeps little of color."""
LAYOUTS = ("single", "count", "pair", "count", "single", "pair", "group", "count", "pair", "group")
"""What the scenes show, in turn: one object, several of one kind, two beside or above each other, three or more kinds."""
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
RELATIONS = {"left": "to the left of", "right": "to the right of", "top": "above", "bottom": "below"}
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
MIN_CONTRAST = 70.0
"""Least distance of a stamp's mean colour from the background's (RGB, 0 to 441)."""
MAX_OBJECTS = 4
_TRIES = 60


@dataclass(frozen=True)
class Stamp:
    """A cut-out picture that scenes may use: its file (RGBA, trimmed), size in pixels, mean colour, and its name with its head noun."""

    key: str
    name: str
    head: str
    path: Path
    size: tuple[int, int]
    colour: tuple[float, float, float]


@dataclass(frozen=True)
class Placed:
    """One stamp in a scene; `box` is (x, y, width, height) in pixels."""

    stamp: Stamp
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Question:
    """A question with its one true answer; `kind` is presence, count, color, relation, side or object."""

    question: str
    answer: str
    kind: str


@dataclass(frozen=True)
class Scene:
    """A plan: everything that is true of the picture, before it is drawn. `shade` > 0 makes the background a gradient to a lighter tint."""

    key: str
    size: int
    colour: str
    rgb: tuple[int, int, int]
    shade: float
    objects: tuple[Placed, ...]
    captions: tuple[str, ...]
    questions: tuple[Question, ...] = field(default=())


def stamp_name(caption: Caption) -> str | None:
    """The name of a picture that can take part in a scene: its caption is an article and a noun phrase of at most three words ("A red apple.")."""
    from anymal.curation.captions import MASS_NOUNS

    match = re.fullmatch(r"(?:An?) ([A-Za-z]+(?:[ -][A-Za-z]+){0,2})\.", caption.text)
    if match is None or match[1].lower() != caption.phrase:
        return None
    last = re.split(r"[ -]", caption.phrase)[-1]
    return caption.phrase if last == caption.head and last not in MASS_NOUNS else None


def a(name: str) -> str:
    """A name with "a" or "an"."""
    import inflect

    return str(inflect.engine().a(name))


def plural(name: str) -> str:
    """A name in the plural."""
    import inflect

    return str(inflect.engine().plural(name))


def plan_scenes(stamps: Sequence[Stamp], *, split: str, count: int, size: int, max_objects: int, seed: int) -> list[Scene]:
    """Plan `count` scenes of one split from that split's stamps.

    The same arguments give the same scenes. Colours, counts and yes/no answers come in turn, so that a guess from the question alone gains nothing.

    Args:
        stamps: cut-out pictures with clear names.
        size: side of the square canvas in pixels.
        max_objects: most objects in a scene, 2 to 4.

    Raises:
        DataError: if there are too few different names to compose anything.
    """
    heads = {stamp.head for stamp in stamps}
    if count and len(heads) <= MAX_OBJECTS:
        raise DataError(f"curate_image.scenes: split {split} has pictures of only {len(heads)} different nouns to compose scenes from, at least "
                        f"{MAX_OBJECTS + 1} are needed; raise the split's fraction, add scene sources, or set its number of scenes to 0")
    ordered = sorted(stamps, key=lambda stamp: stamp.key)
    colours = list(COLOURS)
    turns: dict[str, int] = {}
    scenes = []
    for index in range(count):
        rng = random.Random(f"{seed}:{split}:{index}")  # noqa: S311 (reproducible on purpose)
        layout = LAYOUTS[index % len(LAYOUTS)]
        turn = turns[layout] = turns.get(layout, -1) + 1
        colour = colours[(index + index // len(LAYOUTS)) % len(colours)]
        rgb = tuple(min(255, max(0, channel + rng.randint(-8, 8))) for channel in COLOURS[colour])
        scenes.append(_plan(key=f"scene-{split}-{index:05d}", layout=layout, turn=turn, colour=colour, rgb=(rgb[0], rgb[1], rgb[2]), stamps=ordered,
                            size=size, max_objects=max_objects, rng=rng, ask_present=index % 2 == 0))
    return scenes


def _plan(*, key: str, layout: str, turn: int, colour: str, rgb: tuple[int, int, int], stamps: Sequence[Stamp], size: int, max_objects: int,
          rng: random.Random, ask_present: bool) -> Scene:
    shade = rng.choice((0.0, 0.0, 0.35))
    background = f"on {a(colour)} background"
    objects: tuple[Placed, ...]
    if layout == "single":
        chosen = _choose(stamps, 1, rgb, rng)
        side = ("left", "right", "top", "bottom")[turn % 4]
        objects = (_place(chosen[0], _half(side, size), rng, 0.4, 0.75),)
        captions, questions = _single(chosen[0].name, side, background, turn, rng)
    elif layout == "count":
        number = turn % max_objects + 1
        stamp = _choose(stamps, 1, rgb, rng)[0]
        objects = tuple(_place(stamp, cell, rng, 0.6, 0.85) for cell in rng.sample(_cells(size), number))
        captions, questions = _count(stamp.name, number, background, rng)
    elif layout == "pair":
        chosen = _choose(stamps, 2, rgb, rng)
        side = ("left", "right", "top", "bottom")[turn % 4]
        objects = (_place(chosen[0], _half(side, size), rng, 0.55, 0.85), _place(chosen[1], _half(OPPOSITE[side], size), rng, 0.55, 0.85))
        captions, questions = _pair(chosen[0].name, chosen[1].name, side, background, turn)
    else:
        number = 3 + turn % (max_objects - 2) if max_objects > 2 else 2
        chosen = _choose(stamps, number, rgb, rng)
        objects = tuple(_place(stamp, cell, rng, 0.65, 0.9) for stamp, cell in zip(chosen, rng.sample(_cells(size), number), strict=True))
        captions, questions = _group([stamp.name for stamp in chosen], background, rng)
    present = [placed.stamp for placed in objects]
    questions.append(_presence(present, stamps, ask_present, rng))
    questions.append(Question("What color is the background?", colour, "color"))
    return Scene(key, size, colour, rgb, shade, objects, tuple(captions), tuple(questions))


def _choose(stamps: Sequence[Stamp], number: int, rgb: tuple[int, int, int], rng: random.Random) -> list[Stamp]:
    """Stamps of different head nouns that stand out from the background; the last resort is a weaker contrast, never a repeated noun."""
    chosen: list[Stamp] = []
    for attempt in range(_TRIES * 20):
        stamp = rng.choice(stamps)
        contrast = sum((a - b) ** 2 for a, b in zip(stamp.colour, rgb, strict=True)) ** 0.5
        if any(stamp.head == other.head for other in chosen) or (contrast < MIN_CONTRAST and attempt < _TRIES * 10):
            continue
        chosen.append(stamp)
        if len(chosen) == number:
            break
    assert len(chosen) == number, "plan_scenes checked that there are enough nouns"
    return chosen


Area = tuple[int, int, int, int]


def _half(side: str, size: int) -> Area:
    half = size // 2
    return {"left": (0, 0, half, size), "right": (half, 0, half, size), "top": (0, 0, size, half), "bottom": (0, half, size, half)}[side]


def _cells(size: int) -> list[Area]:
    half = size // 2
    return [(x, y, half, half) for y in (0, half) for x in (0, half)]


def _place(stamp: Stamp, area: Area, rng: random.Random, low: float, high: float) -> Placed:
    """Put a stamp somewhere inside an area, its size a random share (low to high) of the largest that fits; areas do not overlap, so boxes do not."""
    x, y, width, height = area
    scale = min(width / stamp.size[0], height / stamp.size[1]) * rng.uniform(low, high)
    w, h = max(1, round(stamp.size[0] * scale)), max(1, round(stamp.size[1] * scale))
    return Placed(stamp, (x + rng.randint(0, width - w), y + rng.randint(0, height - h), w, h))


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _single(name: str, side: str, background: str, turn: int, rng: random.Random) -> tuple[list[str], list[Question]]:
    place = {"left": "on the left side", "right": "on the right side", "top": "at the top", "bottom": "at the bottom"}[side]
    captions = [
        _sentence(f"{a(name)} {rng.choice(('appears', 'sits', 'is placed'))} {background}"),
        _sentence(f"{a(name)} is placed {place} of the picture"),
        _sentence(f"the picture shows {a(name)} placed {background}"),
    ]
    question = f"Is the {name} on the left or on the right side of the picture?" if side in ("left", "right") else \
        f"Is the {name} at the top or at the bottom of the picture?"
    asked = Question("What is in the picture?", name, "object") if turn % 8 < 4 else Question(question, side, "side")
    return captions, [asked, Question(question, side, "side")] if asked.kind == "object" else [asked]


def _count(name: str, number: int, background: str, rng: random.Random) -> tuple[list[str], list[Question]]:
    many = a(name) if number == 1 else f"{NUMBERS[number]} {plural(name)}"
    verbs = ("appears", "sits", "is placed") if number == 1 else ("appear", "sit", "are placed")
    first, second = rng.sample(verbs, 2)
    be = "is" if number == 1 else "are"
    captions = [
        _sentence(f"{many} {first} {background}"),
        _sentence(f"{background}, {many} {second}" if not second.endswith("placed") else f"{background}, {many} can be seen"),
        _sentence(f"there {be} {many} placed {background}"),
    ]
    return captions, [Question(f"How many {plural(name)} are there?", str(number), "count")]


def _pair(first: str, second: str, side: str, background: str, turn: int) -> tuple[list[str], list[Question]]:
    captions = [
        _sentence(f"{a(first)} sits {RELATIONS[side]} {a(second)} {background}"),
        _sentence(f"{a(second)} is placed {RELATIONS[OPPOSITE[side]]} {a(first)}"),
        _sentence(f"{background}, {a(first)} appears {RELATIONS[side]} {a(second)}"),
    ]
    if turn // 4 % 2 == 0:
        asked = Question(f"What is {RELATIONS[side]} the {second}?", first, "relation")
    else:
        asked = Question(f"What is {RELATIONS[OPPOSITE[side]]} the {first}?", second, "relation")
    words = ("on the left or on the right side of", "left", "right") if side in ("left", "right") else ("above or below", "above", "below")
    answer = words[1] if side in ("left", "top") else words[2]
    return captions, [asked, Question(f"Is the {first} {words[0]} the {second}?", answer, "side")]


def _group(names: list[str], background: str, rng: random.Random) -> tuple[list[str], list[Question]]:
    listed = ", ".join(map(a, names[:-1])) + f" and {a(names[-1])}"
    shuffled = rng.sample(names, len(names))
    listed_again = ", ".join(map(a, shuffled[:-1])) + f" and {a(shuffled[-1])}"
    captions = [
        _sentence(f"{listed} are placed {background}"),
        _sentence(f"{listed_again} appear together {background}"),
        _sentence(f"{NUMBERS[len(names)]} things sit {background}: {listed}"),
    ]
    return captions, []


def _presence(present: Sequence[Stamp], stamps: Sequence[Stamp], ask_present: bool, rng: random.Random) -> Question:
    """A yes/no question; the absent thing is drawn from the same vocabulary as the present ones, so its name gives nothing away."""
    if ask_present:
        return Question(f"Is there {a(rng.choice(present).name)} in the picture?", "yes", "presence")
    heads = {stamp.head for stamp in present}
    absent = [stamp for stamp in stamps if stamp.head not in heads and not heads & set(stamp.name.split())]
    return Question(f"Is there {a(rng.choice(absent).name)} in the picture?", "no", "presence")


def render(scene: Scene) -> Image.Image:
    """Draw a plan: RGB, `size` × `size` pixels."""
    import numpy as np
    from PIL import Image

    base = np.broadcast_to(np.array(scene.rgb, dtype=np.float32), (scene.size, scene.size, 3))
    ramp = np.linspace(0.0, scene.shade, scene.size, dtype=np.float32)[:, None, None]
    canvas = Image.fromarray((base + (255.0 - base) * ramp).round().astype(np.uint8)).convert("RGBA")
    for placed in scene.objects:
        x, y, width, height = placed.box
        with Image.open(placed.stamp.path) as stamp:
            drawn = stamp.convert("RGBA").convert("RGBa").resize((width, height), Image.Resampling.LANCZOS).convert("RGBA")
        canvas.alpha_composite(drawn, (x, y))
    return canvas.convert("RGB")
