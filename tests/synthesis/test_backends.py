import os
import subprocess
import sys
import threading
import time

import pytest
import requests
import torch

from anymal.errors import AnymalError, ConfigError, DataError
from anymal.model.llm import load_llm
from anymal.synthesis.backends import InProcess, Request, Server
from anymal.synthesis.blind import blind_likelihoods
from anymal.synthesis.checks import Pair
from anymal.synthesis.journal import Journal, ask
from pipelines.servers import free_port
from tests.synthesis.scripted import Scripted
from tests.tiny import make_llm

SHARED = [{"role": "system", "content": "describe"}, {"role": "user", "content": "a cat"}, {"role": "assistant", "content": "is there a dog ?"}]
REQUESTS = [Request(f"r{index:02d}", [*SHARED, {"role": "user", "content": "the dog is red " * (index % 4 + 1) + "a" * index}])
            for index in range(10)]
OPTIONS = {"max_new_tokens": 8, "temperature": 0.0, "top_p": 1.0, "seed": 0}


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return load_llm(make_llm(tmp_path_factory.mktemp("llm")), dtype="float32", quantization="none", attention="sdpa")


@pytest.fixture
def scripted(tmp_path):
    server = Scripted(tmp_path / "answers.log", free_port())
    yield server
    server.stop()


def texts(backend, requests):
    return {answer.id: (answer.text, answer.finished) for group in backend.complete(requests) for answer in group}


def plain(llm, request):
    """What the LLM says to one request, without batches, padding and shared turns."""
    model, tokenizer = llm
    ids = tokenizer.apply_chat_template(list(request.messages), add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.no_grad():
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=2)
    return tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_batches_say_what_single_requests_say(llm):
    found = texts(InProcess(*llm, batch_size=4, **OPTIONS), REQUESTS)
    assert {name: text for name, (text, _) in found.items()} == {request.id: plain(llm, request) for request in REQUESTS}
    assert len(set(found.values())) > 3


def test_sampling_depends_on_seed_and_id_alone(llm):
    options = {**OPTIONS, "temperature": 1.5, "top_p": 0.9}
    one, many = (texts(InProcess(*llm, batch_size=size, **options), REQUESTS) for size in (1, 5))
    assert one == many
    assert texts(InProcess(*llm, batch_size=5, **{**options, "seed": 1}), REQUESTS) != many
    assert texts(InProcess(*llm, batch_size=5, **OPTIONS), REQUESTS) != many
    same = [Request(name, REQUESTS[0].messages) for name in "abcdef"]
    assert len(set(texts(InProcess(*llm, batch_size=6, **options), same).values())) > 1


def test_a_prompt_that_the_llm_cannot_read_whole_is_refused(llm):
    with pytest.raises(DataError, match=r"prompt of long has \d+ tokens; with max_new_tokens = 8 .* lower captions"):
        list(InProcess(*llm, batch_size=1, **OPTIONS).complete([Request("long", [{"role": "user", "content": "red " * 3000}])]))


