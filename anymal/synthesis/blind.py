"""How likely an LLM finds an answer when it has the question and not the medium: what it guesses without looking teaches nothing about looking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from anymal.synthesis.checks import Pair


def blind_likelihoods(llm: Any, tokenizer: Any, pairs: Sequence[Pair], *, batch_size: int) -> Iterator[list[tuple[Pair, float]]]:
    """Score pairs in batches of like length, whose members depend on the pairs alone.

    Yields:
        Groups of (pair, mean log-likelihood of the answer's tokens, its end included, in nats), in any order.
    """
    tokens = [_tokens(tokenizer, pair) for pair in pairs]
    order = sorted(range(len(pairs)), key=lambda index: (sum(map(len, tokens[index])), pairs[index].text))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        scores = _scores(llm, [tokens[index] for index in batch])
        yield [(pairs[index], score) for index, score in zip(batch, scores, strict=True)]


def _tokens(tokenizer: Any, pair: Pair) -> tuple[list[int], list[int]]:
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": pair.question}], tokenize=False, add_generation_prompt=True)
    before, after = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, pair.answer))
    return before, [*after, tokenizer.eos_token_id]


def _scores(llm: Any, rows: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    """Padding is on the right, where causal attention does not look."""
    import torch

    width = max(len(before) + len(after) for before, after in rows)
    ids = torch.tensor([[*before, *after, *[0] * (width - len(before) - len(after))] for before, after in rows], device=llm.device)
    with torch.inference_mode():
        hidden = llm.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).last_hidden_state
        found = []
        for row, (before, after) in enumerate(rows):
            logits = llm.get_output_embeddings()(hidden[row, len(before) - 1 : len(before) + len(after) - 1]).float()
            chosen = torch.log_softmax(logits, -1).gather(1, torch.tensor(after, device=logits.device)[:, None])
            found.append(round(float(chosen.mean()), 4))
    return found
