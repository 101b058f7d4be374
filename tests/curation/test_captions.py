from __future__ import annotations

from typing import Any

import pytest

from anymal.curation import captions as rules
from anymal.curation import cat
from anymal.curation.images import Drop
from anymal.curation.parser import load_parser


@pytest.fixture(scope="module")
def parser() -> Any:
    return load_parser()


def described(parser: Any, raw: str) -> Any:
    sentence = rules.first_sentence(rules.tidy(raw))
    return rules.describe(parser(sentence), sentence)


@pytest.mark.parametrize(("raw", "clean", "phrase"), [
    ("A cat.", "A cat.", "cat"),
    ("An hippopotamus.", "A hippopotamus.", "hippopotamus"),
    ("A camera.  Say Cheese!", "A camera.", "camera"),
    ("A “Fuji” apple.", "A Fuji apple.", None),
    ("An albino peahen (a female peafowl, or peacock).", "An albino peahen.", None),
    ("A happy lion!", "A happy lion.", "happy lion"),
    ("A hedgehog &amp; a <b>fox</b>.", "A hedgehog & a fox.", None),
    ("A spider playing soccer.", "A spider playing soccer.", None),
])
def test_descriptions_come_out_clean(parser: Any, raw: str, clean: str, phrase: str | None) -> None:
    caption = described(parser, raw)
    assert not isinstance(caption, Drop), caption
    assert caption.text == clean
    assert phrase is None or caption.phrase == phrase


@pytest.mark.parametrize("raw", ["Boom!!!", "“Hospital”.", "Eat your bread!", "Remember to flush the toilet and wash your hands with soap!",
                                 "It's a cep, or they are two ceps?", "No entry!", "– Because a brain is a terrible thing to waste…"])
def test_what_describes_nothing_is_dropped(parser: Any, raw: str) -> None:
    found = described(parser, raw)
    assert isinstance(found, Drop), found
    assert found.reason == "not_a_description"


def test_length_and_language() -> None:
    limits = rules.CaptionLimits(max_characters=100, min_words=2, max_words=5, min_english=0.5)
    assert rules.check_length("A cat.", limits) is None
    short, long = rules.check_length("Cat.", limits), rules.check_length("A cat on a big mat today.", limits)
    assert (short.reason, long.reason) == ("caption_too_short", "caption_too_long")  # type: ignore[union-attr]
    for english in ("A cat.", "A butterflyfish.", "A quetzal.", "A girl in a wheelchair."):
        assert rules.check_language(english, 0.5) is None, english
    for other in ("Ein roter Apfel liegt auf dem Tisch in der Küche.", "Un gatto nero.", "Кошка на столе.", "Appooppan Thaadi."):
        found = rules.check_language(other, 0.6)
        assert found is not None and found.reason == "not_english", other


def test_words_of_file_names() -> None:
    assert rules.name_words("redApple_02") == ["red", "apple"]
    assert rules.name_words("t-shirt_03.v2") == ["t", "shirt", "v"]
    assert rules.name_words("0123_45") == []


TITLES = ("trumpet", "violin", "bread", "coffee", "small_plate", "harp", "apple_core", "oboe")
ARTIST = "benjamin_zorkovitch"


def test_authors_are_inferred_from_what_trails_different_pictures(parser: Any) -> None:
    stems = [f"{title}_{ARTIST}_01" for title in TITLES] + [f"{colour}_apple" for colour in ("red", "green", "yellow", "small")]
    authors = rules.infer_authors([rules.name_words(stem) for stem in stems], parser, 3)
    assert "zorkovitch" in authors
    assert "apple" not in authors, "a thing that ends many names is no author"
    assert rules.strip_author(["trumpet", "benjamin", "zorkovitch"], frozenset({"benjamin zorkovitch"}), truncated=False) == ["trumpet"]
    assert rules.strip_author(["trumpet", "benjamin", "zork"], frozenset({"benjamin zorkovitch"}), truncated=True) == ["trumpet"]
    assert rules.strip_author(["trumpet", "benjamin", "zork"], frozenset({"benjamin zorkovitch"}), truncated=False) == ["trumpet", "benjamin", "zork"]


def test_file_names_become_captions(parser: Any) -> None:
    stems = ["soccer_ball_ganson", "apple_bw", "grapes", "bread_ganson", "gatto_nero_ganson", "house_christoph_brill_01",
             "open_book_01", "blue_fedora", "pancakes"]
    words = [rules.title_words(stem, frozenset({"ganson"}), truncated=False) for stem in stems]
    found = rules.describe_names(words, rules.given_names(words, frozenset(), parser), parser)
    texts = [caption.reason if isinstance(caption, Drop) else caption.text for caption in found]
    assert texts == ["A soccer ball.", "A black and white apple.", "Some grapes.", "Some bread.", "not_english", "A house.", "An open book.",
                     "A blue fedora.", "Some pancakes."]


@pytest.mark.parametrize(("caption", "relations", "actions"), [
    ("A cat.", 0, 0), ("A black cat.", 1, 0), ("A cat sleeps on a red mat.", 2, 1), ("A spider playing soccer.", 1, 1),
    ("There are two apples on a green background.", 2, 0), ("Two apples sit on a green background.", 2, 1),
])
def test_cat_counts_relations_and_actions(parser: Any, caption: str, relations: int, actions: int) -> None:
    document = parser(caption)
    assert (cat.complexity(document) >= 1) == (relations >= 1), cat.complexity(document)
    assert cat.actions(document) == actions


def test_cat_thresholds_drop_with_reason(parser: Any) -> None:
    bare, still, scene = parser("A cat."), parser("A black cat on a mat."), parser("A cat sleeps on a red mat.")
    assert cat.check(bare, min_complexity=0, min_actions=0) is None
    assert cat.check(bare, min_complexity=1, min_actions=1).reason == "too_few_relations"  # type: ignore[union-attr]
    assert cat.check(still, min_complexity=1, min_actions=1).reason == "too_few_actions"  # type: ignore[union-attr]
    assert cat.check(scene, min_complexity=1, min_actions=1) is None


def test_repeated_text_needs_enough_characters() -> None:
    assert cat.repeated_text(["STOP", "sign"], "A stop sign.", 5) is None
    assert cat.repeated_text(["SCHOOL!"], "A school bus.", 5) == "school"
    assert cat.repeated_text(["stop sign"], "A STOP-sign.", 5) == "stop sign"
    assert not cat.could_repeat("A ox.", 5)
