"""What the import of instruction data leaves: one file per split, the list of what was refused, new media as shards, card, statistics and report."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anymal.curation.drops import count_verdicts
from anymal.curation.duplicates import SPLITS
from anymal.curation.instruction_media import EXTENSIONS, preview, read_members
from anymal.curation.instructions import REASONS, Candidate, Imported, Medium, members_of
from anymal.curation.keys import spread
from anymal.curation.pages import data_uri, page
from anymal.curation.screening import count_harmful
from anymal.data.instructions import write_instructions
from anymal.data.manifest import write_manifest
from anymal.data.shards import Sample, ShardWriter

REJECTED = "rejected.jsonl"


def write_folder(folder: Path, imported: Imported, figures: Mapping[str, Any]) -> None:
    """Write `train.json`, `val.json`, `test.json` (held out for people to judge), `rejected.jsonl`, and the dataset card."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        chosen = [c.instruction for c in imported.kept if c.split == split and c.instruction is not None]
        assert write_instructions(folder / f"{split}.json", chosen) == figures["splits"][split]
    refused = [{"source": c.source.name, "id": c.name, "reason": c.drop.reason, "detail": c.drop.detail}
               for c in imported.candidates if c.drop is not None]
    (folder / REJECTED).write_text("".join(f"{json.dumps(entry)}\n" for entry in refused), encoding="ascii")
    sources = {c.source.name: c.source for c in imported.candidates}
    text = page("instruction_card.md", figures=figures, sources=sources, reasons=REASONS, splits=SPLITS,
                examples=[c.instruction for c in spread(imported.kept, _identity, 6)], held_out=figures["splits"]["test"])
    (folder / "README.md").write_text(text, encoding="utf-8")


def write_media(folder: Path, imported: Imported, samples_per_shard: int) -> None:
    """Write the new media, a folder of shards for each modality: also an empty one, so that stages find each of them."""
    for modality in EXTENSIONS:
        place = folder / modality
        place.mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            chosen = {member: (candidate, medium) for candidate in imported.kept if candidate.split == split
                      for member, medium in members_of([candidate]).items() if medium.stored is not None and medium.name.modality == modality}
            with ShardWriter(place, split, samples_per_shard) as writer:
                for member in spread(list(chosen), str, len(chosen)):
                    writer.write(_sample(*chosen[member], imported))
                assert writer.count == len(chosen)
        write_manifest(place)


def _sample(candidate: Candidate, medium: Medium, imported: Imported) -> Sample:
    """A new medium as a sample that nobody captioned; its instructions are in the instruction folder."""
    assert medium.stored is not None and candidate.instruction is not None
    meta = {
        "kind": "instructed", "split": candidate.split, "source": candidate.source.name, "license": candidate.instruction.license, "captions": [],
        "objects": [], "questions": [], "sha256": medium.stored.sha256, "group": imported.groups[medium.group], **medium.stored.meta,
    }
    key, _, extension = medium.name.member.partition(".")
    return Sample(key, extension, medium.stored.path.read_bytes(), meta)


def statistics(imported: Imported) -> dict[str, Any]:
    """Counts of all that was seen, kept and dropped; the same inputs give the same numbers."""
    kept = imported.kept
    names = list(dict.fromkeys(candidate.source.name for candidate in imported.candidates))
    media = members_of(kept).values()
    turns = Counter(len(c.instruction.turns) for c in kept if c.instruction is not None)
    return {
        **count_verdicts([candidate.drop for candidate in imported.candidates], REASONS),
        "sources": {name: count_verdicts([c.drop for c in imported.candidates if c.source.name == name], REASONS) for name in names},
        "splits": {split: sum(c.split == split for c in kept) for split in SPLITS},
        "test_wanted": imported.test_wanted,
        **({"harmful": count_harmful(c.drop for c in imported.candidates)} if imported.screened else {}),
        "origins": dict(sorted(Counter(c.instruction.origin for c in kept if c.instruction is not None).items())),
        "modalities": dict(sorted(Counter("+".join(sorted({m.name.modality for m in c.media})) for c in kept).items())),
        "turns": {str(number): turns[number] for number in sorted(turns)},
        "media": {modality: {"curated": sum(m.name.modality == modality and m.known is not None for m in media),
                             "new": sum(m.name.modality == modality and m.stored is not None for m in media)}
                  for modality in sorted({m.name.modality for m in media})},
        "leaks": _leaks(imported),
    }


def _leaks(imported: Imported) -> int:
    """Groups that two splits share, and media of curated test splits: none, or there is a mistake in the rules."""
    splits: dict[str, str] = {}
    leaks = 0
    for candidate in imported.kept:
        for medium in candidate.media:
            leaks += splits.setdefault(imported.groups[medium.group], candidate.split) != candidate.split
            leaks += medium.known is not None and medium.known.split == "test"
    assert leaks == 0
    return leaks


def write_report(path: Path, imported: Imported, figures: Mapping[str, Any], examples: int) -> None:
    """Write the report: one HTML page that needs no other file, with up to `examples` kept instructions and as many dropped ones per rule."""
    chosen = spread(imported.kept, _identity, examples)
    media = members_of(chosen)
    pictures = {member: _picture(media[member].name.modality, data) for member, data in _bytes(media)}
    kept = [{"media": [{"picture": pictures.get(m.name.member), "name": m.name.member} for m in c.media], "turns": c.instruction.turns,
             "note": f"{c.split} · {c.source.name} · {c.instruction.origin}"} for c in chosen if c.instruction is not None]
    dropped = []
    for reason, meaning in REASONS.items():
        members = [c for c in imported.candidates if c.drop is not None and c.drop.reason == reason]
        if members:
            notes = [{"name": _identity(c), "detail": _printable(c.drop.detail) if c.drop else ""} for c in spread(members, _identity, examples)]
            dropped.append({"reason": reason, "meaning": meaning, "count": len(members), "examples": sorted(notes, key=lambda note: note["name"])})
    text = page("instruction_report.html", figures=figures, kept=kept, dropped=dropped, reasons=REASONS, splits=SPLITS)
    path.write_text(text, encoding="utf-8")


def _identity(candidate: Candidate) -> str:
    return _printable(f"{candidate.source.name}/{candidate.name}")


def _printable(text: str) -> str:
    """A text that can be written as UTF-8, whatever the record held."""
    return text.encode("utf-8", "backslashreplace").decode()


def _bytes(media: Mapping[str, Medium]) -> list[tuple[str, bytes]]:
    new = [(member, medium.stored.path.read_bytes()) for member, medium in media.items() if medium.stored is not None]
    return new + list(read_members(medium.known for medium in media.values() if medium.known is not None))


def _picture(modality: str, data: bytes) -> str | None:
    drawn = preview(modality, data)
    return None if drawn is None else data_uri(*drawn)
