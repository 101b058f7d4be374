"""What a pair of question and answer must fulfil. Each check is a pure function: None for a good pair, else what is wrong with it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from anymal.errors import ConfigError
from anymal.synthesis.places import ARTICLES, disagreement
from anymal.synthesis.words import Facts, Mention, Words, known_words, number, words

REASONS: dict[str, str] = {
    "refused_by_server": "the server refused the request",
    "unparsable": "the text is not in the form Question: … === Answer: …",
    "cut_off": "the limit of tokens cut the pair off",
    "form": "the question is no question, or holds none of its marks",
    "length": "the question or the answer has fewer or more words than allowed",
    "annotation_mentioned": "the text speaks of captions, boxes, coordinates or a description",
    "harmful": "the text matches a pattern of harmful content",
    "no_answer": "the answer refuses, repeats the question or does not answer it",
    "copied": "the pair is one of the prompt's worked examples",
    "objects": "a thing is mentioned that other samples have and this one does not",
    "presence": "a thing that is there is denied, or what is denied cannot be checked",
    "counts": "a number disagrees with the annotation or cannot be checked",
    "colors": "a color is given to what the captions do not give it to",
    "positions": "a place, direction, size or relation disagrees with the annotation or cannot be checked",
    "unsupported": "too many words are neither in the annotation nor common ones",
    "unsafe": "a safety classifier finds the question or the answer harmful",
    "answerable_blind": "the LLM finds the answer likely from the question alone",
    "near_duplicate": "pairs like it were kept already",
    "refers_to_dropped": "the question speaks of 'it' or 'they' of a turn that was dropped",
}
"""In the order in which the checks are made."""

BE = {"is", "are", "was", "were"}
THINGS = {"thing", "things", "object", "objects", "item", "items"}
PLACES = {"left", "right", "top", "bottom", "above", "below", "under", "over", "middle", "center", "centre", "between", "on", "in", "at", "next",
          "near", "beside", "along", "behind", "inside", "beneath", "underneath", "upper", "lower", "across", "through", "around"}
PRONOUNS = {"it", "its", "they", "them", "their", "he", "she", "his", "her", "him", "these", "those"}
IMPERATIVES = {"describe", "tell", "explain", "list", "name", "please", "give", "write"}
AUXILIARIES = BE | {"do", "does", "did", "can", "could", "has", "have", "will", "would"}


@dataclass(frozen=True)
class Limits:
    """Words that a question and an answer may have, and the share of an answer's content words that only the LLM knows.

    Raises:
        ConfigError: if a least number of words is above its greatest, so that nothing could be kept.
    """

    question_words: tuple[int, int]
    answer_words: tuple[int, int]
    unsupported: float

    def __post_init__(self) -> None:
        for name, (least, greatest) in (("question_words", self.question_words), ("answer_words", self.answer_words)):
            if not 0 < least <= greatest:
                raise ConfigError(f"{name} = [{least}, {greatest}]: give the least number of words, from 1, and then the greatest")


@dataclass(frozen=True)
class Pair:
    """A question and its answer, as texts and as words."""

    question: str
    answer: str

    @property
    def asked(self) -> Words:
        return words(self.question)

    @property
    def said(self) -> Words:
        return words(self.answer)

    @property
    def text(self) -> str:
        return f"{self.question}\n{self.answer}".lower()


def form(pair: Pair) -> str | None:
    """A question ends with its mark or begins as a request; an answer asks nothing."""
    if not pair.question.endswith("?") and not IMPERATIVES.intersection(pair.asked[:2]):
        return "the question has no question mark"
    return "the answer asks a question" if "?" in pair.answer else None


def length(pair: Pair, limits: Limits) -> str | None:
    """Within the numbers of words that are allowed."""
    for name, found, (low, high) in (("question", pair.asked, limits.question_words), ("answer", pair.said, limits.answer_words)):
        if not low <= len(found) <= high:
            return f"the {name} has {len(found)} words"
    return None


def pattern(pair: Pair, name: str, more: Sequence[re.Pattern[str]] = ()) -> str | None:
    """A pattern of that list in `words.yaml`, or one of `more`, that the pair matches."""
    for expression in (*known_words()["patterns"][name], *more):
        if match := expression.search(pair.text):
            return f"'{match[0]}'"
    return None


def no_answer(pair: Pair, facts: Facts) -> str | None:
    """Refusals, answers that only repeat, and answers to another sort of question."""
    if refused := pattern(Pair("", pair.answer), "refusal"):
        return refused
    asked, said = pair.asked, pair.said
    if said[:1] not in (("yes",), ("no",)):
        if asked[:1] and asked[0] in AUXILIARIES and "or" not in asked and not IMPERATIVES.intersection(asked):
            return "neither yes nor no"
        content = set(said) - _EMPTY
        if not content or (content <= set(asked) and "or" not in asked):
            return "says nothing that the question does not"
    mentions = facts.mentions(said)
    for first, second in itertools.pairwise(mentions):
        between = said[first.stop : second.start]
        if between[:1] and between[0] in BE and set(between[1:]) <= ARTICLES:
            return f"'{' '.join(said[first.start : second.stop])}'"
    if any(said[index : index + 3] == said[index + 3 : index + 6] for index in range(len(said) - 5)) or _repeats(pair.answer):
        return "repeats itself"
    return _other_sort(asked, said)


_EMPTY = {"a", "an", "the", "is", "are", "there", "it", "they", "in", "of", "and", "to", "picture", "image", "video", "sound", "this", "that",
          "placed", "on", "at", "see", "can", "i", "you", "has", "have", "shows", "show"}


def _repeats(answer: str) -> bool:
    sentences = [words(sentence) for sentence in re.split(r"[.!]", answer) if sentence.strip()]
    return len(set(sentences)) < len(sentences)


def _other_sort(asked: Words, said: Words) -> str | None:
    """Whether "how many" gets no number, "where" no place, "what color" no color."""
    colors = known_words()["colors"]
    if asked[:2] == ("how", "many") and not any(number(word) is not None for word in said):
        return "no number"
    if asked[:1] == ("where",) and not PLACES.intersection(said):
        return "no place"
    if re.match(r"(what|which) colou?r\b", " ".join(asked)) and not colors.intersection(said):
        return "no color"
    return None


def objects(pair: Pair, facts: Facts) -> str | None:
    """Things of other samples, unless the question asks whether there is one and the answer is no."""
    if _denied(pair):
        return None
    for text in (pair.asked, pair.said):
        for mention in facts.mentions(text):
            if mention.name is None:
                return f"'{' '.join(text[mention.start : mention.stop])}'"
    return None


def presence(pair: Pair, facts: Facts) -> str | None:
    """A no is good where the question is for the presence of what is absent, or where its claim about a place is false (see `positions`)."""
    if not _denied(pair):
        return None
    asked, said = facts.mentions(pair.asked), facts.mentions(pair.said)
    absent = {pair.asked[mention.start : mention.stop] for mention in asked if mention.name is None}
    if absent and not any(mention.name for mention in asked) and pair.asked[0] in AUXILIARIES:
        named = {pair.said[mention.start : mention.stop] for mention in said if mention.name is None}
        return None if named <= absent else f"'{' '.join(sorted(named - absent)[0])}'"
    if any(mention.name is None for mention in (*asked, *said)):
        return "denies one of several things"
    if facts.boxes and disagreement(pair.asked, ("yes",), facts) and not disagreement(pair.asked, pair.said, facts):
        return None
    return f"'{pair.answer[:40]}'"


def _denied(pair: Pair) -> bool:
    return pair.said[:1] == ("no",)


def counts(pair: Pair, facts: Facts) -> str | None:
    """Numbers, plurals of what is there once, and singulars of what is there more often."""
    for text in (pair.asked, pair.said):
        if problem := _numbers(text, pair.asked, facts):
            return problem
    how_many, denied = pair.asked[:2] == ("how", "many"), _denied(pair)
    for text in (pair.asked, pair.said):
        for mention in facts.mentions(text):
            if mention.name is None or mention.name not in facts.counts or denied or mention.plural is None or (how_many and text is pair.asked):
                continue
            exact = text[max(0, mention.start - 1)] not in ("any", "a", "an", "one") or text is pair.said
            if mention.plural != (facts.counts[mention.name] > 1) and exact:
                return f"{facts.counts[mention.name]} of '{' '.join(mention.name)}'"
    return None


def _numbers(text: Words, asked: Words, facts: Facts) -> str | None:
    mentions = facts.mentions(text)
    for index, word in enumerate(text):
        value = number(word)
        if value is None or any(mention.start <= index < mention.stop for mention in mentions):
            continue
        after = next((mention for mention in mentions if index < mention.start <= index + 2), None)
        if word == "one" and after is None and asked[:2] != ("how", "many"):
            continue  # "the one on the left"
        true = _true_number(text[index + 1 :], after, asked, facts)
        if true is None:
            spoken = {number(said) for said in facts.annotation} | ({1} if facts.annotation & {"a", "an"} else set())
            if value not in spoken or facts.boxes:
                return f"'{word}' cannot be checked"
        elif true != value:
            return f"'{word}' for {true}"
    return None


def _true_number(rest: Words, after: Mention | None, asked: Words, facts: Facts) -> int | None:
    """How many of what a number counts there are; None if that is not known."""
    if not facts.boxes:
        return None
    if after is not None:
        return facts.counts[after.name] if after.name else None
    if THINGS.intersection(rest[:2]):
        return facts.counts.total()
    if asked[:2] == ("how", "many") and THINGS.intersection(asked):
        return facts.counts.total()
    counted = {mention.name for mention in facts.mentions(asked)}
    return facts.counts[name] if len(counted) == 1 and (name := counted.pop()) else None


def colors(pair: Pair, facts: Facts) -> str | None:
    """A color belongs to the next thing or the background, or to what the text speaks of; a name or a caption must join the two."""
    known = known_words()["colors"]
    subject: Words | None = None
    for text in (pair.asked, pair.said):
        mentions = facts.mentions(text)
        for index, word in enumerate(text):
            if word == "background":
                subject = ("background",)
            for mention in mentions:
                if mention.start == index:
                    subject = mention.name
            if word in known and not any(mention.start <= index < mention.stop for mention in mentions):
                following = next((mention.name for mention in mentions if mention.start == index + 1), None)
                holder = ("background",) if text[index + 1 : index + 2] == ("background",) else following or subject
                joined = index + 1 < len(text) and facts.says(text[index : index + 2])  # "yellow raincoat", which is no annotated thing
                if not joined and not (holder and facts.says((word, *holder))):
                    return f"'{word}' of {'nothing known' if holder is None else repr(' '.join(holder))}"
    return None


def positions(pair: Pair, facts: Facts) -> str | None:
    """See `anymal.synthesis.places`."""
    return None if _denied(pair) and not facts.boxes else disagreement(pair.asked, pair.said, facts)


def unsupported(pair: Pair, facts: Facts, limits: Limits) -> str | None:
    """The share of content words that neither the annotation nor the list of common words has."""
    if _denied(pair):
        return None
    common, numbers = known_words()["common"], known_words()["numbers"]
    content = [word for word in (*pair.asked, *pair.said) if word not in common and word not in numbers and not word.isdecimal()]
    new = [word for word in content if word.removesuffix("'s") not in facts.supported]
    if new and len(new) > limits.unsupported * len(content):
        return f"'{new[0]}'"
    return None


def refers_back(pair: Pair, facts: Facts) -> str | None:
    """A question that names nothing and speaks of it or them, to be asked where the turn before it was dropped."""
    pronouns = [word for word in pair.asked if word in PRONOUNS]
    return f"'{pronouns[0]}'" if pronouns and not facts.mentions(pair.asked) else None


def problem(pair: Pair, facts: Facts, limits: Limits, *, examples: frozenset[tuple[Words, Words]],
            harmful: Sequence[re.Pattern[str]]) -> tuple[str, str] | None:
    """The first reason (a key of `REASONS`) for which a pair may not be kept, and the detail; None for a good pair.

    Args:
        examples: the pairs of the prompt's worked examples.
        harmful: patterns beside those of `words.yaml`.
    """
    checks: tuple[tuple[str, Callable[[], str | None]], ...] = (
        ("form", lambda: form(pair)),
        ("length", lambda: length(pair, limits)),
        ("annotation_mentioned", lambda: pattern(pair, "annotation")),
        ("harmful", lambda: pattern(pair, "harmful", harmful)),
        ("no_answer", lambda: no_answer(pair, facts)),
        ("objects", lambda: objects(pair, facts)),
        ("presence", lambda: presence(pair, facts)),
        ("counts", lambda: counts(pair, facts)),
        ("colors", lambda: colors(pair, facts)),
        ("positions", lambda: positions(pair, facts)),
        ("unsupported", lambda: unsupported(pair, facts, limits)),
        ("copied", lambda: "word for word" if (pair.asked, pair.said) in examples else None),
    )
    for reason, check in checks:
        if (detail := check()) is not None:
            return reason, detail
    return None
