import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anymal.evaluation.vqa import ARTICLES, CONTRACTIONS, NUMBERS, majority_answers, normalise_answer, vqa_accuracy

WORDS = st.lists(st.sampled_from([
    "red", "two", "2", "a", "the", "dont", "don't", "1,000", "3.5", "No.", "x/y", "left-hand", "?", "Yes!",
]), max_size=6)  # fmt: skip


@pytest.mark.parametrize(("answer", "normal"), [
    ("Two dogs.", "2 dogs"), ("The red apple", "red apple"), ("black/white", "black white"), ("black / white", "black white"),
    ("1,000", "1000"), ("3.5", "3.5"), ("dont know", "don't know"), ("couldnt've", "couldn't've"), ("it's", "it's"), ("YES!", "yes"),
    ("none", "0"), (" \n", ""), ("the", ""), ("left-hand side", "left hand side"), ("What?", "what"), ("zero, one", "0 1"), ("U.S.A.", "usa"),
])  # fmt: skip
def test_published_rules(answer, normal):
    assert normalise_answer(answer) == normal


@given(st.one_of(st.text(max_size=40), WORDS.map(" ".join), WORDS.map("".join)))
def test_a_normal_answer_is_normal_and_clean(answer):
    normal = normalise_answer(answer)
    assert normalise_answer(normal) == normal
    assert not set(normal.split()) & (ARTICLES | NUMBERS.keys() | CONTRACTIONS.keys())
    assert not re.search(r"""[;/\[\]"{}()=+\\_<>@`,?!-]|\s\s|^\s|\s$""", normal)


@given(WORDS)
def test_case_articles_and_outer_space_do_not_matter(words):
    answer = " ".join(words)
    assert normalise_answer(f"  The {answer.upper()} ") == normalise_answer(answer)


@given(st.text(max_size=20), st.lists(st.text(max_size=8), min_size=1, max_size=10))
def test_accuracy_is_a_share_and_order_does_not_matter(said, answers):
    accuracy = vqa_accuracy(said, answers)
    assert 0 <= accuracy <= 1
    assert accuracy == pytest.approx(vqa_accuracy(said, answers[::-1]))


@pytest.mark.parametrize(("agreeing", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_ten_annotators_score_as_the_official_evaluation(agreeing, accuracy):
    assert vqa_accuracy("red", ["Red."] * agreeing + ["blue"] * (10 - agreeing)) == pytest.approx(accuracy)


def test_one_reference_is_an_exact_match():
    assert vqa_accuracy("Two.", ["2"]) == 1.0
    assert vqa_accuracy("two dogs", ["2"]) == 0.0
    with pytest.raises(ValueError, match="at least one"):
        vqa_accuracy("x", [])


def test_majority_takes_the_most_frequent_answer_of_each_kind():
    assert majority_answers(["count"] * 3 + ["yes/no"] * 2, ["two", "2", "3", "yes", "no"]) == {"count": "2", "yes/no": "no"}
