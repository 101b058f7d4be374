"""A model that was asked by a run that was killed, and by the one that goes on."""

import pytest
import torch

from anymal.evaluation.recorded import RecordedModel
from anymal.model.anymal import Completion
from anymal.model.prompt import Medium, Prompt


class Batches:
    """Answers in batches, the longest question first; what it says depends on the company, as padding makes it."""

    templates = {"image": {}}  # noqa: RUF012
    metadata = {"image": {}}  # noqa: RUF012

    def __init__(self, survives=10**9):
        self.batches, self._left = [], survives

    def _asked(self, prompts, batch_size):
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].messages[0]["content"]))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            if self._left == 0:
                raise KeyboardInterrupt
            self._left -= 1
            self.batches.append([prompts[i].messages[0]["content"] for i in rows])
            yield rows, "+".join(self.batches[-1])

    def completions(self, prompts, *, max_new_tokens, batch_size):
        for rows, company in self._asked(prompts, batch_size):
            features = {i: prompts[i].media[0].features for i in rows}
            yield [(i, Completion(f"{company} {float(shown.sum())}", "length" if shown.any() else "stop")) for i, shown in features.items()]

    def losses(self, prompts, targets, *, batch_size):
        for rows, company in self._asked(prompts, batch_size):
            yield [(i, (len(company) / 3 + len(targets[i]), len(targets[i]))) for i in rows]


def prompts(count):
    return [Prompt([{"role": "user", "content": "q" * (1 + i % 5)}], [Medium("image", torch.full((2, 3), i // 2, dtype=torch.float16))])
            for i in range(count)]


def program(model):
    """Asks the same thing twice among others, as losses of equal captions are."""
    asked = prompts(9)
    return (model.complete(asked, max_new_tokens=4, batch_size=2), model.score(asked, ["a", "b", "a", "a", "b", "c", "a", "b", "c"], batch_size=4),
            model.complete(asked[:5], max_new_tokens=4, batch_size=2), model.complete([], max_new_tokens=4, batch_size=2))


@pytest.mark.parametrize("survives", range(11))
def test_a_run_that_goes_on_asks_what_is_left_in_the_same_batches(tmp_path, survives):
    whole = Batches()
    expected = program(RecordedModel(whole, tmp_path / "whole.jsonl"))
    first, second = Batches(survives), Batches()
    assert len(whole.batches) == 5 + 3 + 3
    with pytest.raises(KeyboardInterrupt):
        program(RecordedModel(first, tmp_path / "j.jsonl"))
    assert program(RecordedModel(second, tmp_path / "j.jsonl")) == expected
    assert first.batches + second.batches == whole.batches
    third = Batches()
    assert program(RecordedModel(third, tmp_path / "j.jsonl")) == expected and third.batches == []


def test_a_line_that_was_cut_short_is_asked_again(tmp_path):
    whole = Batches()
    expected = program(RecordedModel(whole, tmp_path / "j.jsonl"))
    data = (tmp_path / "j.jsonl").read_bytes()
    (tmp_path / "j.jsonl").write_bytes(data[:-7])
    again = Batches()
    assert program(RecordedModel(again, tmp_path / "j.jsonl")) == expected and again.batches == whole.batches[-1:]


@pytest.mark.parametrize("change", [
    lambda asked: (asked[1:], 4), lambda asked: (asked, 5),
    lambda asked: ([Prompt(one.messages, [Medium("audio", one.media[0].features)]) for one in asked], 4),
    lambda asked: ([Prompt(one.messages, [Medium("image", one.media[0].features + 1)]) for one in asked], 4),
])
def test_what_was_told_to_another_request_is_not_taken(tmp_path, change):
    asked = prompts(4)
    RecordedModel(Batches(), tmp_path / "j.jsonl").complete(asked, max_new_tokens=4, batch_size=2)
    others, limit = change(asked)
    model = Batches()
    RecordedModel(model, tmp_path / "j.jsonl").complete(others, max_new_tokens=limit, batch_size=2)
    assert sum(map(len, model.batches)) == len(others)


def test_finish_reasons_and_losses_come_back_as_they_were(tmp_path):
    model = RecordedModel(Batches(), tmp_path / "j.jsonl")
    said = model.complete(prompts(3), max_new_tokens=4, batch_size=2)
    assert [one.finish for one in said] == ["stop", "stop", "length"] and all(isinstance(one, Completion) for one in said)
    assert all(isinstance(nats, float) and isinstance(tokens, int) for nats, tokens in model.score(prompts(3), ["a"] * 3, batch_size=2))
    assert model.templates == {"image": {}} == model.metadata
