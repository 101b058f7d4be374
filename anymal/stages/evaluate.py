"""Let the model describe and answer about held-out media, and the same with inputs that are wrong, empty, or wrong but similar."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from anymal.model.modalities import ModalityName, modalities
from anymal.stage import Config, DType, In, Ins, Out, per_modality, resumable

if TYPE_CHECKING:
    from anymal.evaluation.predict import Record

SPLIT = "test"
MIXED = "mixed"
STATE = "state"


def _known(name: str) -> str:
    if name not in (*modalities(), MIXED):
        raise ValueError(f"unknown modality; known: {', '.join(modalities())}, and {MIXED} for questions about several")
    return name


class PartConfig(BaseModel):
    """One medium of a question about several."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    modality: ModalityName
    question_kind: str
    """Kind of the samples' questions whose answer the model has to name."""


class MixedConfig(BaseModel):
    """Questions about one medium of each of several modalities."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str
    """Asked of all; `{image}` and the like stand for the sample's own question of the part's kind."""
    parts: list[PartConfig] = Field(min_length=2)
    """In the order of their media in the prompt. The first one's checkpoint gives the prompt: its template `pair`, or else `question`."""
    samples: int = Field(gt=1)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [part.modality for part in self.parts]
        if len(set(names)) < len(names):
            raise ValueError(f"parts name a modality twice ({', '.join(names)}); figures are told apart by it, name each once")
        return self


class EvaluateConfig(Config):
    """Knobs of `evaluate`. A limit of null takes all held-out samples; knobs of a task that is not run are null."""

    modality: Annotated[str, AfterValidator(_known)]
    """A modality, or "mixed"."""
    tasks: list[Literal["caption", "vqa", "qa"]]
    """`vqa` are questions about images, `qa` those about anything else; none where the data has neither."""
    dtype: DType
    """Of the LLM; it may be another than in training (paper section 3.1)."""
    quantization: Literal["none", "nf4", "int8"]
    attention: Literal["eager", "sdpa", "flash_attention_2"]
    merge: bool
    """Add the LLM's adapter, if it has one, into its weights: faster, rounded to their precision."""
    batch_size: int = Field(gt=0)
    caption_kinds: list[str] | None
    """Kinds of samples to caption (null: all). Composed images' captions come from templates: easier words than those of photos."""
    caption_samples: int | None = Field(gt=1)
    caption_scored_references: int | None = Field(gt=0)
    """References of each sample whose loss is measured, from the first; the metrics on words use all references."""
    caption_max_new_tokens: int | None = Field(gt=0)
    questions: int | None = Field(gt=1)
    answer_max_new_tokens: int | None = Field(gt=0)
    mixed: MixedConfig | None
    conditions: list[Literal["right", "shuffled", "blank", "similar"]]
    """Inputs to measure with; a baseline needs `right` alone."""
    previews: int = Field(ge=0, le=1000)
    """Media to draw as the encoder sees them, for the report: wrong ones of each kind first."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        named = "vqa" if self.modality == "image" else "qa"
        if wrong := set(self.tasks) - ({"qa"} if self.modality == MIXED else {"caption", named}):
            raise ValueError(f"tasks: {min(wrong)} is no task of {self.modality}; it has {'qa' if self.modality == MIXED else f'caption, {named}'}")
        if (self.modality == MIXED) != (self.mixed is not None):
            raise ValueError(f"mixed must {'name the question and its parts' if self.mixed is None else 'be null'} where modality = {self.modality}")
        if "right" not in self.conditions or len(set(self.conditions)) < len(self.conditions):
            raise ValueError(f"conditions = {', '.join(self.conditions) or 'none'}: name right, and each of the others at most once")
        needed = [*(["caption_scored_references", "caption_max_new_tokens"] if "caption" in self.tasks else []),
                  *(["answer_max_new_tokens"] if {"vqa", "qa"} & set(self.tasks) else [])]  # fmt: skip
        if missing := [name for name in needed if getattr(self, name) is None]:
            raise ValueError(f"{missing[0]} must be a number, for tasks = {', '.join(self.tasks)} needs it")
        return self


@resumable
@per_modality
def evaluate(config: EvaluateConfig, *, checkpoints: Ins, features: Ins, shards: Ins, assets: In, predictions: Out) -> None:
    """Write what the model says of held-out media under each condition, and pictures of what it was shown; resumable by sample."""
    from anymal.evaluation.controls import CONDITIONS
    from anymal.evaluation.inputs import match_inputs
    from anymal.evaluation.predict import Predictor
    from anymal.evaluation.predictions import write_predictions
    from anymal.evaluation.previews import FOLDER, choose, draw_previews
    from anymal.evaluation.protocol import llm_note
    from anymal.evaluation.recorded import RecordedModel
    from anymal.evaluation.tasks import run_captions, run_mixed, run_questions
    from anymal.model.anymal import load_anymal
    from anymal.model.precision import dtype_of, name_of

    wanted = [config.modality] if config.mixed is None else [part.modality for part in config.mixed.parts]
    inputs = match_inputs(checkpoints, features, shards, wanted=wanted, split=SPLIT)
    model = load_anymal(assets, checkpoints, dtype=config.dtype, quantization=config.quantization, attention=config.attention, merge=config.merge)
    state = predictions / STATE
    state.mkdir(parents=True, exist_ok=True)
    stores = {modality: entry.store for modality, entry in inputs.items()}
    predictor = Predictor(RecordedModel(model, state / "answers.jsonl"), stores, batch_size=config.batch_size)
    llm = llm_note(model.metadata[wanted[0]]["llm"], name_of(dtype_of(config.dtype)), config.quantization)
    conditions = [name for name in CONDITIONS if name in config.conditions]
    shared: dict[str, Any] = {"conditions": conditions, "seed": config.seed, "split": SPLIT, "llm": llm}
    records: dict[str, list[Record]] = {}
    described: dict[str, dict[str, Any]] = {}
    for task in dict.fromkeys(config.tasks):
        if config.mixed is not None:
            kinds = {part.modality: part.question_kind for part in config.mixed.parts}
            records[task], described[task] = run_mixed(
                predictor, kinds=kinds, question=config.mixed.question, samples=config.mixed.samples,
                max_new_tokens=_number(config.answer_max_new_tokens), **shared)
        elif task == "caption":
            records[task], described[task] = run_captions(
                predictor, kinds=config.caption_kinds, limit=config.caption_samples,
                scored_references=_number(config.caption_scored_references), max_new_tokens=_number(config.caption_max_new_tokens), **shared)
        else:
            records[task], described[task] = run_questions(
                predictor, limit=config.questions, max_new_tokens=_number(config.answer_max_new_tokens), **shared)
    known = {task: entry["vocabulary"] for task, entry in described.items()}
    for modality, keys in choose(records, known, modality=config.modality, limit=config.previews, seed=config.seed).items():
        source = inputs[modality]
        draw_previews(model.encoder(modality), source.store, source.shards, keys, predictions / FOLDER / modality, split=SPLIT)
    shutil.rmtree(state)
    write_predictions(predictions, config.modality, records, {"seed": config.seed, "tasks": described})


def _number(knob: int | None) -> int:
    assert knob is not None, "the config's validator asks for it"
    return knob
