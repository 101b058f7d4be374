"""What synthesis leaves: instructions of both splits, the rejected answers, dataset card, report and statistics."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anymal.data.instructions import Instruction, write_instructions
from anymal.synthesis.checks import REASONS
from anymal.synthesis.generation import Judged

HERE = Path(__file__).parent
REJECTED = "rejected.jsonl"


def page(name: str, **content: Any) -> str:
    """Fill a template of this folder (`NAME.html` escapes what is put in, `NAME.md` does not); a name that it lacks is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(loader=FileSystemLoader(HERE), autoescape=select_autoescape(["html"]), undefined=StrictUndefined, trim_blocks=True,
                              lstrip_blocks=True, keep_trailing_newline=True)
    return environment.get_template(name).render(**content)


def write_folder(folder: Path, made: Mapping[str, Sequence[Instruction]], judged: Sequence[Judged], figures: Mapping[str, Any], *,
                 writer: str) -> None:
    """Write `train.json`, `val.json`, `rejected.jsonl` and the dataset card.

    Args:
        writer: the LLM that wrote, for the card.
    """
    for split, found in made.items():
        write_instructions(folder / f"{split}.json", found)
    lines = [json.dumps(found.record(), ensure_ascii=False) + "\n" for found in judged if found.reason is not None]
    (folder / REJECTED).write_text("".join(lines), encoding="utf-8")
    licences: dict[str, set[str]] = {}
    for one in (instruction for found in made.values() for instruction in found):
        licences.setdefault(one.source, set()).add(one.license)
    examples = [one for found in made.values() for one in found]
    text = page("card.md", figures=figures, reasons=REASONS, writer=writer, examples=_spread(examples, lambda one: one.id, 5),
                licences={source: sorted(found) for source, found in sorted(licences.items())})
    (folder / "README.md").write_text(text, encoding="utf-8")


def write_report(path: Path, judged: Sequence[Judged], figures: Mapping[str, Any], *, writer: str, examples: int) -> None:
    """Write the report: one HTML page that needs no other file, with up to `examples` pairs per kind and per reason."""
    kept = {kind: _shown([one for one in judged if one.reason is None and one.asked.kind.name == kind], examples) for kind in figures["kinds"]}
    dropped = [{"reason": reason, "meaning": REASONS[reason], "count": count,
                "examples": _shown([one for one in judged if one.reason == reason], examples)} for reason, count in figures["dropped"].items()]
    path.write_text(page("report.html", figures=figures, reasons=REASONS, kept=kept, dropped=dropped, writer=writer), encoding="utf-8")


def _shown(judged: Sequence[Judged], count: int) -> list[dict[str, Any]]:
    return [{
        "id": one.id, "question": one.pair.question if one.pair else None, "answer": one.pair.answer if one.pair else one.text[:400],
        "detail": one.detail, "read": one.asked.request.messages[-1]["content"][:400], "likelihood": one.likelihood,
    } for one in _spread(judged, lambda one: one.id, count)]  # fmt: skip


def _spread(members: Sequence[Any], key: Any, count: int) -> list[Any]:
    """The first `count` by a hash of the key, so that no sample is preferred."""
    return sorted(members, key=lambda member: hashlib.sha256(key(member).encode()).digest())[:count]
