"""VQA accuracy as its authors define it: the answer normaliser and the leave-one-out agreement with the annotators.

Source: Antol et al. 2015 (VQA) and the rules published at https://visualqa.org/evaluation.html. Evaluations in use apply these rules in ways
that give different figures, so each has a name here (`VARIANTS`) and stands beside its figures.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

NORMALISER = (
    "VQA answer normalisation (visualqa.org/evaluation): lower case; full stops that end no number part, and punctuation, removed; "
    "number words zero to ten as digits; articles removed; apostrophes of contractions restored; applied to answers and references alike"
)

VARIANTS = {
    "published": NORMALISER,
    "vqa_eval": (
        "the official script (GT-Vision-Lab/VQA, VQAEval): outer white space removed; then, only where the annotators' answers differ, answer and "
        "references normalised by the published rules; where all of them agree the answer must be theirs to the letter; no more than 32 full "
        "stops are removed; its table of contractions"
    ),
    "evalai": (
        "EvalAIAnswerProcessor (MMF, LLaVA, lmms-eval): lower case, commas and question marks removed, 's parted from its word, then the published "
        "rules with the official script's limit and table; applied to answers and references alike, always"
    ),
}
"""How answers are normalised, by name. "published" is what a task's own answers are scored by."""

ARTICLES = frozenset({"a", "an", "the"})
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8",
    "nine": "9", "ten": "10",
}  # fmt: skip
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
STOP = re.compile(r"\.(?!\d)")
THOUSANDS = re.compile(r"\d,\d")
CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd how'll how's
isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've
should've shouldn't shouldn't've somebody'd somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd
something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _contractions() -> dict[str, str]:
    """Each contraction by its spellings that lack one apostrophe: `dont`, `couldnt've`, `couldn'tve`."""
    table = {}
    for word in CONTRACTED.split():
        for position in (i for i, letter in enumerate(word) if letter == "'"):
            table[word[:position] + word[position + 1 :]] = word
    return table


CONTRACTIONS = _contractions()
OFFICIAL_CONTRACTIONS = {short: word for short, word in CONTRACTIONS.items() if short != "somebodyd"} | {"somebody'd": "somebodyd"}
"""The official table has one pair the wrong way round."""
MOST_STOPS = 32
"""The official script passes a flag of `re` where `sub` takes the number of replacements."""


def normalise_answer(answer: str) -> str:
    """Bring an answer into the form in which VQA answers are compared, e.g. `"Two dogs."` -> `"2 dogs"`; "" if nothing is left.

    A punctuation mark becomes a space between letters (`black/white`), and nothing where it stands beside a space, or when the
    answer holds a number with thousands separators (`1,000`).
    """
    words = (NUMBERS.get(word, word) for word in STOP.sub("", _without_marks(_outer(answer))).lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _outer(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


def _without_marks(text: str) -> str:
    kept = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        kept = kept.replace(mark, "" if beside_space or THOUSANDS.search(text) else " ")
    return kept


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy of one predicted answer, 0 to 1.

    Over m >= 2 human answers it is the mean, over the m ways of leaving one out, of `min(matches / 3, 1)`, as VQA defines it (m = 10
    there). With a single reference (questions whose true answer is known) nothing can be left out, and it is 1 for an exact match
    after normalisation, else 0.

    Raises:
        ValueError: if there is no reference answer.
    """
    if not answers:
        raise ValueError("vqa_accuracy needs at least one reference answer")
    said = normalise_answer(prediction)
    return _agreement([normalise_answer(answer) == said for answer in answers])


def _agreement(matches: Sequence[bool]) -> float:
    if len(matches) == 1:
        return float(matches[0])
    total = sum(matches)
    return sum(min((total - match) / 3, 1.0) for match in matches) / len(matches)


def answer_accuracy(prediction: str, answers: Sequence[str], *, variant: str) -> float:
    """Accuracy of one predicted answer, 0 to 1, by the leave-one-out rule of `vqa_accuracy`, with a named normalisation.

    Annotators are left out one at a time. The official script leaves out every entry of the file that equals the one in turn, which is the
    same where entries have an `answer_id`, as those of VQA and OK-VQA have.

    Args:
        answers: the annotators' answers as the file has them: 10 in VQA, VizWiz and TextVQA, and in OK-VQA 5 that stand twice each.
        variant: a name of VARIANTS.

    Raises:
        ValueError: if there is no reference answer.
    """
    assert variant in VARIANTS, f"variant {variant}"
    if variant == "published":
        return vqa_accuracy(prediction, answers)
    if not answers:
        raise ValueError("answer_accuracy needs at least one reference answer")
    if variant == "evalai":
        said, truths = _evalai(prediction), [_evalai(answer) for answer in answers]
    else:
        said, truths = _outer(prediction), [_outer(answer) for answer in answers]
        if len(set(truths)) > 1:
            said, truths = _official(said), [_official(answer) for answer in truths]
    return _agreement([truth == said for truth in truths])


def _official(answer: str) -> str:
    """`processPunctuation` and `processDigitArticle` of the official script, of an answer without outer white space."""
    kept = _without_marks(answer)
    words = (NUMBERS.get(word, word) for word in STOP.sub("", kept, count=MOST_STOPS).lower().split())
    return " ".join(OFFICIAL_CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _evalai(answer: str) -> str:
    """EvalAIAnswerProcessor: a word's 's becomes a word of its own, and no comma is left to part thousands by."""
    return _official(_outer(answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()))


def majority_answers(kinds: Sequence[str], answers: Sequence[str]) -> dict[str, str]:
    """The most frequent normalised answer of each kind of question (ties: the first in alphabetical order): what a model
    that knows the answers' distribution but sees nothing would say."""
    counts: dict[str, Counter[str]] = {}
    for kind, answer in zip(kinds, answers, strict=True):
        counts.setdefault(kind, Counter())[normalise_answer(answer)] += 1
    return {kind: min(counter, key=lambda answer: (-counter[answer], answer)) for kind, counter in counts.items()}
