"""From descriptions to instructions: whom to ask about what, and what of the answers may be kept."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from anymal.data.instructions import Instruction, MediumName
from anymal.errors import AnymalError, DataError
from anymal.synthesis.alike import Alike
from anymal.synthesis.backends import Answer, Request
from anymal.synthesis.checks import REASONS, Limits, Pair, problem, refers_back
from anymal.synthesis.descriptions import Description, names_of, read_descriptions
from anymal.synthesis.prompting import Asking, UnparsableError, askings, form, parse, without_cut
from anymal.synthesis.words import Facts, Lexicon, Words, words

SPLITS = ("train", "val")

Likelihoods = Callable[[Sequence[Pair]], Mapping[Pair, float]]


@dataclass(frozen=True)
class Kind:
    """How much of a kind is asked for, and what its pairs must fulfil."""

    name: str
    samples: Mapping[str, int | None]
    """Split -> samples to ask about; None takes all."""
    questions: int
    """How many of the ways to ask are used for a sample, in turn."""
    limits: Limits

    @property
    def boxes(self) -> bool:
        """Whether the LLM reads the boxes: not for conversations (paper section 2)."""
        return self.name != "conversation"


@dataclass(frozen=True)
class Asked:
    """A request and what it is about."""

    request: Request
    description: Description
    kind: Kind
    asking: Asking


@dataclass
class Judged:
    """A pair, or a whole text that has none, and why it was dropped, if it was."""

    id: str
    asked: Asked
    pair: Pair | None
    text: str
    reason: str | None = None
    detail: str = ""
    likelihood: float | None = None

    def record(self) -> dict[str, Any]:
        """What the list of rejected answers holds of it."""
        said = {"answer": self.text} if self.pair is None else asdict(self.pair)
        about = self.asked.description
        return {"id": self.id, "member": f"{about.key}.{about.extension}", "split": about.split, "kind": self.asked.kind.name,
                "reason": self.reason, "detail": self.detail, **said}


@dataclass
class Chosen:
    """The samples to ask about, and what is known of the whole data set."""

    asked: list[Asked] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    too_little_said: Counter[str] = field(default_factory=Counter)
    lexicon: Lexicon = field(default_factory=lambda: Lexicon([]))


def choose(shards: Path, kinds: Sequence[Kind], *, modality: str, manner: str, captions: int, min_words: int, seed: int) -> Chosen:
    """Read the shards once and draw the samples of each kind by a hash of their keys; only those drawn stay in memory.

    Args:
        captions: most captions that the LLM reads.
        min_words: words that the captions of a sample need, to ask about it.

    Raises:
        DataError: if the shards are damaged, two samples have one key, or none of train is left.
        ConfigError: if there are no prompts for the modality.
    """
    chosen, names = Chosen(), set[str]()
    for split in SPLITS:
        drawn = {kind.name: _Lottery(kind.samples[split], f"{seed}:{kind.name}") for kind in kinds}
        for description in read_descriptions(shards, split):
            names.update(names_of(description))
            chosen.seen[split] += 1
            if sum(len(words(caption)) for caption in description.captions[:captions]) < min_words:
                chosen.too_little_said[split] += 1
                continue
            for lottery in drawn.values():
                lottery.add(description)
        for kind in kinds:
            chosen.asked += _requests(kind, drawn[kind.name].drawn(), askings(kind.name, manner, modality), captions)
    counts = Counter(asked.request.id for asked in chosen.asked)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise DataError(f"{shards}: the key of {twice[0]} comes twice; keys must be unique within a data set")
    if not any(asked.description.split == "train" for asked in chosen.asked):
        raise DataError(f"{shards}: no sample of train has captions of {min_words} words or more to ask about; lower min_description_words, raise "
                        "the samples of a kind, or curate more")
    chosen.lexicon = Lexicon(names)
    return chosen


class _Lottery:
    """The `count` descriptions with the lowest hashes of those that were added."""

    def __init__(self, count: int | None, salt: str) -> None:
        self._count, self._salt = count, salt
        self._found: list[tuple[bytes, Description]] = []

    def add(self, description: Description) -> None:
        self._found.append((hashlib.sha256(f"{self._salt}:{description.key}".encode()).digest(), description))
        if self._count is not None and len(self._found) > 2 * self._count + 64:
            self._cut()

    def drawn(self) -> list[Description]:
        self._cut()
        return [description for _, description in self._found]

    def _cut(self) -> None:
        self._found.sort(key=lambda entry: entry[0])
        del self._found[self._count if self._count is not None else len(self._found) :]


def _requests(kind: Kind, descriptions: Sequence[Description], ways: Sequence[Asking], captions: int) -> Iterator[Asked]:
    for index, description in enumerate(descriptions):
        text = description.text(captions=captions, boxes=kind.boxes)
        for turn in range(min(kind.questions, len(ways))):
            asking = ways[(index + turn) % len(ways)]
            yield Asked(Request(f"{description.key}-{kind.name}-{turn}", asking.messages(text)), description, kind, asking)


def judge(chosen: Chosen, answers: Mapping[str, Answer], *, likelihoods: Likelihoods | None, threshold: float, similarity: float, most_alike: int,
          harmful: Sequence[re.Pattern[str]], unsafe: Callable[[Sequence[str]], Sequence[str | None]] | None = None) -> list[Judged]:
    """Parse and check every answer.

    Args:
        unsafe: gives texts the category that a safety classifier finds in them; None leaves that check out.
        likelihoods: gives pairs their mean log-likelihood without the medium; None leaves that check out.
        threshold: the greatest likelihood of a pair that is kept.
        similarity: share of common word triples from which two pairs are alike.
        most_alike: how many alike pairs the data set may have; pairs of one sample must differ in any case.

    Returns:
        Every pair and every text without one, in the order of the ids.
    """
    judged: list[Judged] = []
    for asked in sorted(chosen.asked, key=lambda asked: asked.request.id):
        judged += _check(asked, answers[asked.request.id], Facts(asked.description, chosen.lexicon), harmful)
    if unsafe is not None:
        _drop_unsafe(judged, unsafe)
    if likelihoods is not None:
        candidates = [found.pair for found in judged if found.reason is None and found.pair is not None]
        scores = likelihoods(list(dict.fromkeys(candidates)))
        for found in judged:
            if found.reason is None and found.pair is not None:
                found.likelihood = scores[found.pair]
                if found.likelihood > threshold:
                    found.reason, found.detail = "answerable_blind", f"{found.likelihood:.2f} nats a token"
    _drop_alike(judged, similarity, most_alike)
    _drop_dangling(judged, chosen.lexicon)
    return judged


def _check(asked: Asked, answer: Answer, facts: Facts, harmful: Sequence[re.Pattern[str]]) -> Iterator[Judged]:
    """The pairs of one answer, checked, with what could not be read of it."""
    name = asked.request.id
    if answer.problem is not None:
        yield Judged(name, asked, None, answer.text, "refused_by_server", answer.problem)
        return
    whole, cut = (answer.text, "") if answer.finished else without_cut(answer.text)
    if cut:
        yield Judged(f"{name}-cut", asked, None, cut, "cut_off")
    if not whole and cut:
        return
    try:
        pairs = parse(whole)
    except UnparsableError as error:
        yield Judged(name, asked, None, whole, "unparsable", str(error))
        return
    examples = frozenset((words(question), words(reply)) for example in asked.asking.examples for question, reply in example.pairs)
    for index, (question, reply) in enumerate(pairs):
        pair = Pair(question, reply)
        found = problem(pair, facts, asked.kind.limits, examples=examples, harmful=harmful)
        yield Judged(f"{name}-{index}", asked, pair, form(((question, reply),)), *(found or (None, "")))


def _drop_unsafe(judged: Sequence[Judged], unsafe: Callable[[Sequence[str]], Sequence[str | None]]) -> None:
    pairs = [(found, found.pair) for found in judged if found.reason is None and found.pair is not None]
    texts = list(dict.fromkeys(text for _, pair in pairs for text in (pair.question, pair.answer)))
    categories = dict(zip(texts, unsafe(texts), strict=True))
    for found, pair in pairs:
        category = categories[pair.question] or categories[pair.answer]
        if category is not None:
            found.reason, found.detail = "unsafe", category


def _drop_alike(judged: Sequence[Judged], similarity: float, most: int) -> None:
    alike = Alike(similarity)
    of_sample: dict[str, set[Words]] = defaultdict(set)
    for found in judged:
        if found.reason is not None or found.pair is None:
            continue
        text = f"{found.pair.question} {found.pair.answer}"
        key = found.asked.description.key
        if found.pair.asked in of_sample[key]:
            found.reason, found.detail = "near_duplicate", "asked of this sample already"
        elif (count := alike.count(text)) >= most:
            found.reason, found.detail = "near_duplicate", f"{count} alike"
        else:
            alike.keep(text)
            of_sample[key].add(found.pair.asked)


def _drop_dangling(judged: Sequence[Judged], lexicon: Lexicon) -> None:
    """Drop questions about "it" once a turn before them in the same answer is gone: nobody knows what it is any more."""
    broken = set[str]()
    for found in judged:
        name = found.asked.request.id
        if found.pair is not None and found.reason is None and name in broken:
            detail = refers_back(found.pair, Facts(found.asked.description, lexicon))
            if detail is not None:
                found.reason, found.detail = "refers_to_dropped", detail
        if found.reason is not None:
            broken.add(name)


def instructions(judged: Iterable[Judged], split: str, modality: str) -> list[Instruction]:
    """The kept pairs of a split as conversations, one per sample and kind, sorted by id; the first question holds the placeholder."""
    grouped: dict[str, list[Judged]] = defaultdict(list)
    for found in judged:
        if found.reason is None and found.asked.description.split == split:
            grouped[f"{found.asked.description.key}-{found.asked.kind.name}"].append(found)
    made = []
    for name, members in sorted(grouped.items()):
        about = members[0].asked.description
        turns = [(found.pair.question, found.pair.answer) for found in members if found.pair is not None]
        turns[0] = (f"<{modality}>\n{turns[0][0]}", turns[0][1])
        medium = MediumName(modality, f"{about.key}.{about.extension}")
        made.append(Instruction(name, (medium,), tuple(turns), "synthetic", members[0].asked.kind.name, about.source, about.license))
    return made


def statistics(chosen: Chosen, judged: Sequence[Judged], made: Mapping[str, Sequence[Instruction]], modality: str, *,
               screened: bool = False) -> dict[str, Any]:
    """Counts of all that was asked, kept and dropped; the same answers give the same numbers.

    Args:
        screened: whether a safety classifier was asked; then its categories are counted as `unsafe`.
    """
    kept = [found for found in judged if found.reason is None and found.pair is not None]
    things = {mention.name for found in kept if found.pair is not None
              for mention in Facts(found.asked.description, chosen.lexicon).mentions(words(found.pair.text)) if mention.name}
    first = Counter(found.pair.asked[0] for found in kept if found.pair is not None)
    figures = {
        "modality": modality,
        "samples": {split: {"seen": chosen.seen[split], "too_little_said": chosen.too_little_said[split]} for split in SPLITS},
        **_counts(chosen.asked, judged),
        "kinds": {kind: _counts([a for a in chosen.asked if a.kind.name == kind], [f for f in judged if f.asked.kind.name == kind])
                  for kind in dict.fromkeys(a.kind.name for a in chosen.asked)},
        "splits": {split: {"conversations": len(found), "pairs": sum(len(one.turns) for one in found)} for split, found in made.items()},
        "diversity": {"first_words": dict(sorted(first.items(), key=lambda item: (-item[1], item[0]))), "distinct_first_words": len(first),
                      "distinct_questions": len({found.pair.asked for found in kept if found.pair is not None}),
                      "distinct_answers": len({found.pair.said for found in kept if found.pair is not None}), "distinct_objects": len(things)},
    }
    if screened:
        figures["unsafe"] = dict(sorted(Counter(found.detail for found in judged if found.reason == "unsafe").items()))
    assert figures["kept"] == sum(split["pairs"] for split in figures["splits"].values())
    return figures


def refuse_empty(made: Mapping[str, Sequence[Instruction]], figures: Mapping[str, Any], *, writer: str) -> None:
    """Stop when nothing is left to train on.

    Raises:
        AnymalError: naming the LLM, and for what reasons its answers were dropped.
    """
    if not made["train"]:
        most = ", ".join(f"{reason} {count}" for reason, count in figures["dropped"].items())
        raise AnymalError(f"synthesize.{figures['modality']}: of {figures['asked']} answers of {writer} nothing passed the checks ({most}); take "
                          "another LLM or manner, or loosen the limits")


def _counts(asked: Sequence[Asked], judged: Sequence[Judged]) -> dict[str, Any]:
    dropped = Counter(found.reason for found in judged if found.reason is not None)
    pairs = sum(found.pair is not None for found in judged)
    kept = sum(found.reason is None for found in judged)
    assert kept + dropped.total() == len(judged)
    return {"asked": len(asked), "pairs": pairs, "kept": kept, "keep_rate": round(kept / max(1, len(judged)), 4),
            "dropped": {reason: dropped[reason] for reason in REASONS if dropped[reason]}}
