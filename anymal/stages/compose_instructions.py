"""Fill curated questions, captions and pairs of samples into forms: instructions of the origin "template"."""

from __future__ import annotations

import json
from collections import Counter
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from anymal.errors import DataError
from anymal.model.modalities import ModalityName
from anymal.stage import Config, Ins, Out


class CaptionsConfig(BaseModel):
    """Descriptions of samples of one modality."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str
    count: PositiveInt


class PairConfig(BaseModel):
    """Questions about one medium of each of several modalities."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kinds: dict[ModalityName, str] = Field(min_length=2)
    """Modality -> kind of the samples' questions whose answers are filled in."""
    question: str
    answer: str
    """With `{image}` and the like where the answers go."""
    count: PositiveInt

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if missing := [modality for modality in self.kinds if f"{{{modality}}}" not in self.answer]:
            raise ValueError(f"answer must hold {{{missing[0]}}}, or the {missing[0]} is not asked for")
        return self


class ComposeInstructionsConfig(Config):
    """Knobs of `compose_instructions`. Counts are of the training split; the validation split gets `val_share` of them."""

    questions: dict[ModalityName, dict[str, PositiveInt]]
    """Modality -> kind of curated questions -> greatest number of them."""
    captions: dict[ModalityName, CaptionsConfig]
    pairs: list[PairConfig]
    val_share: float = Field(gt=0, le=1)


def compose_instructions(config: ComposeInstructionsConfig, *, features: Ins, instructions: Out, statistics: Out) -> None:
    """Fill curated questions, captions and pairs of samples into forms: instructions labelled as templates."""
    from anymal.curation.compose import from_captions, from_pairs, from_questions, read_described
    from anymal.data.features import FeatureStore
    from anymal.data.instructions import write_instructions

    folders = {FeatureStore(folder).info["modality"]: folder for folder in features}
    wanted = {*config.questions, *config.captions, *(modality for pair in config.pairs for modality in pair.kinds)}
    if missing := sorted(wanted - folders.keys()):
        raise DataError(f"compose_instructions: --features has nothing of {missing[0]}, it has {', '.join(sorted(folders))}; add those of "
                        f"{missing[0]}, or leave it out of the knobs")
    instructions.mkdir(parents=True)
    figures = {}
    for split, share in (("train", 1.0), ("val", config.val_share)):
        known = {modality: read_described(FeatureStore(folders[modality], split)) for modality in sorted(wanted)}

        def portion(count: int, share: float = share) -> int:
            return max(1, round(count * share))

        made = [entry for modality, kinds in sorted(config.questions.items())
                for entry in from_questions(known[modality], kinds={kind: portion(count) for kind, count in kinds.items()}, seed=config.seed)]
        made += [entry for modality, captions in sorted(config.captions.items())
                 for entry in from_captions(known[modality], question=captions.question, count=portion(captions.count), seed=config.seed)]
        made += [entry for pair in config.pairs for entry in from_pairs(
            known, kinds=pair.kinds, question=pair.question, answer=pair.answer, count=portion(pair.count), seed=config.seed)]
        write_instructions(instructions / f"{split}.json", made)
        counts = Counter(f"{'+'.join(medium.modality for medium in entry.media)}: {entry.kind}" for entry in made)
        figures[split] = {"instructions": len(made), "kinds": dict(sorted(counts.items()))}
    statistics.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n", encoding="utf-8")
