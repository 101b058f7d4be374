"""The tasks as the stage runs them: records, and beside them the prompt, the protocol and what a text may name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anymal.evaluation.mixed import mixed_messages, predict_mixed
from anymal.evaluation.predict import Predictor, Record, label_vocabulary, predict_answers, predict_captions
from anymal.evaluation.protocol import caption_protocol, mixed_protocol, prompt_text, question_protocol

Described = dict[str, Any]
"""`prompt`, `protocol`, and `vocabulary`: the labels of the split, the answers by modality, or None."""


def run_captions(
    predictor: Predictor, *, kinds: Sequence[str] | None, limit: int | None, scored_references: int, max_new_tokens: int,
    conditions: Sequence[str], seed: int, split: str, llm: str,
) -> tuple[list[Record], Described]:
    """See `predict_captions`.

    Args:
        llm: the LLM and its precision, in words.
    """
    records, available = predict_captions(
        predictor, kinds=kinds, limit=limit, scored_references=scored_references, max_new_tokens=max_new_tokens,
        conditions=conditions, seed=seed)
    labels = label_vocabulary(predictor.store)
    text = caption_protocol(
        samples=len(records), available=available, kinds=kinds, labels=len(labels), split=split, seed=seed, llm=llm,
        max_new_tokens=max_new_tokens, scored_references=scored_references, conditions=conditions)
    return records, {"prompt": prompt_text(predictor.messages(predictor.template("caption"))), "protocol": text, "vocabulary": labels or None}


def run_questions(
    predictor: Predictor, *, limit: int | None, max_new_tokens: int, conditions: Sequence[str], seed: int, split: str, llm: str
) -> tuple[list[Record], Described]:
    """See `predict_answers`.

    Args:
        llm: the LLM and its precision, in words.
    """
    records, available = predict_answers(predictor, limit=limit, max_new_tokens=max_new_tokens, conditions=conditions, seed=seed)
    text = question_protocol(
        questions=len(records), available=available, samples=len({record["key"] for record in records}), split=split, seed=seed, llm=llm,
        max_new_tokens=max_new_tokens, conditions=conditions)
    return records, {"prompt": prompt_text(predictor.messages(predictor.template("question"))), "protocol": text, "vocabulary": None}


def run_mixed(
    predictor: Predictor, *, kinds: Mapping[str, str], question: str, samples: int, max_new_tokens: int, conditions: Sequence[str], seed: int,
    split: str, llm: str,
) -> tuple[list[Record], Described]:
    """See `predict_mixed`.

    Args:
        llm: the LLM and its precision, in words.
    """
    records, answers, available = predict_mixed(
        predictor, kinds=kinds, question=question, samples=samples, max_new_tokens=max_new_tokens, conditions=conditions, seed=seed)
    text = mixed_protocol(
        questions=len(records), available=available, kinds=kinds, answers={modality: len(found) for modality, found in answers.items()},
        split=split, seed=seed, llm=llm, max_new_tokens=max_new_tokens, conditions=conditions)
    return records, {"prompt": prompt_text(mixed_messages(predictor, question)), "protocol": text, "vocabulary": answers}
