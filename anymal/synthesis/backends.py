"""Who answers: the LLM in this process, in batches, or any server that speaks OpenAI's chat completions.

A backend has one method, `complete(requests)`; it yields the answers in groups of those that were finished together.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from anymal.errors import AnymalError, ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

KEY_VARIABLE = "OPENAI_API_KEY"

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Request:
    """Chat messages that end with a user's turn, and the name of the answer."""

    id: str
    messages: Messages

    @property
    def digest(self) -> str:
        """Tells whether a kept answer is to these messages."""
        return hashlib.sha256(json.dumps([dict(message) for message in self.messages], sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Answer:
    """What came back. `problem` says why there is no text, when the server refuses this request alone."""

    id: str
    text: str
    finished: bool
    """False where the limit of tokens cut the text off."""
    problem: str | None = None


class Backend(Protocol):
    """Answers requests, in any order, each once."""

    def complete(self, requests: Sequence[Request]) -> Iterator[list[Answer]]:
        """Yield groups of answers as they are finished.

        Raises:
            AnymalError: if no further answer can be had; the groups before it are good.
        """
        ...


class InProcess:
    """transformers in this process: batches padded on the left, the chat turns that all requests share computed once.

    A batch is made of requests of like length that begin with the same turns. Its members depend on the list of requests and not on when
    a run was stopped: what is left is always whole batches.
    """

    def __init__(self, llm: Any, tokenizer: Any, *, batch_size: int, max_new_tokens: int, temperature: float, top_p: float, seed: int) -> None:
        """
        Args:
            temperature: 0 takes the likeliest token. Otherwise each request draws from random numbers of its own, made from `seed` and its id.
            top_p: share of the probability that tokens are drawn from.
        """
        from anymal.model.llm import PrefixCache

        self._llm, self._tokenizer, self._prefixes = llm, tokenizer, PrefixCache(llm)
        self._batch_size, self._limit, self._seed = batch_size, max_new_tokens, seed
        self._temperature, self._top_p = temperature, top_p

    def complete(self, requests: Sequence[Request]) -> Iterator[list[Answer]]:
        groups: dict[tuple[int, ...], list[tuple[int, str, list[int]]]] = {}
        for request in requests:
            prefix, rest = self._tokens(request)
            groups.setdefault(prefix, []).append((len(rest), request.id, rest))
        for prefix, members in sorted(groups.items()):
            members.sort()
            for start in range(0, len(members), self._batch_size):
                batch = members[start : start + self._batch_size]
                yield self._answer(prefix, [name for _, name, _ in batch], [rest for _, _, rest in batch])

    def _tokens(self, request: Request) -> tuple[tuple[int, ...], list[int]]:
        """Token ids of the turns before the last one, and of what follows; the first are none where the chat template mixes the two."""
        render = self._tokenizer.apply_chat_template
        whole = render(list(request.messages), tokenize=False, add_generation_prompt=True)
        before = render(list(request.messages[:-1]), tokenize=False) if len(request.messages) > 1 else ""
        if not whole.startswith(before):
            before = ""
        prefix, rest = (self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, whole[len(before) :]))
        room = getattr(self._llm.config, "max_position_embeddings", None)
        if room is not None and len(prefix) + len(rest) + self._limit > room:
            raise DataError(f"synthesize: the prompt of {request.id} has {len(prefix) + len(rest)} tokens; with max_new_tokens = {self._limit} that "
                            f"is more than the {room} that the LLM reads; lower captions or max_new_tokens, or take another LLM")
        return tuple(prefix), rest

    def _answer(self, prefix: tuple[int, ...], names: list[str], rests: list[list[int]]) -> list[Answer]:
        import torch

        width = max(map(len, rests))
        padding = self._tokenizer.pad_token_id if self._tokenizer.pad_token_id is not None else self._tokenizer.eos_token_id
        ids = torch.tensor([[*prefix, *[padding] * (width - len(rest)), *rest] for rest in rests])
        mask = torch.tensor([[1] * len(prefix) + [0] * (width - len(rest)) + [1] * len(rest) for rest in rests])
        options: dict[str, Any] = {"past_key_values": self._prefixes.get(prefix, len(rests))} if prefix else {}
        if self._temperature > 0:
            options["logits_processor"] = [_OwnNoise([f"{self._seed}:{name}" for name in names], self._temperature, self._top_p)]
        with torch.inference_mode():
            made = self._llm.generate(input_ids=ids.to(self._llm.device), attention_mask=mask.to(self._llm.device), max_new_tokens=self._limit,
                                      do_sample=False, pad_token_id=padding, **options)[:, ids.shape[1] :]
        ends = self._llm.generation_config.eos_token_id
        ending = torch.isin(made.cpu(), torch.tensor(ends if isinstance(ends, list) else [ends])).any(1).tolist()
        texts = self._tokenizer.batch_decode(made, skip_special_tokens=True)
        return [Answer(name, text.strip(), finished) for name, text, finished in zip(names, texts, ending, strict=True)]


class _OwnNoise:
    """Sampling as an argmax (Gumbel's trick), each row with random numbers of its own, so that the other rows of a batch do not matter."""

    def __init__(self, seeds: Sequence[str], temperature: float, top_p: float) -> None:
        import numpy as np

        self._rows = [np.random.default_rng(random.Random(seed).getrandbits(128)) for seed in seeds]  # noqa: S311 (reproducible on purpose)
        self._temperature, self._top_p = temperature, top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        import numpy as np
        import torch
        from transformers import TopPLogitsWarper

        scores = scores.float() / self._temperature
        if self._top_p < 1:
            scores = TopPLogitsWarper(self._top_p)(input_ids, scores)
        noise = torch.from_numpy(np.stack([row.gumbel(size=scores.shape[1]).astype(np.float32) for row in self._rows]))
        return scores + noise.to(scores.device)


class Server:
    """Chat completions of an OpenAI-compatible server (vLLM, `transformers serve`, …), a bounded number at a time.

    The key is read from the environment (`OPENAI_API_KEY`); servers that ask for none are sent none worth hiding.
    """

    def __init__(self, url: str, model: str, *, concurrency: int, timeout: float, retries: int, max_new_tokens: int, temperature: float,
                 top_p: float, seed: int) -> None:
        """
        Args:
            timeout: seconds that one answer may take.
            retries: of a request that was not answered or met a busy server, with growing pauses of up to 8 s.
        """
        try:
            import openai
        except ImportError as error:
            raise ConfigError("synthesize.server: the package openai is not installed; install the extra 'synthesize'") from error
        self._url, self._model, self._concurrency, self._retries = url, model, concurrency, retries
        self._limit, self._temperature, self._top_p, self._seed = max_new_tokens, temperature, top_p, seed
        self._client = openai.OpenAI(base_url=url, api_key=os.environ.get(KEY_VARIABLE) or "none", timeout=timeout, max_retries=retries)

    def complete(self, requests: Sequence[Request]) -> Iterator[list[Answer]]:
        waiting: set[Future[Answer]] = set()
        left = iter(requests)
        answered, trouble = 0, None
        with ThreadPoolExecutor(self._concurrency) as pool:
            while True:
                while trouble is None and len(waiting) < self._concurrency and (request := next(left, None)) is not None:
                    waiting.add(pool.submit(self._ask, request))
                if not waiting:
                    break
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    error = future.exception()
                    if error is None:
                        answered += 1
                        yield [future.result()]  # what was on its way when the trouble came is kept as well
                    elif isinstance(error, AnymalError):
                        trouble = trouble or error
                    else:
                        raise error
        if trouble is not None:
            raise type(trouble)(f"{trouble}; {answered} of {len(requests)} answers came and are kept: run the same command again to go on")

    def _ask(self, request: Request) -> Answer:
        import openai

        try:
            found = self._client.chat.completions.create(
                model=self._model, messages=[dict(message) for message in request.messages],  # type: ignore[misc]  # plain ones
                max_tokens=self._limit, temperature=self._temperature, top_p=self._top_p, seed=_seed_of(self._seed, request.id))
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise ConfigError(f"synthesize.server.url = {self._url}: refuses model {self._model} ({_sentence(error)}); correct server.model, "
                              f"server.url or the environment's {KEY_VARIABLE}") from error
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            return Answer(request.id, "", finished=True, problem=_sentence(error))
        except openai.APIError as error:  # lost connections, timeouts, busy and broken servers: tried again by the client before this
            raise AnymalError(f"synthesize.server.url = {self._url}: gives no answer after {self._retries} retries ({_sentence(error)}); "
                              "start the server or raise server.timeout") from error
        if not found.choices:
            return Answer(request.id, "", finished=True, problem="the server sent no choice")
        choice = found.choices[0]
        return Answer(request.id, (choice.message.content or "").strip(), finished=choice.finish_reason != "length")


def _seed_of(seed: int, name: str) -> int:
    return random.Random(f"{seed}:{name}").getrandbits(31)  # noqa: S311 (reproducible on purpose)


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
