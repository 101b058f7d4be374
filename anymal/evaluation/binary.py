"""Yes or no: area under the ROC curve of likelihoods, and POPE's figures of what was said."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from anymal.evaluation.bootstrap import Measure, Statistic, ratio

SCORE = "p(yes) / (p(yes) + p(no)), by the likelihood of each whole answer given the prompt"
NORMALISER = (
    "yes or no: the first word where it is one of the two, else the one of them (not counts as no) that is in the answer alone; anything else is "
    "unparsable, counted and wrong, and is no yes"
)
WORD = re.compile(r"[^\W_]+(?:'t)?")
YES, NO = frozenset({"yes", "yeah", "yep"}), frozenset({"no", "not", "nope"})


def yes_probability(yes_nats: float, no_nats: float) -> float:
    """The probability of yes among yes and no, from the negative log-likelihood of each."""
    gap = yes_nats - no_nats
    return 1 / (1 + math.exp(gap)) if gap < 0 else math.exp(-gap) / (1 + math.exp(-gap))


def auc(labels: Sequence[bool], scores: Sequence[float]) -> float:
    """Area under the ROC curve: how likely a positive sample scores higher than a negative one, ties counting half. NaN if one class is missing."""
    return auc_statistic(labels, scores).close(np.ones(len(labels), dtype=int))


def auc_statistic(labels: Sequence[bool], scores: Sequence[float], units: Sequence[str] | None = None) -> Statistic:
    """The area under the ROC curve in a form that can be resampled, in n log n once and n a resample.

    Args:
        labels: whether each sample is positive.
        units: what is resampled whole (a picture, a group); None for samples.
    """
    positive = np.asarray(labels, dtype=bool)
    levels, level = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True)
    owners = np.arange(len(positive)) if units is None else np.unique(np.asarray(units, dtype=object).astype(str), return_inverse=True)[1]

    def close(drawn: np.ndarray) -> float:
        weights = drawn[owners].astype(np.float64)
        above = np.bincount(level, weights=weights * positive, minlength=len(levels))
        below = np.bincount(level, weights=weights * ~positive, minlength=len(levels))
        pairs = above.sum() * below.sum()
        return float((above * (np.cumsum(below) - below / 2)).sum() / pairs) if pairs > 0 else math.nan

    return Statistic(int(owners.max()) + 1 if len(owners) else 0, close)


def extract_yes_no(said: str) -> bool | None:
    """Whether an answer says yes, by the rules of `NORMALISER`; None if it cannot be told."""
    words = WORD.findall(said.lower().replace("\u2019", "'"))
    if words and words[0] in YES | NO - {"not"}:
        return words[0] in YES
    yes, no = bool(YES & set(words)), bool(NO & set(words)) or any(word.endswith("n't") for word in words)
    return yes if yes != no else None


def pope_measures(said: Sequence[bool | None], truth: Sequence[bool]) -> dict[str, Measure]:
    """POPE's figures (Li et al. 2023) with yes as the positive class: accuracy, precision, recall, f1 and yes_ratio.

    An answer that cannot be told is wrong but no yes. Precision is 0 where nothing was answered yes, recall and F1 likewise.
    """
    yes = np.array([answer is True for answer in said], dtype=np.float64)
    no = np.array([answer is False for answer in said], dtype=np.float64)
    real = np.asarray(truth, dtype=np.float64)
    hits, one = yes * real, np.ones(len(real))
    return {
        "accuracy": Measure(np.stack([hits + no * (1 - real), one], axis=1), ratio),
        "precision": Measure(np.stack([hits, yes], axis=1), _share),
        "recall": Measure(np.stack([hits, real], axis=1), _share),
        "f1": Measure(np.stack([2 * hits, yes + real], axis=1), _share),
        "yes_ratio": Measure(np.stack([yes, one], axis=1), ratio),
    }


def _share(sums: np.ndarray) -> np.ndarray:
    """Column 0 over column 1, and 0 where there is nothing to share."""
    whole = sums[..., 1]
    share: np.ndarray = np.divide(sums[..., 0], whole, out=np.zeros_like(whole), where=whole > 0)
    return share
