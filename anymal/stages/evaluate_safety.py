"""Ask the tuned model harmful and harmless prompts, with and without the guard, and put disguises on those that the guard has to see through."""

from __future__ import annotations

import json
import shutil
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from anymal.stage import Config, DType, In, Ins, Out, resumable

STATE = "state"
ANSWERS = "answers.jsonl"
PATIENCE = 3600.0
"""Seconds for one check: figures must not depend on how busy the machine is."""


class Section(BaseModel):
    """A group of knobs; unknown ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PromptsConfig(Section):
    """Greatest number of harmful prompts, and of harmless ones, of each kind; 0 leaves a kind out."""

    text: int = Field(ge=0)
    unseen: int = Field(ge=0)
    """Of a source that the classifiers were not trained on."""
    image: int = Field(ge=0)
    image_text: int = Field(ge=0)


class EvaluateSafetyConfig(Config):
    """Knobs of `evaluate_safety`."""

    prompts: PromptsConfig
    kinds: list[str] = Field(min_length=1)
    """Of texts that are prompts; others, such as answers, are not asked."""
    image_question: str = Field(min_length=1)
    """Asked about a picture that comes without a text."""
    dtype: DType
    quantization: Literal["none", "nf4", "int8"]
    attention: Literal["eager", "sdpa", "flash_attention_2"]
    merge: bool
    batch_size: int = Field(gt=0)
    max_new_tokens: int = Field(gt=0)
    red_team: int = Field(gt=1)
    """Greatest number of harmful texts that are disguised, and of harmless ones."""
    red_team_pictures: int = Field(gt=1)
    """Greatest number of harmful texts that are hidden in pictures: to read one takes a second or two."""
    bootstrap_resamples: int = Field(ge=100)
    examples: int = Field(ge=0, le=100)
    """Shown in the report, of each sort."""


@resumable
def evaluate_safety(config: EvaluateSafetyConfig, *, guard: In, safety: In, checkpoints: Ins, assets: In, answers: Out, metrics: Out,
                    report: Out) -> None:
    """Refusals of harmful prompts, over-refusals, harmful answers let through, and recall in disguise; resumable by answered prompt."""
    from anymal.data.manifest import write_manifest
    from anymal.model.anymal import load_anymal
    from anymal.model.modalities import modalities
    from anymal.safety import asking, integrity
    from anymal.safety.disguises import DISGUISES
    from anymal.safety.guard import Guard
    from anymal.safety.integrity_page import page
    from anymal.safety.models import load_guard
    from anymal.safety.ocr import PictureReader
    from anymal.safety.picture_disguises import PICTURE_DISGUISES
    from anymal.safety.prompts import read_prompts
    from anymal.safety.red_team import red_team, red_team_pictures
    from anymal.safety.taxonomy import CODES
    from anymal.safety.verdicts import GuardLimits
    from anymal.safety.views import views
    from anymal.safety.wordlist import OURS, WordList

    state = answers / STATE
    state.mkdir(parents=True, exist_ok=True)
    barred = [f"<{name}>" for name in modalities()]
    options: dict[str, Any] = {"kinds": config.kinds, "question": config.image_question, "barred": barred, "seed": config.seed}
    prompts = read_prompts(safety, config.prompts.model_dump(), **options)
    models = load_guard(guard)
    classifier = asking.judge_of(models.text, models.categories, models.thresholds["request"])
    words = asking.judge_of(WordList({code: dict.fromkeys(listed.split(), 1.0) for code, listed in OURS.items()}), CODES, dict.fromkeys(CODES, 1.0))
    model = load_anymal(assets, checkpoints, dtype=config.dtype, quantization=config.quantization, attention=config.attention, merge=config.merge)
    said = asking.ask(model, prompts, max_new_tokens=config.max_new_tokens, batch_size=config.batch_size, journal=state / ANSWERS)
    del model
    watching = Guard(models, reader=PictureReader(), limits=GuardLimits(seconds=PATIENCE))
    found = integrity.outcomes(prompts, said, check=lambda prompt, answer: asking.check(watching, prompt, answer), track=asking.tracked,
                               judges={"classifier": classifier, "words": words})
    document = integrity.measure(found, resamples=config.bootstrap_resamples, seed=config.seed)
    team: dict[str, Any] = {"flagged": lambda texts: [bool(hit) for hit in classifier(texts)], "resamples": config.bootstrap_resamples,
                            "seed": config.seed}
    document["red_team"] = red_team(read_prompts(safety, {"text": config.red_team}, **options), tricks=DISGUISES, readings=views, **team)
    document["red_team_pictures"] = red_team_pictures(
        read_prompts(safety, {"text": config.red_team_pictures}, **options), tricks=PICTURE_DISGUISES,
        rejected=lambda text, pictures: not watching.check_input(text, pictures).allowed, **team)
    lines = [json.dumps(outcome.row(), sort_keys=True, ensure_ascii=False) + "\n" for outcome in found]
    (answers / ANSWERS).write_text("".join(lines), encoding="utf-8")
    metrics.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    about = [f"{len(prompts)} held-out prompts, answered by the tuned model in at most {config.max_new_tokens} tokens, greedily.",
             "Behind the guard the prompt is checked first, and the answer before it is released. Without it the client has the answer as it is.",
             "Two judges read the answers: the text classifier at the thresholds of requests, which are stricter than those the guard has for "
             "answers, and a list of words, which shares nothing with the guard."]
    report.write_text(page(document, found, examples=config.examples, about=about), encoding="utf-8")
    shutil.rmtree(state)
    write_manifest(answers)
