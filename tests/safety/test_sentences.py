"""Sentences: where they end, in which scripts, and that nothing is lost whatever the pieces."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anymal.safety.sentences import LONGEST, SentenceSplitter, sentences, split_stream

CASES: dict[str, list[str]] = {
    "plain": ["It rains.", " We stay in!", " Do you?", " Yes."],
    "titles": ["Dr. Smith met Mr. and Mrs. Jones at St. Mary's.", " They left."],
    "latin": ["Use fruit, e.g. Apples or pears, i.e. What you like.", " Done."],
    "countries": ["He lives in the U.S. Army base.", " She does not."],
    "initials": ["J. R. R. Tolkien wrote it.", " C. S. Lewis did not."],
    "numbers": ["Pi is 3.14 or so.", " Version 1.2.3 is out.", " See No. 5 of Vol. 2."],
    "addresses": ["See https://example.org/a.b?c=D. It helps." [:32], " It helps."],
    "ellipsis": ["Well... maybe not.", " I see…", " Go on."],
    "quotes": ["\"Stop!\" he said.", " \"Why?\"", " She left (at ten.)", " He stayed."],
    "list": ["Steps:", "\n1. Open it.", "\n2. Close it.", "\n- one", "\n- two"],
    "wrapped": ["This line goes on\nin the next one.", " Here is more."],
    "paragraphs": ["A title", "\n\nand text without a capital."],
    "many signs": ["What?!", " No way!!!", " Fine."],
    "chinese": ["我今天很高兴。", "你呢？", "「我也是！」", "他说。"],
    "japanese": ["今日は晴れです。", "明日も晴れるでしょうか？", "はい！"],
    "arabic": ["هل أنت بخير؟", " نعم أنا بخير۔", " شكرا."],
    "hindi": ["मैं ठीक हूँ।", " आप कैसे हैं?", " सब अच्छा है।"],
    "armenian": ["Ես լավ եմ։", " Շնորհակալություն։"],
    "burmese": ["နေကောင်းပါတယ်။", " ကျေးဇူးပါ။"],
    "khmer": ["ខ្ញុំសុខសប្បាយ។", " អរគុណ។"],
    "thai": ["วันนี้อากาศดีมากเราจะไปเที่ยวทะเลกัน", " พรุ่งนี้จะกลับบ้าน"],
    "code": ["Run this:", "\n```python\nx = a.b. C\nprint(x)\n```", "\nIt prints C."],
}


@pytest.mark.parametrize("name", CASES)
def test_sentences_end_where_they_should(name: str) -> None:
    expected = CASES[name]
    assert sentences("".join(expected)) == expected


@pytest.mark.parametrize("name", CASES)
def test_sizes_of_pieces_do_not_matter(name: str) -> None:
    text = "".join(CASES[name])
    for size in (1, 2, 3, 7):
        assert list(split_stream(text[at : at + size] for at in range(0, len(text), size))) == CASES[name]


def test_a_sentence_comes_as_soon_as_it_is_complete() -> None:
    splitter = SentenceSplitter()
    assert splitter.feed("It rains") == []
    assert splitter.feed(".") == [], "may be part of a number or an abbreviation"
    assert splitter.feed(" ") == []
    assert splitter.feed("W") == ["It rains."]
    assert splitter.feed("e stay。") == []
    assert splitter.feed("我") == [" We stay。"]
    assert splitter.finish() == ["我"]
    assert splitter.finish() == []


def test_text_without_marks_is_cut_at_words() -> None:
    text = "word after word " * 100
    parts = sentences(text)
    assert "".join(parts) == text
    assert all(LONGEST // 2 <= len(part) <= LONGEST for part in parts[:-1])
    assert all(part.endswith(("word", "after")) for part in parts[:-1])
    assert [len(part) for part in sentences("x" * 1000)] == [400, 400, 200]


def test_code_is_held_together_in_lines() -> None:
    text = "Look:\n```\n" + "".join(f"line_{n} = call(a.b. C, {n})\n" for n in range(40)) + "```\nThat is all. Really."
    parts = sentences(text)
    assert "".join(parts) == text
    assert parts[-2:] == ["\nThat is all.", " Really."]
    assert all(part.endswith("\n") for part in parts[2:-3])
    assert len(parts) < 14


ALPHABET = "aB1 .!?。,\n\"')(`-…U.S. e.g. Dr. 我ก आ।```"


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet=st.one_of(st.sampled_from(ALPHABET), st.characters()), max_size=400), st.integers(0, 2**32), st.integers(5, 60))
def test_nothing_is_lost_and_pieces_do_not_matter(text: str, seed: int, longest: int) -> None:
    whole = sentences(text, longest)
    assert "".join(whole) == text
    assert all(0 < len(part) <= longest for part in whole)
    rng = random.Random(seed)
    pieces, at = [], 0
    while at < len(text):
        size = rng.randint(1, 9)
        pieces.append(text[at : at + size])
        at += size
    assert list(split_stream(pieces, longest)) == whole
