"""Train the guard: classifiers of texts, pictures and pairs of both, thresholds for stated false-positive rates, and figures on held-out data."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from anymal.errors import ConfigError
from anymal.stage import Config, In, Out, resumable

Asset = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="folder below the assets port")]
Rate = Annotated[float, Field(gt=0, lt=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TextConfig(_Part):
    """The text classifier: an encoder of transformers, fine-tuned."""

    encoder: Asset
    layers: int | None = Field(ge=0, description="upper layers that are trained; null for all and the embeddings, 0 for the head alone")
    max_tokens: int = Field(ge=8, description="of a window; longer texts are read in several")
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    head_learning_rate: float = Field(gt=0)
    warmup: float = Field(ge=0, lt=1, description="share of all steps")
    weight_decay: float = Field(ge=0)
    dropout: float = Field(ge=0, lt=1)
    patience: int = Field(ge=1, description="epochs without a lower validation loss after which it stops")


class HeadConfig(_Part):
    """What learns on top of an image network."""

    hidden: int = Field(ge=1)
    dropout: float = Field(ge=0, lt=1)
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    patience: int = Field(ge=1)


class ImageConfig(HeadConfig):
    """The picture classifier."""

    backbone: Asset
    kind: Literal["efficientnet-lite0", "hf"]
    whole: bool = Field(description="train all of the network; else the head alone")
    views: int = Field(ge=1, description="of each training picture: itself, and turned, mirrored and recoloured ones")


class PairConfig(HeadConfig):
    """The classifier of pairs: a fusion over frozen encoders."""

    backbone: Asset
    kind: Literal["efficientnet-lite0", "hf"]
    encoder: Asset
    max_tokens: int = Field(ge=8)


class RatesConfig(_Part):
    """The greatest share of harmless validation samples that may be hit, by use; an answer is many sentences, each of which is checked."""

    request: Rate
    answer: Rate
    image: Rate
    pair: Rate
    pair_answer: Rate


class TrainSafetyConfig(Config):
    """Knobs of train_safety."""

    text: TextConfig
    image: ImageConfig
    pair: PairConfig
    rates: RatesConfig
    floor: float = Field(gt=0, lt=1, description="no threshold is below this probability")
    least: int = Field(ge=1, description="validation samples of a category from which it has a threshold of its own; the others share one")
    words: Asset = Field(description="the asset with the word lists of the baseline")
    resamples: int = Field(ge=100, description="of the bootstrap")


@resumable
def train_safety(config: TrainSafetyConfig, *, safety: In, assets: In, guard: Out, plots: Out, metrics: Out) -> None:
    """Train and calibrate three classifiers, choose thresholds, and measure them with intervals, beside a word list and each half of pairs alone."""
    from anymal.safety.fitting import Fit
    from anymal.safety.guard_training import read_data, train_guard
    from anymal.training.plots import draw_validation

    if config.image.kind == "efficientnet-lite0" and config.image.whole:
        raise ConfigError("train_safety.image.whole = true: EfficientNet-Lite0 is frozen here; set it to false, or take a network of kind hf")
    guard.mkdir(parents=True, exist_ok=True)
    plots.mkdir(parents=True, exist_ok=True)

    def parted(part: ImageConfig | PairConfig) -> dict[str, Any]:
        how = Fit(epochs=part.epochs, batch_size=part.batch_size, learning_rate=part.learning_rate, weight_decay=part.weight_decay,
                  patience=part.patience, seed=config.seed)
        return {"backbone": assets / part.backbone, "kind": part.kind, "hidden": part.hidden, "dropout": part.dropout, "how": how}

    figures, made = train_guard(
        data=read_data(safety), safety=safety, guard=guard, rates=config.rates.model_dump(), floor=config.floor, least=config.least,
        words=assets / config.words, resamples=config.resamples, seed=config.seed,
        text={**config.text.model_dump(exclude={"encoder"}), "encoder": assets / config.text.encoder},
        image={**parted(config.image), "whole": config.image.whole, "views": config.image.views},
        pair={**parted(config.pair), "encoder": assets / config.pair.encoder, "max_tokens": config.pair.max_tokens},
        backbones={"text": config.text.encoder, "image": config.image.backbone, "pair": f"{config.pair.backbone} and {config.pair.encoder}"})
    for name, result in made.items():
        history = [{"step": entry["epoch"], "loss": entry["train"], "validation": {"train": entry["train"], "val": entry["val"]}}
                   for entry in result["history"]]
        draw_validation(history, plots / f"{name}.png", {"train": ("training", "tab:blue"), "val": ("validation", "tab:orange")},
                        title=f"Guard, {name}: loss by epoch", label="nats")
    training = {name: {"best_epoch": result["best"], "epochs": len(result["history"]), "validation_loss": min(e["val"] for e in result["history"])}
                for name, result in made.items()}
    metrics.write_text(json.dumps({**figures, "training": training}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
