import re

import pytest

from anymal.errors import ConfigError
from anymal.synthesis.alike import Alike
from anymal.synthesis.checks import REASONS, Limits, Pair, problem, refers_back
from anymal.synthesis.descriptions import Description, Thing
from anymal.synthesis.words import Facts, Lexicon, plurals, words

LIMITS = Limits((3, 20), (1, 30), 0.0)
NAMES = ["penguin", "baby sheep", "sheep", "candy cane", "hot air balloon", "cat", "mouse", "kite", "orange", "can", "picture"]


def described(captions, things=(), label=None):
    boxes = [Thing(name, tuple(box) if isinstance(box[0], tuple) else (box,)) for name, box in things]
    return Description("k", "jpg", "train", "s", "CC0-1.0", tuple(captions), tuple(boxes), label)


PAIR = described(
    ["A penguin sits to the right of a baby sheep on a green background.", "A baby sheep is placed to the left of a penguin."],
    [("penguin", (0.6, 0.1, 0.9, 0.4)), ("baby sheep", (0.1, 0.5, 0.3, 0.9))])
CANES = described(["Two candy canes are placed on a yellow background."],
                  [("candy cane", (0.1, 0.1, 0.3, 0.4)), ("candy cane", (0.6, 0.6, 0.8, 0.9))])
SOUND = described(["The sound is a cat."], label="cat")
KITE = described(["A kite moves to the right on a red background."], [("kite", ((0.1, 0.4, 0.3, 0.6), (0.4, 0.4, 0.6, 0.6), (0.7, 0.4, 0.9, 0.6)))])


def reason(description, question, answer, limits=LIMITS, **options):
    found = problem(Pair(question, answer), Facts(description, Lexicon(NAMES)), limits,
                    **({"examples": frozenset(), "harmful": ()} | options))
    assert found is None or (found[0] in REASONS and found[1])
    return found and found[0]


@pytest.mark.parametrize(("description", "question", "answer"), [
    (PAIR, "What does the picture show?", "The picture shows a penguin and a baby sheep on a green background."),
    (PAIR, "What is to the left of the penguin?", "A baby sheep."),
    (PAIR, "Where is the penguin?", "The penguin is to the right of the sheep."),
    (PAIR, "Where is the penguin?", "To the right of the baby sheep."),
    (PAIR, "Is the penguin on the left or on the right side?", "It is on the right side."),
    (PAIR, "Is the penguin on the left side?", "No, the penguin is on the right side."),
    (PAIR, "Is the penguin above the baby sheep?", "Yes, it is above the baby sheep."),
    (PAIR, "Which thing is higher up?", "The penguin is above the baby sheep."),
    (PAIR, "Where is the sheep?", "The sheep is at the bottom left."),
    (PAIR, "Is there a cat in the picture?", "No, there is no cat."),
    (PAIR, "How many things are there?", "There are two things."),
    (PAIR, "What color is the background?", "The background is green."),
    (CANES, "How many candy canes are there?", "There are two candy canes."),
    (CANES, "How many canes are there?", "Two."),
    (CANES, "Are there any candy canes?", "Yes, there are two."),
    (SOUND, "What makes the sound?", "It is a cat."),
    (KITE, "Which way does the kite move?", "The kite moves to the right."),
])
def test_what_agrees_with_the_annotation_is_kept(description, question, answer):
    assert reason(description, question, answer) is None


