import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anymal.evaluation.choice import LETTERS, choice_scores, extract_choice, likeliest

ANIMALS = ["a red dog", "a cat", "two birds"]


@pytest.mark.parametrize(("said", "option"), [
    ("B", 1), ("b", 1), ("(B)", 1), ("(b)", 1), ("B.", 1), ("'B'", 1), ("[B],", 1), (" B\n", 1), ("**B**", 1),
    ("Answer: B", 1), ("answer: (b)", 1), ("The answer is B.", 1), ("The answer is B because dogs bark.", 1), ("The correct option is: B", 1),
    ("**Answer:** B", 1), ("My choice would be B", 1), ("Option B is right.", 1), ("The answer is A.", 0), ("Answer: A", 0), ("the answer is b.", 1),
    ("The answer is B and it barks", 1), ("Answer:\nC", 2), ("The answer is option C", 2),
    ("B. a cat", 1), ("(C) two birds", 2), ("(c) two birds", 2), ("C: two birds", 2), ("B\nBecause it purrs.", 1),
    ("I think it is (C) after all", 2), ("The answer is (B) because (A) is wrong.", 1),
    ("a cat", 1), ("The cat.", 1), ("It is a CAT!", 1), ("2 bird", 2), ("red dogs", 0), ("There are two birds on the roof", 2),
    ("The answer is a cat.", 1),
])  # fmt: skip
def test_an_option_is_found(said, option):
    assert extract_choice(said, ANIMALS) == option


@pytest.mark.parametrize("said", [
    "", " ", "?", "D", "(Z)", "The answer is D.", "I do not know", "A or B, hard to say", "Answer: A or B", "The answer is A. No, the answer is B.",
    "a cat and two birds", "dog", "(A) or (B)", "The answer is B or C.",
    "Answer: (A) and (C)", "B), C)", "Option B/C", "The answer is a matter of taste", "answer is not A", "U.S. animals",
])  # fmt: skip
def test_what_cannot_be_told_is_not_guessed(said):
    assert extract_choice(said, ANIMALS) is None


def test_a_longer_option_is_not_taken_for_the_shorter_one_within_it():
    assert extract_choice("it is a snare drum", ["drum", "snare drum"]) == 1
    assert extract_choice("it is a drum", ["drum", "snare drum"]) == 0
    assert extract_choice("a dog", ["dog", "the dog"]) is None, "two options of the same text cannot be told apart"


@settings(deadline=None)
@given(st.integers(2, 26), st.data())
def test_every_letter_in_every_wrapping_is_its_option_and_letters_beyond_are_none(count, data):
    options = [f"thing number {n + 100}" for n in range(count)]
    place = data.draw(st.integers(0, 25))
    wrappings = ["{}", "({})", "{}.", "Answer: {}", "The answer is {}.", "The answer is ({}).", "{}) something", "Option {}:"]
    wrapping = data.draw(st.sampled_from(wrappings))
    assert extract_choice(wrapping.format(LETTERS[place]), options) == (place if place < count else None)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_gives_an_option_or_none(said):
    assert extract_choice(said, ANIMALS) in {0, 1, 2, None}


def test_unparsable_answers_are_wrong_and_counted():
    found = choice_scores(["A", "the cat", "no idea", "C"], [ANIMALS] * 4, [0, 0, 1, 2])
    assert found.scores.tolist() == [1.0, 0.0, 0.0, 1.0]
    assert (found.chosen, found.unparsable) == ([0, 1, None, 2], 1)


def test_accuracy_is_the_recount_on_1000_random_cases():
    generator = random.Random(0)
    said, options, right, expected = [], [], [], []
    for _ in range(1000):
        texts = [f"item {n}" for n in generator.sample(range(11, 100), generator.randint(2, 6))]
        place, truth = generator.randrange(len(texts)), generator.randrange(len(texts))
        form = generator.choice(["letter", "text", "sentence", "beyond", "nothing"])
        said.append({"letter": LETTERS[place], "text": texts[place], "sentence": f"I would say: {texts[place]}.", "beyond": LETTERS[len(texts)],
                     "nothing": "hard to say"}[form])  # fmt: skip
        expected.append(float(form in {"letter", "text", "sentence"} and place == truth))
        options.append(texts)
        right.append(truth)
    found = choice_scores(said, options, right)
    assert found.scores.tolist() == expected
    assert found.unparsable == sum(answer == "hard to say" or answer in LETTERS[len(texts):] for answer, texts in zip(said, options, strict=True))


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, 20)), min_size=1, max_size=8))
def test_the_likeliest_option_by_sum_and_per_token(options):
    nats, tokens = [sum_ for sum_, _ in options], [count for _, count in options]
    best = likeliest(nats)
    assert all(nats[best] < value for value in nats[:best])
    assert all(nats[best] <= value for value in nats[best:])
    means = [value / count for value, count in options]
    assert likeliest(nats, tokens) == int(np.argmin(means))


def test_length_normalisation_changes_the_choice():
    assert likeliest([4.0, 6.0]) == 0
    assert likeliest([4.0, 6.0], [1, 3]) == 1
