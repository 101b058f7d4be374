import random
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anymal.evaluation.vqa import (
    ARTICLES,
    CONTRACTIONS,
    NUMBERS,
    OFFICIAL_CONTRACTIONS,
    VARIANTS,
    answer_accuracy,
    majority_answers,
    normalise_answer,
    vqa_accuracy,
)

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


DIGITS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8",
          "nine": "9", "ten": "10"}  # fmt: skip
SHORT = """
aint arent cant couldve couldnt couldn'tve couldnt've didnt doesnt dont hadnt hadnt've hadn'tve hasnt havent hed hed've he'dve hes howd howll
hows isnt itd itd've it'dve itll maam mightnt mightnt've mightn'tve mightve mustnt mustve neednt notve oclock oughtnt ow's'at 'ows'at 'ow'sat
shant shed've she'dve shouldve shouldnt shouldnt've shouldn'tve somebodyd've somebody'dve somebodyll somebodys someoned someoned've someone'dve
someonell someones somethingd somethingd've something'dve somethingll thats thered thered've there'dve therere theres theyd theyd've they'dve
theyll theyre theyve twas wasnt wed've we'dve weve werent whatll whatre whats whatve whens whered wheres whereve whod whod've who'dve wholl whos
whove whyll whyre whys wont wouldve wouldnt wouldnt've wouldn'tve yall yall'll y'allll yall'd've y'alld've y'all'dve youd youd've you'dve youll
youre youve
"""
LONG = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll how's isn't
it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll
y'all'd've you'd you'd've you'll you're you've
"""


class Official:
    """The official definition (VQAEval) and EvalAIAnswerProcessor stated once more, character by character and without regular expressions."""

    def __init__(self):
        by_letters = {word.replace("'", ""): word for word in LONG.split()}
        self.table = {short: by_letters[short.replace("'", "")] for short in SHORT.split()} | {"somebody'd": "somebodyd"}

    def clean(self, text):
        return "".join(" " if letter in "\n\t" else letter for letter in text).strip()

    def marks(self, text):
        thousands = any(a.isdecimal() and b == "," and c.isdecimal() for a, b, c in zip(text, text[1:], text[2:], strict=False))
        pairs = set(pairwise(text))
        kept = []
        for letter in text:
            if letter in ";/[]\"{}()=+\\_-><@`,?!":
                kept += [] if thousands or (letter, " ") in pairs or (" ", letter) in pairs else [" "]
            else:
                kept.append(letter)
        removed, result = 0, []
        for letter, after in pairwise([*kept, "end"]):
            if letter == "." and not after.isdecimal() and removed < 32:
                removed += 1
            else:
                result.append(letter)
        return "".join(result)

    def words(self, text):
        found = [DIGITS.get(word, word) for word in text.lower().split()]
        return " ".join(self.table.get(word, word) for word in found if word not in ("a", "an", "the"))

    def agreement(self, said, answers):
        shares = []
        for left_out in range(len(answers)):
            others = [answer for place, answer in enumerate(answers) if place != left_out]
            shares.append(min(1.0, others.count(said) / 3))
        return sum(shares) / len(shares)

    def vqa_eval(self, said, answers):
        said, answers = self.clean(said), [self.clean(answer) for answer in answers]
        if any(answer != answers[0] for answer in answers):
            said, answers = self.words(self.marks(said)), [self.words(self.marks(answer)) for answer in answers]
        return self.agreement(said, answers)

    def evalai(self, said, answers):
        def process(text):
            text = "".join(letter for letter in text.lower() if letter not in ",?")
            return self.words(self.marks(self.clean(" 's".join(text.split("'s")))))

        return self.agreement(process(said), [process(answer) for answer in answers])


PIECES = [
    "red", "Red", "RED.", "two", "2", "Two.", "a", "the", "The dog", "dog's", "dogs", "dont", "don't", "Dont", "1,000", "1,000.5", "3.5", "3.", ".5",
    "..", "." * 40, "No.", "no", "yes!", "Yes", "x/y", "x / y", "left-hand", "left - hand", "?", "none", "None", "somebody'd", "somebodyd", "shes",
    "Im", "couldnt've", "'ows'at", "U.S.A.", "a/c", "it's", "its", "(b)", "[c]", "\n", "\t", " ", "  ", "é", "Ä", "½", "²", "٣,٤", "_", "@home", "",
    "1,2 a", "a,b", "unanswerable", "ten", "Zero,", "let's", "o clock", "oclock", "-", "\u00a0", "\x1f",
]  # fmt: skip


def cases(seed, count):
    """Random and adversarial answers: pieces glued with and without spaces; annotators who agree, nearly agree and differ; 10, and 5 doubled."""
    generator = random.Random(seed)
    for number in range(count):
        def answer():
            return generator.choice(["", " "]).join(generator.choice(PIECES) for _ in range(generator.randint(1, 4)))

        said, pool = answer(), [answer() for _ in range(generator.randint(1, 3))]
        pool += [said, said.upper(), f" {said}.", said.replace("the", "")][: generator.randint(0, 4)]
        if number % 3 == 0:
            answers = [generator.choice(pool)] * 10
        elif number % 3 == 1:
            answers = [one for one in (generator.choice(pool) for _ in range(5)) for _ in range(2)]
        else:
            answers = [generator.choice(pool) for _ in range(10)]
        yield said, answers


@pytest.mark.parametrize("variant", ["vqa_eval", "evalai"])
def test_accuracy_is_the_official_one_on_2000_random_and_adversarial_cases(variant):
    official, seen = Official(), set()
    for said, answers in cases(0, 2000):
        expected = getattr(official, variant)(said, answers)
        assert answer_accuracy(said, answers, variant=variant) == pytest.approx(expected, abs=1e-12), (said, answers)
        seen.add(round(expected, 2))
    assert seen >= {0.0, 0.3, 0.6, 0.9, 1.0}, "the cases do not reach every share of agreement"


def test_the_table_of_contractions_is_the_official_one():
    assert Official().table == OFFICIAL_CONTRACTIONS


def test_the_variants_differ_where_they_are_said_to():
    agreed = ["the cat"] * 10
    assert [answer_accuracy("The cat.", agreed, variant=name) for name in VARIANTS] == [1.0, 0.0, 1.0]
    differing = ["the cat"] * 9 + ["dog"]
    assert [answer_accuracy("The cat.", differing, variant=name) for name in VARIANTS] == [1.0, 1.0, 1.0]
    thousands = ["1,000/hour"] * 9 + ["fast"]  # EvalAI's comma is gone before it can say that the slash parts no words
    assert [answer_accuracy("1000 hour", thousands, variant=name) for name in VARIANTS] == [0.0, 0.0, 1.0]
    glued = ["who?what"] * 9 + ["x"]
    assert [answer_accuracy("whowhat", glued, variant=name) for name in VARIANTS] == [0.0, 0.0, 1.0]
    possessive = ["dog's"] * 9 + ["cat"]
    assert [answer_accuracy("dog 's", possessive, variant=name) for name in VARIANTS] == [0.0, 0.0, 1.0]
    stops = ["." * 33 + "x"] * 9 + ["y"]
    assert [answer_accuracy("x", stops, variant=name) for name in VARIANTS] == [1.0, 0.0, 0.0]


@settings(deadline=None)
@given(st.text(max_size=20), st.lists(st.text(max_size=8), min_size=2, max_size=10))
def test_what_stands_is_the_variant_published(said, answers):
    assert answer_accuracy(said, answers, variant="published") == vqa_accuracy(said, answers)


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize(("agreeing", "accuracy"), [(0, 0.0), (1, 0.6), (2, 1.0), (5, 1.0)])
def test_ok_vqas_five_annotators_stand_twice(variant, agreeing, accuracy):
    answers = ["Red car"] * 2 * agreeing + [f"thing {n // 2}" for n in range(2 * (5 - agreeing))]
    assert answer_accuracy("Red car", answers, variant=variant) == pytest.approx(accuracy)


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_a_single_reference_is_an_exact_match_and_none_is_refused(variant):
    assert answer_accuracy("red", ["red"], variant=variant) == 1.0
    assert answer_accuracy("red", ["blue"], variant=variant) == 0.0
    with pytest.raises(ValueError, match="at least one"):
        answer_accuracy("red", [], variant=variant)