def test_a_stopped_run_asks_for_nothing_twice_and_ends_alike(llm, tmp_path):
    class Stops(InProcess):
        def complete(self, requests):
            for count, group in enumerate(super().complete(requests)):
                asked.extend(answer.id for answer in group)
                yield group
                if count == 1:
                    raise KeyboardInterrupt

    asked, rates = [], []
    whole = ask(InProcess(*llm, batch_size=4, **OPTIONS), REQUESTS, tmp_path / "whole.jsonl", report=rates.append)
    assert list(whole) == [request.id for request in REQUESTS]
    assert rates[0]["answers_per_minute"] > 0
    with pytest.raises(KeyboardInterrupt):
        ask(Stops(*llm, batch_size=4, **OPTIONS), REQUESTS, tmp_path / "cut.jsonl", report=rates.append)
    assert len(asked) == 8
    with (tmp_path / "cut.jsonl").open("ab") as stream:
        stream.write(b'[{"id": "r0')  # what a kill leaves of a line
    again = ask(Stops(*llm, batch_size=4, **OPTIONS), REQUESTS, tmp_path / "cut.jsonl", report=rates.append)
    assert sorted(asked) == list(whole)
    assert again == whole
    assert (tmp_path / "cut.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert ask(Stops(*llm, batch_size=4, **OPTIONS), REQUESTS, tmp_path / "cut.jsonl", report=rates.append) == whole
    assert len(asked) == 10
    assert len(rates) == 2  # nothing asked, nothing reported


def test_a_kept_answer_to_other_messages_is_not_used(llm, tmp_path):
    backend, path = InProcess(*llm, batch_size=4, **OPTIONS), tmp_path / "a.jsonl"
    ask(backend, REQUESTS[:1], path, report=lambda _: None)
    changed = Request(REQUESTS[0].id, REQUESTS[5].messages)
    assert ask(backend, [changed], path, report=lambda _: None)[changed.id].text == plain(llm, changed)
    assert len(Journal(path).groups) == 2


def test_blind_likelihoods_do_not_depend_on_the_batch(llm):
    pairs = [Pair("what colour ?", "red"), Pair("is there a dog ?", "yes there is a dog"), Pair("describe", "a cat and two dogs are left")]
    one, all_ = ({pair: value for group in blind_likelihoods(*llm, pairs, batch_size=size) for pair, value in group} for size in (1, 3))
    assert one.keys() == all_.keys() == set(pairs)
    assert all(one[pair] == pytest.approx(all_[pair], abs=2e-4) and one[pair] < 0 for pair in pairs)


def server(url, **options):
    return Server(url, **({"model": "m", "concurrency": 2, "timeout": 5.0, "retries": 0, **OPTIONS} | options))


def test_a_server_that_dies_is_named_and_gone_on_with(scripted, tmp_path):
    scripted.start(dies_after=4)
    with pytest.raises(AnymalError, match=r"gives no answer after 0 retries .* 4 of 10 answers came and are kept: run the same command again"):
        ask(server(scripted.url, concurrency=1), REQUESTS, tmp_path / "a.jsonl", report=lambda _: None)
    scripted.stop()
    scripted.start()
    found = ask(server(scripted.url), REQUESTS, tmp_path / "a.jsonl", report=lambda _: None)
    assert list(found) == [request.id for request in REQUESTS]
    answered = scripted.answered()
    assert len(answered) == len(set(answered)) == 10


def test_a_server_that_comes_back_in_time_is_survived(scripted):
    timer = threading.Timer(1.0, scripted.start)
    timer.start()
    found = texts(server(scripted.url, retries=8), REQUESTS[:3])
    timer.join()
    assert len(found) == 3


def test_wrong_models_stop_and_refused_requests_do_not(scripted):
    scripted.start()
    with pytest.raises(ConfigError, match=r"refuses model unknown .*no such model.* correct server"):
        list(server(scripted.url, model="unknown").complete(REQUESTS[:1]))
    bad = Request("bad", [{"role": "user", "content": "too long"}])
    answers = {answer.id: answer for group in server(scripted.url).complete([bad, REQUESTS[0]]) for answer in group}
    assert "too long" in answers["bad"].problem
    assert answers[REQUESTS[0].id].problem is None


def test_nobody_there_is_one_sentence():
    with pytest.raises(AnymalError, match=r"server.url = http://127.0.0.1:\d+/v1: gives no answer .*; start the server"):
        list(server(f"http://127.0.0.1:{free_port()}/v1").complete(REQUESTS[:2]))


@pytest.mark.slow
def test_transformers_serve_answers_survives_and_agrees_with_the_process(llm, tmp_path):
    """The real server of transformers with a tiny LLM, killed half-way and started again."""
    folder, port = make_llm(tmp_path / "llm"), free_port()

    def start():
        process = subprocess.Popen([sys.executable, "-m", "transformers.cli.transformers", "serve", "--host", "127.0.0.1", "--port", str(port),
                                    "--device", "cpu", "--dtype", "float32"], env={**os.environ, "HF_HUB_OFFLINE": "1"},
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None:
            try:
                requests.get(f"http://127.0.0.1:{port}/health", timeout=2)
                return process
            except requests.RequestException:
                time.sleep(0.5)
        raise RuntimeError("transformers serve did not start")

    class KillsAfter(Server):
        def complete(self, requests):
            for count, group in enumerate(super().complete(requests)):
                yield group
                if count == 3:
                    process.kill()
                    process.wait()

    options = {"model": str(folder), "concurrency": 1, "timeout": 120.0, "retries": 1, **OPTIONS}
    process = start()
    try:
        with pytest.raises(AnymalError, match="4 of 10 answers came and are kept"):
            ask(KillsAfter(f"http://127.0.0.1:{port}/v1", **options), REQUESTS, tmp_path / "a.jsonl", report=lambda _: None)
        process = start()
        found = ask(Server(f"http://127.0.0.1:{port}/v1", **options), REQUESTS, tmp_path / "a.jsonl", report=lambda _: None)
    finally:
        process.kill()
        process.wait()
    assert len(Journal(tmp_path / "a.jsonl").groups) == 10
    assert {name: answer.text for name, answer in found.items()} == {request.id: plain(llm, request) for request in REQUESTS}
