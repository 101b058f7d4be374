"""Which annotated things a text mentions: names in singular and plural, in a text cut into words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from anymal.synthesis.descriptions import Description

IRREGULAR = {"mouse": "mice", "goose": "geese", "man": "men", "woman": "women", "child": "children", "person": "people", "foot": "feet",
             "tooth": "teeth", "leaf": "leaves", "knife": "knives", "wolf": "wolves", "ox": "oxen", "calf": "calves", "scarf": "scarves",
             "cactus": "cacti", "shelf": "shelves", "loaf": "loaves"}
UNCHANGED = {"sheep", "fish", "deer", "moose", "aircraft", "bison", "squid", "shrimp"}

Words = tuple[str, ...]


def words(text: str) -> Words:
    """Lower-case words and numbers; a hyphen parts words."""
    return tuple(re.findall(r"[a-z0-9]+(?:\.[0-9]+)?(?:'[a-z]+)?", text.lower().replace("’", "'")))


@cache
def known_words() -> Mapping[str, Any]:
    """`words.yaml`: sets of words, numbers, and compiled patterns."""
    from ruamel.yaml import YAML

    document = YAML(typ="safe", pure=True).load((Path(__file__).parent / "words.yaml").read_text(encoding="utf-8"))
    return {"numbers": document["numbers"], "colors": frozenset(document["colors"].split()), "common": frozenset(document["common"].split()),
            "patterns": {name: [re.compile(pattern) for pattern in found] for name, found in document["patterns"].items()}}


def number(word: str) -> int | None:
    """The number that a word or its digits mean."""
    found: int | None = known_words()["numbers"].get(word)
    return int(word) if found is None and word.isdecimal() else found


def plurals(name: Words) -> set[Words]:
    """What the plural of a name may look like."""
    *before, last = name
    if last in UNCHANGED:
        return {name}
    ends = {IRREGULAR[last]} if last in IRREGULAR else {f"{last}s"}
    if re.search(r"(s|x|z|ch|sh|o)$", last):
        ends.add(f"{last}es")
    if re.search(r"[^aeiou]y$", last):
        ends.add(f"{last[:-1]}ies")
    if last.endswith(("man", "fish")):
        ends |= {f"{last[:-3]}men"} if last.endswith("man") else {last}
    return {(*before, end) for end in ends}


def contains(whole: Words, part: Words) -> bool:
    """Whether `part` stands somewhere in `whole`."""
    return any(whole[start : start + len(part)] == part for start in range(len(whole) - len(part) + 1))


@dataclass(frozen=True)
class Mention:
    """A name in a text; `name` is None for one that the sample does not have. `stop` is the index after its last word."""

    name: Words | None
    start: int
    stop: int
    plural: bool | None
    """None where singular and plural look the same."""


Forms = Mapping[Words, tuple[Words, bool | None]]
"""What a name looks like in a text -> the name, and whether that is its plural."""


class Lexicon:
    """All names of objects and labels in a data set, so that one that a sample does not have is noticed."""

    def __init__(self, names: Iterable[str]) -> None:
        common = known_words()["common"]
        self.names = frozenset(found for name in names if (found := words(name)) and not common.issuperset(found))
        self.forms: Forms = {form: (name, plural) for name in sorted(self.names) for form, plural in _forms(name).items()}


def _forms(name: Words) -> dict[Words, bool | None]:
    many = plurals(name)
    return {name: None if name in many else False} | {form: True for form in many if form != name}


class Facts:
    """What may be said of one sample: its names, how many of each, where they are, and every word of its annotation."""

    def __init__(self, description: Description, lexicon: Lexicon) -> None:
        self.description = description
        self.boxes: dict[Words, list[Sequence[tuple[float, ...]]]] = {}
        """Name -> the boxes of each thing of that name."""
        for thing in description.things:
            self.boxes.setdefault(words(thing.name), []).append(thing.boxes)
        self.counts = Counter({name: len(boxes) for name, boxes in self.boxes.items()})
        self.captions = tuple(words(caption) for caption in description.captions)
        said = [*self.captions, *self.boxes, *([words(description.label)] if description.label else [])]
        self.annotation = frozenset(word for part in said for word in part)
        self._sentences, self._lexicon = said, lexicon
        heads = Counter(name[-1:] for name in self.boxes)
        self._forms: dict[Words, tuple[Words, bool | None]] = {}
        label = [words(description.label)] if description.label and not known_words()["common"].issuperset(words(description.label)) else []
        for name in [*label, *self.boxes]:
            aliases = [name[-1:]] if heads[name[-1:]] == 1 else []  # "the cane" is the candy cane where there is no other cane
            for alias in [*aliases, name]:
                self._forms |= {form: (name, plural) for form, plural in _forms(alias).items()}

    @cached_property
    def supported(self) -> frozenset[str]:
        """Words that the annotation holds, in singular and plural."""
        others = {form[-1] for word in self.annotation for form in plurals((word,))}
        singular = {word[:-1] for word in self.annotation if word.endswith("s")} | {word[:-2] for word in self.annotation if word.endswith("es")}
        return self.annotation | others | singular

    def says(self, part: Words) -> bool:
        """Whether a caption, a name or the label holds these words in this order."""
        return any(contains(sentence, part) for sentence in self._sentences)

    def _said_in_any_form(self, name: Words) -> bool:
        return any(self.says(form) for form in _forms(name))

    def mentions(self, text: Words) -> list[Mention]:
        """The names in a text from left to right, the longest where several begin alike; what only the captions name is none."""
        found: list[Mention] = []
        longest = max(map(len, [*self._forms, *self._lexicon.forms]), default=0)
        index = 0
        while index < len(text):
            for length in range(min(longest, len(text) - index), 0, -1):
                part = text[index : index + length]
                if part in self._forms:
                    name, plural = self._forms[part]
                    found.append(Mention(name, index, index + length, plural))
                elif part in self._lexicon.forms and not self._said_in_any_form(self._lexicon.forms[part][0]):
                    found.append(Mention(None, index, index + length, self._lexicon.forms[part][1]))
                else:
                    continue
                index += length - 1
                break
            index += 1
        return found
