"""Decoding of several prompts at once, which join and leave between two tokens: what a server needs to batch requests that come when they like."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anymal.model.llm import PrefixCache
from anymal.model.prompt import Prompt

if TYPE_CHECKING:
    from anymal.model.anymal import AnyMAL
    from anymal.model.prompt import Pieces


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the likeliest token, as all measurements do.
        top_p: only the likeliest tokens that together reach this probability.
        seed: of the draws; the same prompt, settings and seed give the same answer whoever else is being answered, but for rounding.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass
class _Row:
    key: Hashable
    sampling: Sampling
    generator: torch.Generator | None
    position: int
    """Of the next token to be fed."""
    token: int
    """The last one chosen, not fed yet."""


@dataclass
class _Batch:
    """Rows with what the LLM has computed of them, padded on the left to one length."""

    rows: list[_Row] = field(default_factory=list)
    cache: Any = None
    """transformers' own: keys and values of each block, (rows, heads, length, dim). Each step grows it; nothing else is copied for a token."""
    mask: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.long))
    """(rows, length); 1 where there is a token."""


class Decoder:
    """The answers under way.

    `join` reads prompts and chooses the first token of each; each `step` chooses one more for all of them. Tokens of a prompt are those that it
    gets alone, but for rounding: padding is masked, and positions count the prompt's own tokens. What the chat template puts before a question (the
    demo's LLM has 24 tokens there, more than many a question) is computed once and kept.
    """

    def __init__(self, model: AnyMAL) -> None:
        self._model = model
        self._batch = _Batch()
        self._prefixes = PrefixCache(model.llm)
        self._template = model.tokenize(Prompt([{"role": "user", "content": ""}])).texts[0]

    def __len__(self) -> int:
        return len(self._batch.rows)

    @torch.no_grad()
    def join(self, prompts: Mapping[Hashable, tuple[Pieces, Sampling]]) -> dict[Hashable, int]:
        """Read prompts, all in one pass; the first token of each answer. The end of turn is a token as any other: the caller calls `leave`."""
        from transformers import DynamicCache

        if not prompts:
            return {}
        llm = self._model.llm
        samples = [pieces for pieces, _ in prompts.values()]
        opening = self._opening(samples)
        embedded = [row[len(opening) :] for row in self._model.embed_prompts(samples)]
        lengths = [len(row) for row in embedded]
        longest = max(lengths)
        padded = torch.stack([torch.nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in embedded])
        places = torch.arange(longest, device=padded.device)
        starts = torch.tensor([longest - length for length in lengths], device=padded.device)[:, None]
        mask = torch.cat([places.new_ones(len(samples), len(opening)), (places >= starts).long()], dim=1)
        cache = self._prefixes.get(opening, len(samples)) if opening else DynamicCache()
        out = llm.base_model(inputs_embeds=padded, attention_mask=mask, position_ids=len(opening) + (places - starts).clamp(min=0),
                             past_key_values=cache, use_cache=True)
        rows = [_Row(key, sampling, _generator(sampling, padded.device), len(opening) + length, 0)
                for (key, (_, sampling)), length in zip(prompts.items(), lengths, strict=True)]
        self._choose(rows, out.last_hidden_state[:, -1])
        self._batch = _merged(self._batch, _padded_first(_Batch(rows, cache, mask)))
        return {row.key: row.token for row in rows}

    def _opening(self, samples: Sequence[Pieces]) -> tuple[int, ...]:
        """The tokens that all of these prompts and one that asks nothing begin with; at least one token is left to each."""
        starts = [self._template, *(sample.texts[0] if sample.media else sample.texts[0][:-1] for sample in samples)]
        columns = zip(*starts, strict=False)
        return tuple(column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns))

    @torch.no_grad()
    def step(self) -> dict[Hashable, int]:
        """One more token of every answer under way."""
        batch = self._batch
        if not batch.rows:
            return {}
        device = batch.mask.device
        batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(batch.rows), 1)], dim=1)
        fed = self._model.embed_tokens([row.token for row in batch.rows])[:, None]
        positions = torch.tensor([[row.position] for row in batch.rows], device=device)
        out = self._model.llm.base_model(inputs_embeds=fed, attention_mask=batch.mask, position_ids=positions, past_key_values=batch.cache,
                                         use_cache=True)
        for row in batch.rows:
            row.position += 1
        self._choose(batch.rows, out.last_hidden_state[:, -1])
        return {row.key: row.token for row in batch.rows}

    def leave(self, keys: Sequence[Hashable]) -> None:
        """Forget these answers, finished or not, and free their memory."""
        gone = set(keys)
        kept = [place for place, row in enumerate(self._batch.rows) if row.key not in gone]
        if len(kept) == len(self._batch.rows):
            return
        if not kept:
            self._batch = _Batch()
            return
        chosen = torch.tensor(kept, device=self._batch.mask.device)
        mask = self._batch.mask[chosen]
        cut = int(mask.argmax(dim=1).min())  # columns that were padding of those who stay, too
        for layer in self._batch.cache.layers:
            layer.keys, layer.values = layer.keys[chosen, :, cut:].clone(), layer.values[chosen, :, cut:].clone()
        self._batch = _Batch([self._batch.rows[place] for place in kept], self._batch.cache, mask[:, cut:])

    def _choose(self, rows: Sequence[_Row], hidden: Tensor) -> None:
        """Set each row's next token from the last hidden states (rows, dim)."""
        logits = self._model.llm.get_output_embeddings()(hidden.contiguous()).float()
        likeliest = logits.argmax(dim=-1).tolist()
        for place, row in enumerate(rows):
            row.token = likeliest[place] if row.generator is None else _draw(logits[place], row.sampling, row.generator)


def _generator(sampling: Sampling, device: torch.device) -> torch.Generator | None:
    return None if sampling.temperature == 0 else torch.Generator(device).manual_seed(sampling.seed)


def _draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """A token drawn from the logits (vocabulary,), tempered and cut to the nucleus."""
    shares, order = torch.softmax(logits / sampling.temperature, dim=-1).sort(descending=True)
    shares[(shares.cumsum(dim=-1) - shares) >= sampling.top_p] = 0.0
    return int(order[torch.multinomial(shares, 1, generator=generator)])


def _padded_first(batch: _Batch) -> _Batch:
    """The batch with each row's padding, which may follow its opening, moved before it."""
    if bool(batch.mask.all()):
        return batch
    order = batch.mask.argsort(dim=1, stable=True)
    for layer in batch.cache.layers:
        layer.keys, layer.values = (kept.gather(2, order[:, None, :, None].expand_as(kept)) for kept in (layer.keys, layer.values))
    return _Batch(batch.rows, batch.cache, batch.mask.gather(1, order))


def _merged(first: _Batch, second: _Batch) -> _Batch:
    """Two batches as one, the shorter one padded on the left; the first one's cache holds both then."""
    if not first.rows:
        return second
    length = max(first.mask.shape[1], second.mask.shape[1])

    def filled(tensor: Tensor, dim: int) -> Tensor:
        missing = length - tensor.shape[dim]
        shape = [*tensor.shape]
        shape[dim] = missing
        return torch.cat([tensor.new_zeros(shape), tensor], dim=dim) if missing else tensor

    for a, b in zip(first.cache.layers, second.cache.layers, strict=True):
        a.keys, a.values = torch.cat([filled(a.keys, 2), filled(b.keys, 2)]), torch.cat([filled(a.values, 2), filled(b.values, 2)])
    return _Batch([*first.rows, *second.rows], first.cache, torch.cat([filled(first.mask, 1), filled(second.mask, 1)]))
