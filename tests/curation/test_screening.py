"""What a safety classifier finds is left out with its pair, counted by category, and nothing else changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

from anymal.curation.drops import Drop
from anymal.curation.screening import REASONS, count_harmful, drop_harmful


class Words:
    """Finds what is named by a word."""

    def __init__(self):
        self.asked = []

    def texts(self, texts):
        self.asked.append(("texts", len(texts)))
        return ["weapons" if "gun" in text else None for text in texts]

    def pictures(self, paths):
        self.asked.append(("pictures", len(paths)))
        return ["violence" if "skull" in path.name else None for path in paths]

    def pairs(self, paths, texts):
        self.asked.append(("pairs", len(paths)))
        return ["hate" if "flag" in path.name and "yours" in text else None for path, text in zip(paths, texts, strict=True)]


def member(name, text, drop=None):
    return SimpleNamespace(caption=SimpleNamespace(text=text), picture=SimpleNamespace(jpeg=Path(f"{name}.jpg")), drop=drop)


def test_each_check_sees_what_the_one_before_left():
    members = [member("tool", "A gun."), member("skull", "A bone."), member("flag", "This is yours."), member("flag", "A flag."),
               member("old", "A gun.", Drop("too_small"))]
    screen = Words()
    drop_harmful(members, screen)
    assert [m.drop for m in members] == [Drop("harmful_text", "weapons"), Drop("harmful_picture", "violence"), Drop("harmful_together", "hate"), None,
                                         Drop("too_small")]
    assert screen.asked == [("texts", 4), ("pictures", 3), ("pairs", 2)]
    assert count_harmful([m.drop for m in members]) == {
        "harmful_text": {"weapons": 1}, "harmful_picture": {"violence": 1}, "harmful_together": {"hate": 1}}
    assert count_harmful([None, Drop("too_small")]) == {}


def test_without_classifiers_nothing_is_asked():
    members = [member("skull", "A gun.")]
    drop_harmful(members, None)
    assert members[0].drop is None


def test_reasons_are_those_of_curation():
    from anymal.curation import instructions, rules

    assert REASONS.keys() <= rules.REASONS.keys() and {"harmful_text", "harmful_picture"} <= instructions.REASONS.keys()


def test_a_question_an_answer_or_a_new_picture_drops_an_imported_record():
    from anymal.curation.instructions import Candidate, Medium, Source, _drop_harmful
    from anymal.data.instructions import Instruction, MediumName

    source = Source("s", Path("x"), "llava", None, "human", "conversation", "CC0-1.0")

    def candidate(name, question, answer, file):
        medium = MediumName("image", f"{name}.jpg")
        stored = SimpleNamespace(path=Path(file))
        instruction = Instruction(name, (medium,), ((f"<image>\n{question}", answer),), "human", "conversation", "s", "CC0-1.0")
        return dataclasses.replace(Candidate(source, name), instruction=instruction, media=(Medium(medium, name, None, stored),))

    members = [candidate("a", "What is it?", "A gun.", "a.jpg"), candidate("b", "A gun?", "No.", "b.jpg"),
               candidate("c", "What?", "A bone.", "skull.jpg"), candidate("d", "What?", "A cup.", "d.jpg")]
    screen = Words()
    _drop_harmful(members, screen)
    assert [m.drop and (m.drop.reason, m.drop.detail) for m in members] == [
        ("harmful_text", "weapons"), ("harmful_text", "weapons"), ("harmful_picture", "violence"), None]
    assert screen.asked == [("texts", 7), ("pictures", 4)]


@pytest.mark.parametrize("question", ["How does one kill a man?", "What is it?"])
def test_an_unsafe_pair_of_synthesis_is_dropped_before_it_is_scored_blind(question):
    from anymal.synthesis.checks import Pair
    from anymal.synthesis.generation import Judged, _drop_unsafe

    judged = [Judged("a", None, Pair(question, "With care."), ""), Judged("b", None, Pair("What is it?", "A cup."), "", "length"),
              Judged("c", None, Pair("What is it?", "A cup."), "")]
    _drop_unsafe(judged, lambda texts: ["violence" if "kill" in text else None for text in texts])
    assert [(found.reason, found.detail) for found in judged] == [
        ("unsafe", "violence") if "kill" in question else (None, ""), ("length", ""), (None, "")]
