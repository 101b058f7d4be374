"""How the figures were measured, in words: what stands as `prompt` and `protocol` beside the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from anymal.evaluation.bootstrap import LEVEL
from anymal.evaluation.names import CLASS_RULE

MOST_ALIKE = "the sample of this set that is most alike (cosine of the features' means over tokens)"


def prompt_text(messages: Sequence[Mapping[str, str]]) -> str:
    """Chat messages as they are recorded: each after its role."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def caption_protocol(
    *, samples: int, available: int, kinds: Sequence[str] | None, labels: int, split: str, seed: int, llm: str, max_new_tokens: int,
    scored_references: int, conditions: Sequence[str],
) -> str:
    """What the caption figures were measured on, and how."""
    of_kinds = "" if kinds is None else f" of kind {', '.join(kinds)}"
    return "; ".join((
        f"{samples} of {available} captioned samples{of_kinds} of split {split} (seed {seed})",
        _decoding(llm, max_new_tokens),
        "references: all captions of a sample",
        f"nll: nats per token, end of turn included, of the first {scored_references} references, samples weighted by their tokens",
        "CIDEr-D (0 to 10) and ROUGE-L: means over samples, document frequencies fixed from all references of this set",
        "BLEU-4 and METEOR 1.5: of the whole set, from added-up counts",
        "captions of fewer than 4 words have no 4-grams, which bounds their CIDEr-D and BLEU-4 below the top of the scale",
        *([f"{CLASS_RULE} ({labels} labels)"] if labels else []),
        *_controls(conditions, seed, similar="no reference or label in common"),
    ))  # fmt: skip


def question_protocol(
    *, questions: int, available: int, samples: int, split: str, seed: int, llm: str, max_new_tokens: int, conditions: Sequence[str]
) -> str:
    """What the figures of questions about one medium were measured on, and how."""
    return "; ".join((
        f"{questions} of {available} questions, about {samples} samples of split {split}, drawn as evenly over the kinds of question as their "
        f"numbers allow (seed {seed})",
        _decoding(llm, max_new_tokens), "one true answer a question, so VQA accuracy is an exact match after normalisation",
        *_controls(conditions, seed, similar="another answer to a question of the same kind (of any, where no other is left)"),
        "majority: the most frequent true answer of each kind of question",
    ))  # fmt: skip


def mixed_protocol(
    *, questions: int, available: Mapping[str, int], kinds: Mapping[str, str], answers: Mapping[str, int], split: str, seed: int, llm: str,
    max_new_tokens: int, conditions: Sequence[str],
) -> str:
    """What the figures of questions about several media were measured on, and how."""
    drawn = ", ".join(f"{m} from {available[m]} samples (question kind {kinds[m]}, {answers[m]} answers)" for m in kinds)
    return "; ".join((
        f"{questions} questions, each about one medium of {' and of '.join(kinds)} of split {split}; drawn (seed {seed}): {drawn}; paired at random, "
        "answers as even as can be and independent of each other",
        _decoding(llm, max_new_tokens),
        "accuracy: every part's true answer is named and no other answer of that part; accuracy_MODALITY: of that part alone",
        *_stand_ins(conditions, {
            "shuffled": "every medium is another sample's with another answer; shuffled_MODALITY: that medium alone",
            "blank": "the features of empty media", "similar": f"every medium is {MOST_ALIKE}, with another answer"}),
        "majority: the most frequent true answer of each part",
    ))  # fmt: skip


def interval_note(*, resamples: int, seed: int, samples: int, groups: Mapping[str, int], together: str) -> str:
    """How the intervals were made, and what they leave out.

    Args:
        groups: modality -> number of groups (what curate's split keeps together) among the samples.
        together: what is resampled as one, in the plural.
    """
    said = " and ".join(f"{count} groups of {modality}" for modality, count in groups.items())
    if all(count == samples for count in groups.values()):
        limit = "no two of them belong to one group"
    else:
        limit = (f"they are of {said} (a group is what the split keeps together: a kit, a subject, a video), which are not resampled, so the "
                 "intervals say nothing of how other groups would come out")
    return (f"{LEVEL:.0%} percentile intervals from {resamples} bootstrap resamples (seed {seed}) of {samples} {together}, the same resamples for "
            f"every figure and condition, so that a gap (right minus control) is paired; {limit}")


def llm_note(name: str, dtype: str, quantization: str) -> str:
    """The LLM and its precision."""
    return f"{name} in {dtype}" + ("" if quantization == "none" else f", quantised to {quantization}")


def _decoding(llm: str, max_new_tokens: int) -> str:
    return f"{llm}, greedy decoding up to the end of turn, at most {max_new_tokens} new tokens"


def _controls(conditions: Sequence[str], seed: int, *, similar: str) -> list[str]:
    """What stands in for the right input under each condition.

    Args:
        similar: what parts a sample from the one that stands in for it.
    """
    return _stand_ins(conditions, {
        "shuffled": f"the features of another sample of this set, by one fixed cycle (seed {seed}), whatever its label",
        "blank": "the encoder's features of an empty medium (a grey picture, silence, rest)", "similar": f"those of {MOST_ALIKE}, with {similar}"})


def _stand_ins(conditions: Sequence[str], said: Mapping[str, str]) -> list[str]:
    return [*(f"{name}: {said[name]}" for name in conditions if name in said), "equal inputs are generated once"]
