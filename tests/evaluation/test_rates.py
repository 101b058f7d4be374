"""How answers end and begin."""

from anymal.evaluation.rates import rates


def test_rates_are_shares_of_all_answers():
    answers = ["A photo of a cat", "a  photo of", "A dog", "", "  ", "A photo of a cow"]
    found = rates(answers, ["stop", "stop", "stop", "stop", "length", "length"])
    assert found == {"eos": 4 / 6, "max_length": 2 / 6, "empty": 2 / 6, "prefix": 3 / 6, "prefix_words": "a photo of"}


def test_the_first_in_the_alphabet_of_equals_and_nothing_said():
    assert rates(["b", "a"], ["stop", "stop"])["prefix_words"] == "a"
    assert rates(["", ""], ["stop", "stop"]) == {"eos": 1.0, "max_length": 0.0, "empty": 1.0, "prefix": 0.0, "prefix_words": ""}
