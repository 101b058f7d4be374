import pytest

from anymal.errors import ConfigError
from anymal.synthesis.checks import Limits, Pair, problem
from anymal.synthesis.descriptions import Description, Thing
from anymal.synthesis.prompting import KINDS, UnparsableError, askings, form, parse, without_cut
from anymal.synthesis.words import Facts, Lexicon, words

PAIRS = (("What is it?", "A cat."), ("Where is it?", "On the left."))


def test_the_form_is_read_back():
    assert tuple(parse(form(PAIRS))) == PAIRS
    assert parse("Question: What\nis it? === Answer: A  cat. ===") == [("What is it?", "A cat.")]


@pytest.mark.parametrize(("text", "where"), [
    ("", "part 1"), ("A cat.", "part 1"), ("Question: What? === A cat.", "part 2"), ("Question: What? Answer: A cat.", "two parts"),
    ("Question: What? === Answer: A. Question: Who? === Answer: B.", "two parts"), ("Question: What?", "no answer"),
    ("Question: === Answer: A.", "empty"), ("Here: Question: What? === Answer: A.", "part 1"),
])
def test_what_leaves_the_form_is_refused(text, where):
    with pytest.raises(UnparsableError, match=where):
        parse(text)


def test_a_text_cut_off_keeps_its_whole_pairs():
    whole, cut = without_cut(form(PAIRS))
    assert parse(whole) == [PAIRS[0]]
    assert cut == "Question: Where is it? === Answer: On the left."
    assert without_cut("Question: What") == ("", "Question: What")
    assert without_cut("Question: What? === Answer: A")[0] == ""


@pytest.mark.parametrize(("kind", "manner", "modality"), [(kind, "free", modality) for kind in KINDS for modality in ("image", "audio", "video")]
                         + [(kind, "guided", "image") for kind in KINDS])
def test_the_worked_examples_fulfil_what_is_asked(kind, manner, modality):
    """They are in the form, and pass the checks on their own descriptions, positions and counts included."""
    for asking in askings(kind, manner, modality):
        messages = asking.messages("A cat.")
        assert [message["role"] for message in messages] == ["system", *["user", "assistant"] * len(asking.examples), "user"]
        assert "{medium}" not in messages[0]["content"]
        for example in asking.examples:
            facts = Facts(*_read(example.description))
            assert parse(form(example.pairs)) == list(example.pairs)
            for pair in example.pairs:
                limits = Limits((3, 30), (1, 80), 0.0 if manner == "guided" else 1.0)
                found = problem(Pair(*pair), facts, limits, examples=frozenset(), harmful=())
                assert found is None, (pair, found)


def _read(text):
    """A description from its text; things without a box get none."""
    things, captions = [], []
    for line in text.split("\n"):
        name, colon, box = line.partition(": ")
        if colon:
            boxes = [tuple(map(float, part.split("]")[0].split(", "))) for part in box.split("[")[1:]]
            things.append(Thing(name, tuple(boxes)))
        else:
            captions.append(line)
    return Description("k", "jpg", "train", "s", "l", tuple(captions), tuple(things), None), Lexicon([thing.name for thing in things])


def test_a_modality_without_examples_is_named():
    with pytest.raises(ConfigError, match=r"synthesize.imu.manner = free: .*conversation.yaml has examples of image, audio, video; add some of imu"):
        askings("conversation", "free", "imu")


def test_descriptions_show_boxes_as_shares():
    moving = Thing("kite", ((0.0, 0.1, 0.2, 0.3), (0.5, 0.1, 0.7, 0.3)))
    still = Thing("cat", ((0.1, 0.2, 0.3, 0.4),))
    description = Description("k", "jpg", "train", "s", "l", ("One.", "Two.", "Three."), (moving, still), None)
    assert description.text(captions=2, boxes=False) == "One.\nTwo."
    assert description.text(captions=1, boxes=True) == (
        "One.\nkite: from [0.000, 0.100, 0.200, 0.300] to [0.500, 0.100, 0.700, 0.300]\ncat: [0.100, 0.200, 0.300, 0.400]")
    assert words("Half-way, it’s 0.5!") == ("half", "way", "it's", "0.5")
