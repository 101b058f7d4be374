"""Seconds to score 10,000 predictions again, by metric, and to resample the figures.

The second column is processor time, Java's included, which other work on the machine hardly lengthens.

    python benchmarks/scoring.py [--predictions 10000] [--references 5]
"""

from __future__ import annotations

import argparse
import random
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from anymal.evaluation import binary, captions, choice, vqa
from anymal.evaluation.bootstrap import Measure, figures, mean_of, paired_difference

WORDS = [
    "a", "an", "the", "red", "green", "blue", "small", "large", "old", "young", "dog", "cat", "bird", "child", "man", "woman", "car", "ball",
    "house", "tree", "hill", "street", "runs", "sits", "plays", "stands", "eats", "looks", "with", "on", "under", "near", "two", "three",
]  # fmt: skip
RESAMPLES = 1000


def sentence(generator: random.Random, words: int) -> str:
    return " ".join(generator.choices(WORDS, k=words))


def processor_seconds() -> float:
    """Of this process and of the children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def timed(name: str, action: Callable[[], Any]) -> Any:
    started, used = time.perf_counter(), processor_seconds()
    result = action()
    print(f"{name:46} {time.perf_counter() - started:8.2f} s {processor_seconds() - used:8.2f} s", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=int, default=10_000)
    parser.add_argument("--references", type=int, default=5, help="reference captions of a sample")
    arguments = parser.parse_args()
    count, generator = arguments.predictions, random.Random(0)  # noqa: S311 (texts to be timed)
    print(f"{count} predictions, {arguments.references} reference captions each, 10 annotators a question, {RESAMPLES} resamples")

    raw = [[sentence(generator, generator.randint(6, 14)) for _ in range(arguments.references)] for _ in range(count)]
    said = [sentence(generator, generator.randint(6, 14)) for _ in range(count)]
    tokens = iter(timed("PTB tokenisation of captions and references", lambda: captions.tokenize([t for group in raw for t in group] + said)))
    references, candidates = [[next(tokens) for _ in group] for group in raw], list(tokens)
    measures = {}
    scorer = captions.CaptionScorer(references, None)
    for label, metrics in (("CIDEr-D", ["cider_d"]), ("BLEU-1 to 4", [f"bleu_{n}" for n in range(1, 5)]), ("ROUGE-L", ["rouge_l"])):
        measures |= timed(label, lambda metrics=metrics: scorer.measures(candidates, metrics))

    def meteor() -> dict[str, Measure]:
        with captions.open_meteor() as process:
            return captions.CaptionScorer(references, process).measures(candidates, ["meteor"])

    measures |= timed("METEOR, start of its process included", meteor)
    timed("intervals of all caption metrics", lambda: figures(measures, {}, n=count, resamples=RESAMPLES, seed=0))

    answers = [[sentence(generator, generator.randint(1, 2)) for _ in range(10)] for _ in range(count)]
    given = [generator.choice(group) for group in answers]
    for variant in vqa.VARIANTS:
        scores = timed(f"VQA accuracy, {variant}",
                       lambda variant=variant: [vqa.answer_accuracy(a, group, variant=variant) for a, group in zip(given, answers, strict=True)])
    options = [[sentence(generator, 2) for _ in range(4)] for _ in range(count)]
    replies = [generator.choice(["A", "(b)", "The answer is C.", texts[3], "hard to say"]) for texts in options]
    timed("multiple choice, 4 options", lambda: choice.choice_scores(replies, options, [0] * count))
    truth = [generator.random() < 0.5 for _ in range(count)]
    timed("POPE figures", lambda: binary.pope_measures([binary.extract_yes_no("Yes, it is.") for _ in truth], truth))
    statistic = binary.auc_statistic(truth, np.random.default_rng(0).random(count).tolist())
    timed("AUC with its interval", lambda: figures({"auc": statistic}, {}, n=count, resamples=RESAMPLES, seed=0))
    timed("interval of a mean", lambda: figures({"accuracy": mean_of(np.array(scores))}, {}, n=count, resamples=RESAMPLES, seed=0))
    rows = [{"id": str(n), "group": str(n // 3), "scores": {"accuracy": score}} for n, score in enumerate(scores)]
    timed("paired comparison of two models, by group",
          lambda: paired_difference(rows, rows, metric="accuracy", by="group", resamples=RESAMPLES, seed=0))


if __name__ == "__main__":
    main()
