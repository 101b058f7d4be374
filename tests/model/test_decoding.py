"""Decoding with prompts that join and leave at any time gives the answers that each prompt gets alone."""

from __future__ import annotations

import random

import pytest

from anymal.model.decoding import Decoder, Sampling
from anymal.model.llm import load_llm
from anymal.model.prompt import Prompt
from tests.model.test_anymal import assemble, mixed
from tests.tiny import make_llm

GREEDY = Sampling()
LENGTH = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    llm, tokenizer = load_llm(make_llm(tmp_path_factory.mktemp("llm") / "tiny-llm"), dtype="float32", quantization="none", attention="eager")
    return assemble(llm, tokenizer)


def alone(model, pieces, sampling=GREEDY, length=LENGTH):
    decoder = Decoder(model)
    tokens = [decoder.join({0: (pieces, sampling)})[0]]
    while len(tokens) < length:
        tokens.append(decoder.step()[0])
    return tokens


def test_alone_it_is_what_generate_says(model):
    for prompt in mixed(model):
        tokens = alone(model, model.tokenize(prompt))
        if model.end_of_turn in tokens:
            tokens = tokens[: tokens.index(model.end_of_turn)]
        said = model.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        assert said == model.generate([prompt], max_new_tokens=LENGTH, batch_size=1)[0]


@pytest.mark.parametrize("seed", range(6))
def test_company_changes_nothing(model, seed):
    """Prompts come in at random moments and leave at random lengths; among them sampled ones."""
    rng = random.Random(seed)
    prompts = [model.tokenize(prompt) for prompt in mixed(model)]
    wanted = {i: rng.randint(1, LENGTH) for i in range(len(prompts))}
    manner = {i: Sampling(1.5, 0.9, seed=i) if i % 3 == 2 else GREEDY for i in range(len(prompts))}
    waiting, found, decoder = list(range(len(prompts))), {}, Decoder(model)
    rng.shuffle(waiting)
    while waiting or len(decoder):
        for key, token in decoder.step().items():
            found[key].append(token)
        come = [waiting.pop() for _ in range(min(len(waiting), rng.randint(0, 3)))]
        for key, token in decoder.join({i: (prompts[i], manner[i]) for i in come}).items():
            found[key] = [token]
        decoder.leave([key for key, tokens in found.items() if len(tokens) >= wanted[key]])
    assert {i: tokens for i, tokens in found.items() if tokens != alone(model, prompts[i], manner[i], wanted[i])} == {}
    assert {i: len(tokens) for i, tokens in found.items()} == wanted


def test_what_the_template_puts_first_is_computed_once(model, monkeypatch):
    """Prompts with a system message of their own have less in common with the others; nobody's answer changes."""
    prompts = [model.tokenize(prompt) for prompt in mixed(model)]
    opening = len(Decoder(model)._opening([prompts[0]]))
    assert opening >= 1
    seen = []
    run = model.llm.base_model.forward
    monkeypatch.setattr(model.llm.base_model, "forward", lambda *args, **given: seen.append(
        next(given[name].shape[1] for name in ("inputs_embeds", "input_ids") if given.get(name) is not None)) or run(*args, **given))
    decoder = Decoder(model)
    for key in (0, 1):
        decoder.join({key: (prompts[key], GREEDY)})
    assert seen == [opening, *(model.length(prompts[key]) - opening for key in (0, 1))]


def test_a_system_message_of_ones_own_changes_nobodys_answer(model):
    plain = Prompt([{"role": "user", "content": "what colour is the picture ?"}])
    own = Prompt([{"role": "system", "content": "is it red ?"}, {"role": "user", "content": "what colour is the picture ?"}])
    pieces = [model.tokenize(prompt) for prompt in (plain, own, plain)]
    decoder = Decoder(model)
    found = {key: [token] for key, token in decoder.join({i: (each, GREEDY) for i, each in enumerate(pieces)}).items()}
    for _ in range(LENGTH - 1):
        for key, token in decoder.step().items():
            found[key].append(token)
    assert list(found.values()) == [alone(model, each) for each in pieces]


def test_a_seed_draws_the_same_and_another_does_not(model):
    pieces = model.tokenize(mixed(model)[0])
    drawn = [alone(model, pieces, Sampling(2.0, 1.0, seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert alone(model, pieces, Sampling(2.0, 1e-9, 3)) == alone(model, pieces)


def test_who_left_is_forgotten(model):
    prompts = [model.tokenize(prompt) for prompt in mixed(model)]
    decoder = Decoder(model)
    decoder.join({i: (pieces, GREEDY) for i, pieces in enumerate(prompts)})
    decoder.step()
    decoder.leave([0, 5, "nobody"])
    assert sorted(decoder.step()) == [i for i in range(len(prompts)) if i not in (0, 5)]
    decoder.leave(range(len(prompts)))
    assert (len(decoder), decoder.step(), decoder.join({})) == (0, {}, {})