@pytest.mark.parametrize(("expected", "description", "question", "answer"), [
    ("form", PAIR, "The penguin on the left", "A baby sheep."),
    ("form", PAIR, "What is to the left?", "What is to the right?"),
    ("length", PAIR, "What?", "A penguin."),
    ("length", PAIR, "What does the picture show?", "a penguin " * 20),
    ("annotation_mentioned", PAIR, "What does the caption say?", "It says penguin."),
    ("annotation_mentioned", PAIR, "Where is the penguin?", "The penguin is at [0.600, 0.100]."),
    ("annotation_mentioned", PAIR, "Which thing has the larger bounding box?", "The penguin."),
    ("annotation_mentioned", PAIR, "Where is the penguin?", "Based on the given description, on the right."),
    ("harmful", PAIR, "Who will kill the penguin?", "The baby sheep."),
    ("no_answer", PAIR, "Where is the penguin?", "I'm sorry, I cannot see pictures."),
    ("no_answer", PAIR, "Where is the penguin?", "The penguin is in the picture."),
    ("no_answer", PAIR, "How many penguins are there?", "A penguin on a green background."),
    ("no_answer", PAIR, "What color is the background?", "It is a background of the baby sheep."),
    ("no_answer", PAIR, "Is there a penguin?", "A penguin on green."),
    ("no_answer", PAIR, "What is the sheep?", "The sheep is a penguin."),
    ("no_answer", PAIR, "Where is the penguin on the green background?", "The penguin is on the green background."),
    ("no_answer", PAIR, "What is in the picture?", "A penguin. A baby sheep. A penguin."),
    ("objects", PAIR, "What can you see in the picture?", "I can see a cat and a penguin."),
    ("objects", PAIR, "What do the mice do?", "They sit on a green background."),
    ("objects", PAIR, "Is there a cat in the picture?", "Yes, there is a cat."),
    ("presence", PAIR, "Is there a penguin in the picture?", "No, there is no penguin in the picture."),
    ("presence", PAIR, "Is there a cat or a penguin?", "No, there is none."),
    ("presence", PAIR, "Is there a cat in the picture?", "No, there is a kite."),
    ("counts", CANES, "How many candy canes are there?", "There are three candy canes."),
    ("counts", CANES, "How many candy canes are there?", "3."),
    ("counts", CANES, "What color is behind the candy cane?", "The background is yellow."),
    ("counts", PAIR, "How many things are there?", "There are four things."),
    ("counts", PAIR, "What do the penguins do?", "They sit on a green background."),
    ("counts", SOUND, "How many cats make the sound?", "Two cats."),
    ("colors", PAIR, "What color is the penguin?", "The penguin is green."),
    ("colors", PAIR, "What color is the background?", "The background is blue."),
    ("colors", PAIR, "What color is the picture?", "The picture is green."),
    ("no_answer", PAIR, "What is to the left of the penguin?", "The penguin."),
    ("positions", PAIR, "What is to the right of the penguin?", "The baby sheep."),
    ("positions", PAIR, "Where is the penguin?", "The penguin is to the left of the baby sheep."),
    ("positions", PAIR, "Where is the penguin?", "On the left side."),
    ("positions", PAIR, "Is the penguin on the left side?", "Yes, it is."),
    ("positions", PAIR, "Where is the penguin?", "The penguin is on the baby sheep."),
    ("positions", PAIR, "Which thing is larger?", "The penguin is smaller than the baby sheep."),
    ("positions", KITE, "Which way does the kite move?", "The kite moves to the left."),
    ("positions", KITE, "Where is the kite?", "The kite is on the right side."),
    ("positions", SOUND, "Where does the cat sit?", "The cat sits on the left."),
    ("unsupported", PAIR, "What does the penguin do?", "The penguin waits for a bus."),
])
def test_what_disagrees_is_dropped_with_its_reason(expected, description, question, answer):
    assert reason(description, question, answer) == expected


def test_a_share_of_new_words_may_be_allowed():
    loose = Limits((3, 20), (1, 30), 0.6)
    assert reason(PAIR, "What might the penguin and the baby sheep do?", "They rest.", loose) is None
    assert reason(PAIR, "What might happen?", "Rain falls soon.", loose) == "unsupported"


def test_worked_examples_harmful_patterns_and_lost_turns_are_noticed():
    question, answer = "What is to the left of the penguin?", "A baby sheep."
    assert reason(PAIR, question, answer, examples=frozenset({(words(question), words(answer))})) == "copied"
    assert reason(PAIR, question, answer, harmful=[re.compile("sheep")]) == "harmful"
    facts = Facts(PAIR, Lexicon(NAMES))
    assert refers_back(Pair("What color is behind it?", "Green."), facts) == "'it'"
    assert refers_back(Pair("What does the penguin do with its head?", "It nods."), facts) is None


def test_names_are_found_in_both_numbers_and_the_longest_wins():
    assert plurals(("baby", "mouse")) == {("baby", "mice")}
    assert ("torches",) in plurals(("torch",))
    assert ("cherries",) in plurals(("cherry",))
    facts = Facts(PAIR, Lexicon(NAMES))
    found = facts.mentions(words("Two cats and a sheep, no hot air balloons; you can see the picture"))
    assert [(mention.name, mention.plural) for mention in found] == [(None, True), (("baby", "sheep"), None), (None, True)]


def test_pairs_are_alike_by_their_word_triples():
    alike = Alike(0.8)
    text = "What color is the background? The background is blue and it has no end at all."
    assert alike.count(text) == 0
    alike.keep(text)
    assert alike.count(text.replace("?", " ?").upper()) == 1
    alike.keep(text)
    assert alike.count(text) == 2
    assert alike.count("What color is the background? The background is green.") == 0
    alike.keep("Two.")
    assert alike.count("two") == 1


@pytest.mark.parametrize("words", [(5, 4), (0, 3)])
def test_limits_that_nothing_fits_are_refused(words):
    with pytest.raises(ConfigError, match=rf"answer_words = \[{words[0]}, {words[1]}\]: give the least number"):
        Limits((3, 20), words, 0.0)
