"""Whether what a question and its answer say of places, directions and sizes agrees with the boxes, or without boxes with the captions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from anymal.synthesis.words import Facts, Mention, Words

Boxes = Sequence[tuple[float, ...]]

RELATIONS: dict[Words, str] = {
    ("left", "of"): "left", ("right", "of"): "right", ("left", "from"): "left", ("right", "from"): "right", ("above",): "above", ("over",): "above",
    ("on", "top", "of"): "above", ("higher", "than"): "above", ("below",): "below", ("under",): "below", ("underneath",): "below",
    ("beneath",): "below", ("lower", "than"): "below", ("larger", "than"): "larger", ("bigger", "than"): "larger", ("smaller", "than"): "smaller",
}  # fmt: skip
SIDES: dict[str, str] = {"left": "left", "right": "right", "top": "top", "upper": "top", "bottom": "bottom", "lower": "bottom", "center": "center",
                         "centre": "center", "middle": "center"}
SUPERLATIVES: dict[Words, str] = {
    ("further", "left"): "left", ("further", "to", "the", "left"): "left", ("further", "right"): "right", ("further", "to", "the", "right"): "right",
    ("leftmost",): "left", ("rightmost",): "right", ("higher",): "above", ("highest",): "above", ("topmost",): "above", ("lower", "down"): "below",
    ("lowest",): "below", ("larger",): "larger", ("largest",): "larger", ("bigger",): "larger", ("biggest",): "larger", ("smaller",): "smaller",
    ("smallest",): "smaller",
}  # fmt: skip
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1), "upwards": (1, -1), "downwards": (1, 1)}
"""Word -> axis and sign of the way."""
MOTIONS = {"move", "moves", "moving", "moved", "slide", "slides", "sliding", "go", "goes", "going", "travel", "travels", "travelling"}
NEIGHBOURS: tuple[Words, ...] = (
    ("next", "to"), ("beside",), ("near",), ("behind",), ("in", "front", "of"), ("between",), ("inside",), ("in",), ("on",),
)  # fmt: skip
"""Relations that boxes do not tell: only a caption can."""
PLACE_WORDS = {*SIDES, "above", "below", "under", "underneath", "beneath", "leftmost", "rightmost", "topmost", "higher", "highest", "lowest", "over",
               "larger", "largest", "bigger", "biggest", "smaller", "smallest"}
ARTICLES = {"the", "a", "an", "its", "their", "both", "each", "all"}
CENTRAL = 0.2
"""How far from the middle, as a share of the side, a thing in the center may be."""


@dataclass(frozen=True)
class Claim:
    """`subject` is somewhere: beside `object`, on a side of the picture, or on its way; None is what is asked for."""

    kind: str
    what: str
    subject: Words | None
    object: Words | None = None


def disagreement(question: Words, answer: Words, facts: Facts) -> str | None:
    """What a pair says of places and the annotation does not; None where all of it is right or nothing is said."""
    spoken = [word for word in (*question, *answer) if word in PLACE_WORDS]
    unsaid = _untold(question, facts) or _untold(answer, facts)
    if unsaid or not spoken:
        return unsaid
    if not facts.boxes:
        lacking = sorted({word for word in spoken if word not in facts.annotation})
        return f"no caption says '{lacking[0]}'" if lacking else None
    asked = list(_claims(question, facts, None))
    yes_or_no = answer[:1] in (("yes",), ("no",))
    wrong = _wrong_verdict(question, answer, asked, facts) if yes_or_no else None
    if wrong is not None:
        return wrong
    about = next((mention.name for mention in facts.mentions(question) if mention.name), None)
    said = list(_claims(answer[yes_or_no:], facts, about))
    if not yes_or_no and "or" not in question:
        named = next((mention.name for mention in facts.mentions(answer) if mention.name), None)
        said += [claim if claim.subject else Claim(claim.kind, claim.what, named, claim.object) for claim in asked]
    for claim in said:
        if claim.subject is None:
            return f"nothing known is said to be '{claim.what}'"
        if not _holds(claim, facts):
            return _shown(claim)
    return None


def _wrong_verdict(question: Words, answer: Words, asked: Sequence[Claim], facts: Facts) -> str | None:
    """What is wrong with a yes or no to the places that a question names."""
    if "or" in question or any(word in ("not", "no") or word.endswith("n't") for word in answer[1:]):
        return "a denial, or a yes to one of two"
    if any(claim.subject is None for claim in asked):
        return "asks for the place of nothing"
    if asked and all(_holds(claim, facts) for claim in asked) != (answer[0] == "yes"):
        return f"'{answer[0]}' to {_shown(asked[0])}"
    return None


def _untold(text: Words, facts: Facts) -> str | None:
    """A relation to a present thing that no box can show, and no caption has."""
    for mention in facts.mentions(text):
        start = mention.start - (text[mention.start - 1 : mention.start] != () and text[mention.start - 1] in ARTICLES)
        for relation in NEIGHBOURS:
            # "on top of" and the like end otherwise, and are looked at with the boxes.
            if text[max(0, start - len(relation)) : start] == relation and not _told(relation, text[mention.start : mention.stop], facts):
                return f"no caption has '{' '.join((*relation, *text[mention.start : mention.stop]))}'"
    return None


def _told(relation: Words, name: Words, facts: Facts) -> bool:
    return any(facts.says((*relation, *article, *name)) for article in ((), *((word,) for word in ARTICLES)))


def _claims(text: Words, facts: Facts, about: Words | None) -> Iterator[Claim]:
    """What a text says of places; `about` is what it speaks of when it names nothing."""
    mentions = facts.mentions(text)
    index = 0
    while index < len(text):
        step = 1
        before = [mention for mention in mentions if mention.stop <= index]
        relation = _starts(text, index, RELATIONS)
        superlative = _starts(text, index, SUPERLATIVES)
        moving = text[index] in DIRECTIONS and any(word in MOTIONS for word in text[max(0, index - 4) : index])
        if relation:
            after = next((mention for mention in mentions if index < mention.start <= index + len(relation) + 1), None)
            if after is not None:
                yield Claim("relation", RELATIONS[relation], _subject(before, about, after.name), after.name)
                index = after.start
                continue
            for side in (word for word in relation if word in SIDES):  # "on top of the picture"
                yield Claim("side", SIDES[side], _subject(before, about, None))
            step = len(relation)
        elif superlative:
            yield Claim("most", SUPERLATIVES[superlative], _subject(before, about, None))
            step = len(superlative)
        elif moving:
            yield Claim("way", text[index], _subject(before, about, None))
        elif text[index] in SIDES and "or" not in text:
            following = next((mention.name for mention in mentions if mention.start > index), None)
            yield Claim("side", SIDES[text[index]], _subject(before, about, None) or following)
        index += step


def _starts(text: Words, index: int, phrases: dict[Words, str]) -> Words | None:
    found = [phrase for phrase in phrases if text[index : index + len(phrase)] == phrase]
    return max(found, key=len, default=None)


def _subject(before: Sequence[Mention], about: Words | None, other: Words | None) -> Words | None:
    """What a claim speaks of: the last thing named before it, else what the question is about, unless that is the other side of it."""
    if before:
        return before[-1].name
    return about if about != other else None


def _holds(claim: Claim, facts: Facts) -> bool:
    """Whether a claim is true of all things of that name, at each moment that shows them."""
    subjects = facts.boxes.get(claim.subject or (), [])
    if claim.kind == "most":
        others = [boxes for name, things in facts.boxes.items() if name != claim.subject for boxes in things]
        return bool(subjects) and bool(others) and all(_beside(claim.what, one, other) for one, other in product(subjects, others))
    if claim.kind == "relation":
        objects = facts.boxes.get(claim.object or (), [])
        known = bool(subjects) and bool(objects) and claim.subject != claim.object
        return known and all(_beside(claim.what, one, other) for one, other in product(subjects, objects))
    if claim.kind == "way":
        axis, sign = DIRECTIONS[claim.what]
        return bool(subjects) and all((_middle(boxes[-1])[axis] - _middle(boxes[0])[axis]) * sign > 0.02 for boxes in subjects)
    return bool(subjects) and all(_on_side(claim.what, box) for boxes in subjects for box in boxes)


COMPARISONS: dict[str, Callable[[tuple[float, ...], tuple[float, ...]], bool]] = {
    "left": lambda one, other: _middle(one)[0] < _middle(other)[0], "right": lambda one, other: _middle(one)[0] > _middle(other)[0],
    "above": lambda one, other: _middle(one)[1] < _middle(other)[1], "below": lambda one, other: _middle(one)[1] > _middle(other)[1],
    "larger": lambda one, other: _area(one) > 1.1 * _area(other), "smaller": lambda one, other: 1.1 * _area(one) < _area(other),
}  # fmt: skip


def _beside(what: str, one: Boxes, other: Boxes) -> bool:
    return all(COMPARISONS[what](first, second) for first, second in product(one, other))


def _on_side(what: str, box: tuple[float, ...]) -> bool:
    x, y = _middle(box)
    if what == "center":
        return abs(x - 0.5) < CENTRAL and abs(y - 0.5) < CENTRAL
    return {"left": x < 0.5, "right": x > 0.5, "top": y < 0.5, "bottom": y > 0.5}[what]


def _middle(box: tuple[float, ...]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _area(box: tuple[float, ...]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _shown(claim: Claim) -> str:
    subject, other = (" ".join(name) if name else "" for name in (claim.subject, claim.object))
    return " ".join(part for part in (subject, "moves" if claim.kind == "way" else "is", claim.what, other) if part)
