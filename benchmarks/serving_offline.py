"""The same requests without a server: one at a time through transformers' `generate`, with the guard in the way."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers.generation.streamers import BaseStreamer

from anymal.registry import resolve_bundle
from anymal.safety.streaming import Refusal, guarded_stream
from anymal.serving.checks import load_checks
from anymal.serving.conversation import Turn, text_of, to_prompt
from anymal.serving.desk import pictures_of
from anymal.serving.engine import UNKNOWN
from anymal.serving.host import load_with
from anymal.serving.intake import turns_of
from anymal.serving.openai import parse

if TYPE_CHECKING:
    from benchmarks.serving_requests import Asked


@dataclass(frozen=True)
class Said:
    """An answer as a reader gets it: what was released, and how it ended."""

    text: str
    finish: str
    """`stop`, `length`, or `content_filter` where the guard refused."""


@dataclass(frozen=True)
class Expected:
    """The offline answer, and what is needed to judge another one."""

    said: Said
    starts: tuple[str, ...]
    """The model's text after each token."""
    gaps: tuple[float, ...]
    """Of each token: how far the second likeliest was behind, as a difference of logits."""

    def gap_at(self, other: str) -> float | None:
        """The gap of the first token that cannot have been chosen in another answer; None if the model did not speak."""
        different = (place for place, start in enumerate(self.starts) if not other.startswith(start.rstrip(UNKNOWN)))
        return self.gaps[next(different, len(self.gaps) - 1)] if self.gaps else None


@dataclass(frozen=True)
class Timed:
    """Seconds since the files were at hand, and tokens."""

    first: float
    whole: float
    tokens: int


class _Clock(BaseStreamer):  # type: ignore[misc]
    """Notes when tokens are chosen; `generate` hands the prompt over first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to be said."""


class Offline:
    """Bundle and guard, loaded as the server loads them."""

    def __init__(self, bundle: str, guard: str, *, dtype: str | None, text_in_pictures: bool, tokens: int) -> None:
        self.model = load_with(dtype, None)(resolve_bundle(bundle))
        self.guard = load_checks(guard, text_in_pictures=text_in_pictures)
        self._tokens = tokens

    @torch.no_grad()
    def expected(self, asked: Asked) -> Expected:
        """The answer.

        Raises:
            DataError: if the model cannot be asked this.
        """
        turns = self._turns(asked)
        pictures = self.guard.shown(pictures_of(turns))
        prompt = to_prompt(self.model, turns)
        if not self.guard.check_input(text_of(turns), pictures).allowed:
            return Expected(Said("", "content_filter"), (), ())
        out = self._generate(self._embedded(prompt), output_logits=True, return_dict_in_generate=True)
        ids = out.sequences[0].tolist()
        best = [step[0].float().topk(2).values for step in out.logits]
        starts = tuple(self._text(ids[:end]) for end in range(1, len(ids) + 1))
        sentences = list(guarded_stream(self.guard, iter([starts[-1].rstrip()]), pictures))
        refused = bool(sentences) and isinstance(sentences[-1], Refusal)
        finish = "content_filter" if refused else "stop" if ids[-1] == self.model.end_of_turn else "length"
        return Expected(Said("".join(sentences[:-1] if refused else sentences), finish), starts, tuple(float(top[0] - top[1]) for top in best))

    @torch.no_grad()
    def timed(self, asked: Asked) -> Timed:
        """`generate` alone, no guard: from the request's bytes through the encoders to the last token."""
        clock, turns = _Clock(), self._turns(asked)
        started = time.perf_counter()
        self._generate(self._embedded(to_prompt(self.model, turns)), streamer=clock)
        times = clock.times[1:]
        return Timed(times[0] - started, times[-1] - started, len(times))

    def check_seconds(self, asked: Asked) -> float:
        """How long the guard alone takes for the request."""
        turns = self._turns(asked)
        started = time.perf_counter()
        self.guard.check_input(text_of(turns), pictures_of(turns))
        return time.perf_counter() - started

    def _turns(self, asked: Asked) -> list[Turn]:
        return turns_of(parse(asked.body("any", tokens=self._tokens)).messages, remote_bytes=None)

    def _embedded(self, prompt: Any) -> torch.Tensor:
        return self.model.embed_prompts([self.model.tokenize(prompt)])[0][None]

    def _generate(self, embedded: torch.Tensor, **options: Any) -> Any:
        end = self.model.end_of_turn
        mask = torch.ones(embedded.shape[:2], dtype=torch.long, device=embedded.device)
        return self.model.llm.generate(inputs_embeds=embedded, attention_mask=mask, max_new_tokens=self._tokens, do_sample=False, eos_token_id=end,
                                       pad_token_id=end, **options)

    def _text(self, ids: list[int]) -> str:
        return self.model.tokenizer.decode(ids, skip_special_tokens=True).lstrip()
