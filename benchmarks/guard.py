"""What the guard costs and what its readings are worth: checks a second, time per sentence, time to the first sentence, and recall per trick.

    python benchmarks/guard.py [--guard models/guard] [--safety data/safety] [--prompts 60] [--threads 1] [--tricks]

Answers are made of the safety data's own harmless answers and streamed at `--words-per-second`, as a model of that speed would say them; the guard's
share is what it adds to the time of the whole stream.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image

from anymal.safety.asking import judge_of
from anymal.safety.disguises import DISGUISES
from anymal.safety.guard import Guard
from anymal.safety.models import GuardModels, load_guard
from anymal.safety.ocr import PictureReader
from anymal.safety.prompts import Prompt, read_prompts
from anymal.safety.red_team import red_team
from anymal.safety.sentences import split_stream
from anymal.safety.streaming import Refusal, guarded_stream
from anymal.safety.texts import TextRecord, read_texts
from anymal.safety.views import views


def rate(name: str, check: Callable[..., object], calls: Sequence[tuple[object, ...]]) -> None:
    """Print how many checks end in a second, the median and slowest twentieth, and the processor time of one."""
    seconds, processor = [], time.process_time()
    for arguments in calls:
        started = time.perf_counter()
        check(*arguments)
        seconds.append(time.perf_counter() - started)
    processor = (time.process_time() - processor) / len(seconds)
    print(f"{name:41} {len(seconds) / sum(seconds):7.1f} /s   median {1000 * statistics.median(seconds):7.1f} ms   "
          f"95% {1000 * sorted(seconds)[int(0.95 * (len(seconds) - 1))]:7.1f} ms  processor {1000 * processor:7.1f} ms  n {len(seconds)}", flush=True)


def said(answer: str, words_per_second: float) -> Iterator[str]:
    """An answer in words, as fast as a model of that speed says it."""
    for word in answer.split(" "):
        time.sleep(1 / words_per_second)
        yield word + " "


def cost(models: GuardModels, texts: Sequence[str], answers: Sequence[str], pictures: Sequence[bytes], speed: float) -> None:
    """Print the figures of time."""
    unread, reading = Guard(models, reader=None), Guard(models, reader=PictureReader())
    unread.check_input(texts[0], pictures[:1])
    reading.check_input(texts[0], pictures[:1])
    both = [(text, [picture]) for text, picture in zip(texts, pictures, strict=False)]
    rate("prompt", unread.check_input, [(text,) for text in texts])
    rate("prompt with a picture, its text not read", unread.check_input, both)
    rate("prompt with a picture, its text read", reading.check_input, both)
    sentences = [sentence for answer in answers for sentence in split_stream([answer])][: len(texts)]
    rate("sentence of an answer", unread.check_output, [(sentence,) for sentence in sentences])
    opened = unread.open(pictures[:1])
    rate("sentence of an answer about a picture", unread.check_output, [(sentence, opened) for sentence in sentences])
    for name, images in (("text", ()), ("text about a picture", opened)):
        rows: list[tuple[float, float, float, float]] = []
        for answer in answers[:10]:
            plain = timed(split_stream(said(answer, speed)))
            checked = timed(guarded_stream(unread, said(answer, speed), images))
            if not isinstance(checked[2], Refusal):  # a refused answer is a shorter one
                rows.append((*plain[:2], *checked[:2]))
        if not rows:
            print(f"{name}: all answers were refused")
            continue
        plain_first, plain_whole, first, whole = (list(column) for column in zip(*rows, strict=True))
        before, after = (1000 * statistics.median(column) for column in (plain_first, first))
        print(f"{name}: first sentence after {before:.0f} ms unguarded, {after:.0f} ms guarded; the guard's share of an answer's time "
              f"{1 - sum(plain_whole) / sum(whole):.1%} (at {speed:g} words/s, {len(rows)} answers)")


def timed(stream: Iterable[str]) -> tuple[float, float, str]:
    """Seconds to the first sentence and to the last, and the last one."""
    started = time.perf_counter()
    found = [(time.perf_counter() - started, sentence) for sentence in stream]
    return found[0][0], *found[-1]


def tricks(models: GuardModels, prompts: Sequence[Prompt]) -> None:
    """Print recall and false positives of the text check per trick, with the text as it is and as the guard reads it."""
    found = judge_of(models.text, models.categories, models.thresholds["request"])
    measured = red_team(prompts, tricks=DISGUISES, readings=views, flagged=lambda texts: [bool(codes) for codes in found(texts)], resamples=100,
                        seed=0)
    sides = [sum(prompt.harmful for prompt in prompts), sum(not prompt.harmful for prompt in prompts)]
    print(f"{'trick':24} {'recall':>8} {'guarded':>8} {'false +':>8}   n {sides[0]} and {sides[1]}")
    for name, figures in {"untouched": measured["untouched"], **measured["tricks"]}.items():
        print(f"{name:24} " + " ".join(f"{figures[kind]['value']:8.3f}" for kind in ("plain", "hardened", "false_positives")), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--guard", type=Path, default=Path("models/guard"))
    parser.add_argument("--safety", type=Path, default=Path("data/safety"))
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--words-per-second", type=float, default=20.0)
    parser.add_argument("--tricks", action="store_true", help="recall per trick instead of times")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    models = load_guard(arguments.guard)
    rows: list[TextRecord] = read_texts(arguments.safety / "texts" / "test.jsonl")
    random.Random(0).shuffle(rows)  # noqa: S311
    kinds = ["request", "hard_negative"]
    if arguments.tricks:
        tricks(models, read_prompts(arguments.safety, {"text": arguments.prompts}, kinds=kinds, question="", barred=[], seed=0))
        return
    harmless = [row.text for row in rows if row.kind in kinds and not row.labels][: arguments.prompts]
    answers = [row.text for row in rows if row.kind == "answer" and not row.labels]
    lines = (arguments.safety / "images" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    files = [json.loads(line) for line in lines][: arguments.prompts]
    pictures = [(arguments.safety / file["file"]).read_bytes() for file in files if not file["labels"]]
    longer = [" ".join(random.Random(place).sample(answers, min(6, len(answers)))) for place in range(10)]  # noqa: S311
    print(f"{torch.get_num_threads()} threads, {Image.__name__} {Image.__version__}, torch {torch.__version__}")
    cost(models, harmless, longer, pictures, arguments.words_per_second)


if __name__ == "__main__":
    main()
