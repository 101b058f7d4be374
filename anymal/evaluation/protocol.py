"""How the figures were measured, in words: what stands as `prompt` and `protocol` beside the figures."""

from __future__ import annotations

from collections.abc import Sequence

from anymal.evaluation.bootstrap import LEVEL
from anymal.model.prompt import Template


def prompt_text(template: Template) -> str:
    """A prompt template as it is recorded: each message after its role."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in template.messages())


def caption_protocol(
    *, samples: int, available: int, kinds: Sequence[str], split: str, seed: int, llm: str, max_new_tokens: int, scored_references: int,
    resamples: int,
) -> str:
    """What the caption figures were measured on, and how."""
    return "; ".join((
        f"{samples} of {available} captioned samples of kind {', '.join(kinds)} of split {split} (seed {seed})",
        f"{llm}, greedy decoding up to the end of turn, at most {max_new_tokens} new tokens",
        "references: all captions of a sample",
        f"nll: nats per token, end of turn included, of the first {scored_references} references, samples weighted by their tokens",
        "CIDEr-D (0 to 10) and ROUGE-L: means over samples, document frequencies fixed from all references of this set",
        "BLEU-4 and METEOR 1.5: of the whole set, from added-up counts",
        "captions of fewer than 4 words have no 4-grams, which bounds their CIDEr-D and BLEU-4 below the top of the scale",
        _controls(seed), _interval(resamples),
    ))  # fmt: skip


def vqa_protocol(
    *, questions: int, available: int, samples: int, split: str, seed: int, llm: str, max_new_tokens: int, resamples: int
) -> str:
    """What the VQA figures were measured on, and how."""
    return "; ".join((
        f"{questions} of {available} questions, about {samples} samples of split {split}, drawn as evenly over the kinds of question as their "
        f"numbers allow (seed {seed})",
        f"{llm}, greedy decoding up to the end of turn, at most {max_new_tokens} new tokens",
        "one true answer a question, so VQA accuracy is an exact match after normalisation",
        _controls(seed), "majority: the most frequent true answer of each kind of question",
        _interval(resamples), "questions about one sample are resampled together",
    ))  # fmt: skip


def llm_note(name: str, dtype: str, quantization: str) -> str:
    """The LLM and its precision."""
    return f"{name} in {dtype}" + ("" if quantization == "none" else f", quantised to {quantization}")


def _controls(seed: int) -> str:
    return (f"shuffled: the features of another sample of this set, by one fixed cycle (seed {seed}); blank: the encoder's features of a plain "
            "grey picture; equal inputs are generated once")


def _interval(resamples: int) -> str:
    return (f"{LEVEL:.0%} percentile intervals from {resamples} bootstrap resamples of whole samples, the same resamples for every figure and "
            "condition, so that a gap (right minus control) is paired")
