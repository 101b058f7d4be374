"""Instruction data on disk: LLaVA's conversation JSON, one file a split, with where each record comes from (design section 4).

    {"id": "…", "image": "KEY.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "A cat."}],
     "origin": "synthetic", "kind": "conversation", "source": "tuxpaint-stamps", "license": "GPL-2.0-or-later"}

A medium is named as the member of the curated shards that holds it. A record with several media of one modality holds a list of names; the
placeholders in the human turns stand for them in order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from anymal.errors import DataError
from anymal.model.modalities import modalities, placeholder

ORIGINS = ("human", "synthetic", "template")
"""Written by people, by an LLM from text-only descriptions, or filled into a form."""

Origin = Literal["human", "synthetic", "template"]


class InvalidRecordError(DataError):
    """A record that is no instruction; `reason` is the short name under which it is counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class MediumName:
    """A medium that a conversation is about: its modality and the shard member that holds it."""

    modality: str
    member: str

    @property
    def key(self) -> str:
        """The sample's key in the shards and the features."""
        return self.member.partition(".")[0]


@dataclass(frozen=True)
class Instruction:
    """A conversation about any number of media; `media` are in the order of the placeholders in the questions."""

    id: str
    media: tuple[MediumName, ...]
    turns: tuple[tuple[str, str], ...]
    """(question, answer) of each turn; questions hold the placeholders."""
    origin: Origin
    kind: str
    source: str
    license: str

    def record(self) -> dict[str, Any]:
        """The instruction as LLaVA's JSON holds it."""
        members: dict[str, list[str]] = {}
        for medium in self.media:
            members.setdefault(medium.modality, []).append(medium.member)
        said = [{"from": role, "value": text} for turn in self.turns for role, text in zip(("human", "gpt"), turn, strict=True)]
        return {
            "id": self.id, **{modality: found[0] if len(found) == 1 else found for modality, found in members.items()}, "conversations": said,
            "origin": self.origin, "kind": self.kind, "source": self.source, "license": self.license,
        }  # fmt: skip


def parse_instruction(record: object, **defaults: str) -> Instruction:
    """Check one record of LLaVA's JSON.

    Args:
        defaults: `origin`, `kind`, `source` and `license` for records that do not say, as other people's files do not.

    Raises:
        InvalidRecordError: with the reason `not_a_record`, `no_conversation`, `roles`, `empty_question`, `empty_answer`,
            `placeholder_mismatch` or `unlabelled`.
    """
    if not isinstance(record, dict) or isinstance(record.get("id"), bool) or not isinstance(record.get("id"), str | int) or record["id"] == "":
        raise InvalidRecordError("not_a_record", "is not an object with an id")
    name = f"record {record['id']}"
    turns = _turns(name, record.get("conversations"))
    given: dict[str, list[str]] = {}
    for modality in modalities():
        found = record.get(modality, [])
        given[modality] = [found] if isinstance(found, str) else found
        if not isinstance(given[modality], list) or not all(isinstance(member, str) and member for member in given[modality]):
            raise InvalidRecordError("not_a_record", f"{name}: '{modality}' must be a file name or a list of them")
    wanted = [found.group(1) for question, _ in turns for found in placeholder().finditer(question)]
    for modality, members in given.items():
        if wanted.count(modality) != len(members):
            raise InvalidRecordError("placeholder_mismatch", f"{name}: its questions hold {wanted.count(modality)} <{modality}> and it names "
                                     f"{len(members)} {modality} files; they must be as many")
    if any(placeholder().search(answer) for _, answer in turns):
        raise InvalidRecordError("placeholder_mismatch", f"{name}: an answer holds a placeholder; only questions may")
    queues = {modality: iter(members) for modality, members in given.items()}
    media = tuple(MediumName(modality, next(queues[modality])) for modality in wanted)
    labels: dict[str, Any] = {field: record.get(field, defaults.get(field)) for field in ("origin", "kind", "source", "license")}
    if missing := [field for field, value in labels.items() if not isinstance(value, str) or not value]:
        raise InvalidRecordError("unlabelled", f"{name}: lacks {', '.join(missing)}")
    if labels["origin"] not in ORIGINS:
        raise InvalidRecordError("unlabelled", f"{name}: origin = {labels['origin']} must be one of {', '.join(ORIGINS)}")
    return Instruction(str(record["id"]), media, turns, **labels)


def _turns(name: str, conversations: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(conversations, list) or not conversations:
        raise InvalidRecordError("no_conversation", f"{name}: has no conversations")
    if not all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in conversations):
        raise InvalidRecordError("roles", f"{name}: each turn must hold 'from' and a text 'value'")
    roles = [turn.get("from") for turn in conversations]
    if len(roles) % 2 or roles != ["human", "gpt"] * (len(roles) // 2):
        raise InvalidRecordError("roles", f"{name}: turns must alternate between human and gpt, beginning with human")
    texts = [turn["value"].strip() for turn in conversations]
    for role, text in zip(roles, texts, strict=True):
        if not placeholder().sub("", text).strip():
            raise InvalidRecordError("empty_question" if role == "human" else "empty_answer", f"{name}: a turn of {role} is empty")
    return tuple(zip(texts[0::2], texts[1::2], strict=True))


def write_instructions(path: Path, instructions: Iterable[Instruction]) -> int:
    """Write one split's file, in the order given; returns how many."""
    records = [instruction.record() for instruction in instructions]
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    path.write_text(f"[\n{lines}\n]\n" if records else "[]\n", encoding="utf-8")
    return len(records)


def read_instructions(folder: Path, split: str) -> list[Instruction]:
    """The instructions of a split, as a stage wrote them.

    Raises:
        DataError: if there is no such file, or a record is not valid: stages write valid ones only.
    """
    path = folder / f"{split}.json"
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; give a folder of instructions that has the split {split}") from error
    except ValueError as error:
        raise DataError(f"{path}: is not valid JSON ({error}); run the stage that makes it again") from error
    if not isinstance(records, list):
        raise DataError(f"{path}: must hold a list of records")
    instructions: list[Instruction] = []
    for record in records:
        try:
            instructions.append(parse_instruction(record))
        except InvalidRecordError as error:
            raise DataError(f"{path}: {error}; import it anew, where it is checked and what is wrong is listed") from error
    _check_unique(path, instructions)
    return instructions


def _check_unique(path: Path, instructions: Sequence[Instruction]) -> None:
    seen: set[str] = set()
    for instruction in instructions:
        if instruction.id in seen:
            raise DataError(f"{path}: id {instruction.id} comes twice; ids must be unique")
        seen.add(instruction.id)
