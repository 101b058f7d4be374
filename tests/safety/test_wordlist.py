"""The word list: the worst word counts, phrases are found, and a list of another layout is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from anymal.errors import DataError
from anymal.safety.taxonomy import CODES
from anymal.safety.wordlist import OURS, WordList
from tests.safety.test_texts import write_lines

HEADER = "text,canonical_form_1,canonical_form_2,canonical_form_3,category_1,category_2,category_3,severity_rating,severity_description"


@pytest.fixture
def words(tmp_path: Path) -> WordList:
    write_lines(tmp_path / "words" / "profanity_en.csv", HEADER, "d4rn,darn,,,other / general insult,,,1.2,Mild",
                "bad lot,bad lot,,,racial / ethnic slurs,,,3,Severe",
                "odd,odd,,,,,,1,Mild")
    write_lines(tmp_path / "words" / "ldnoobw-en.txt", "some thing rude")
    return WordList.read(tmp_path)


def test_the_worst_word_counts(words: WordList):
    said = ["What a nice day.", "How do I KILL a process?", "D4rn it, you bad lot!", "some thing quite rude", "some thing rude", "killjoy"]
    scores = words.probabilities(said)
    assert scores.shape == (6, len(CODES))
    found = [{code: round(float(row[column]), 2) for column, code in enumerate(CODES) if row[column]} for row in scores]
    assert found == [{}, {"violence": 1.0}, {"hate": 1.0, "harassment": 0.4}, {}, {"sexual": 0.7}, {}]


def test_every_category_has_words():
    assert tuple(OURS) == CODES


def test_another_layout_is_refused(tmp_path: Path, words: WordList):
    write_lines(tmp_path / "words" / "profanity_en.csv", "word,weight")
    with pytest.raises(DataError, match="lacks the columns"):
        WordList.read(tmp_path)
