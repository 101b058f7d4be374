"""A guard of tiny random classifiers that find nothing: its limits and its failures are real, and so is its folder."""

from __future__ import annotations

from pathlib import Path

from anymal.safety.models import IMAGE, PAIR, TEXT, USES, write_guard
from anymal.safety.taxonomy import CODES
from tests.safety.tiny import make_text_encoder
from tests.safety.tiny_pictures import tiny_clip, tiny_regnet


def make_guard(folder: Path, assets: Path, *, one_network: bool = False) -> Path:
    """A guard as train_safety writes it, but untrained and calibrated to probabilities near 0.

    Args:
        assets: folder for the networks that it is made of.
        one_network: whether the picture classifier has the image network of the classifier of pairs.
    """
    from anymal.safety.backbones import load_backbone
    from anymal.safety.image_classifier import Head, ImageClassifier
    from anymal.safety.pair_classifier import Fusion, PairClassifier, Sentences
    from anymal.safety.text_classifier import TextClassifier, TextNetwork, load_encoder
    from anymal.safety.thresholds import Calibration

    never = Calibration((0.0,) * len(CODES), (-20.0,) * len(CODES))
    encoder, regnet, clip = make_text_encoder(assets / "roberta"), tiny_regnet(assets / "regnet"), tiny_clip(assets / "clip")
    tokenizer, network = load_encoder(encoder)
    TextClassifier(TextNetwork(network, len(CODES), dropout=0.0), tokenizer, categories=CODES, max_tokens=24, calibration=never).save(folder / TEXT)
    backbone = load_backbone(clip if one_network else regnet, "hf")
    ImageClassifier(backbone, Head(backbone.dim, 8, len(CODES), dropout=0.0), trained=CODES, hidden=8, calibration=never).save(folder / IMAGE)
    backbone, sentences = load_backbone(clip, "hf"), Sentences(encoder, 24)
    PairClassifier(backbone, sentences, Fusion(backbone.dim, sentences.dim, 8, len(CODES), dropout=0.0), trained=CODES, hidden=8,
                   calibration=never).save(folder / PAIR)
    write_guard(folder, thresholds={use: dict.fromkeys(CODES, 0.5) for use in USES}, facts={}, card="# Guard\n")
    return folder
