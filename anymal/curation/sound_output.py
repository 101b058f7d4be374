"""What the curation of sounds leaves: shards, dataset card, statistics and report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anymal.curation.drops import count_verdicts
from anymal.curation.duplicates import SPLITS
from anymal.curation.keys import spread
from anymal.curation.media_card import write_media_card
from anymal.curation.pages import data_uri, page
from anymal.curation.sounds import REASONS, Candidate
from anymal.data.shards import Sample, ShardWriter
from anymal.media.audio import open_audio, spectrogram

VOWELS = "aeiou"


def captions_of(candidate: Candidate, templates: Mapping[str, Sequence[str]], general: Sequence[str]) -> list[str]:
    """A sound's captions: its source's own, or its label in each of the label's templates (the general ones where it has none of its own)."""
    if candidate.label is None:
        return list(candidate.recording.captions)
    named = f"{'an' if candidate.label[0] in VOWELS else 'a'} {candidate.label}"
    return [text.replace("{a_label}", named).replace("{label}", candidate.label) for text in templates.get(candidate.label, general)]


def sound_sample(candidate: Candidate, captions: Sequence[str], rate: int) -> Sample:
    """One kept sound as a sample: `labelled` with its class, or `captioned` by its source."""
    clip, label = candidate.clip, candidate.label
    assert clip is not None
    question = candidate.source.question
    meta: dict[str, Any] = {
        "kind": "captioned" if label is None else "labelled", "split": candidate.split, "source": candidate.source.name,
        "license": candidate.source.licence, "captions": list(captions), "objects": [],
        "questions": [{"question": question, "answer": label, "kind": "label"}] if question is not None and label is not None else [],
        "sha256": clip.sha256, "group": candidate.group, "duration": round(clip.duration, 6), "rate": rate, "original": candidate.recording.name,
    }
    if label is not None:
        meta["label"] = label
    return Sample(candidate.key, "flac", clip.flac.read_bytes(), meta)


def write_shards(candidates: Sequence[Candidate], folder: Path, *, templates: Mapping[str, Sequence[str]], general: Sequence[str], rate: int,
                 samples_per_shard: int) -> None:
    """Write the kept sounds, mixed in an order that a hash of the key decides."""
    for split in SPLITS:
        members = [candidate for candidate in candidates if candidate.drop is None and candidate.split == split]
        with ShardWriter(folder, split, samples_per_shard) as writer:
            for candidate in spread(members, lambda c: c.key, len(members)):
                writer.write(sound_sample(candidate, captions_of(candidate, templates, general), rate))
            assert writer.count == len(members)


def statistics(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """Counts of all that was seen, kept and dropped; the same inputs give the same numbers."""
    kept = [candidate for candidate in candidates if candidate.drop is None]
    labels = {split: Counter(c.label for c in kept if c.split == split and c.label is not None) for split in SPLITS}
    names = list(dict.fromkeys(candidate.source.name for candidate in candidates))
    clips = [candidate.clip for candidate in kept if candidate.clip is not None]
    return {
        **_count(candidates),
        "sources": {name: _count([c for c in candidates if c.source.name == name]) for name in names},
        "splits": {split: sum(c.split == split for c in kept) for split in SPLITS},
        "labels": {split: dict(sorted(counts.items())) for split, counts in labels.items()},
        "labels_never_trained": sorted((set(labels["val"]) | set(labels["test"])) - set(labels["train"])),
        "groups": {split: len({c.group for c in kept if c.split == split}) for split in SPLITS},
        "seconds": {split: round(sum(c.clip.duration for c in kept if c.split == split and c.clip is not None), 3) for split in SPLITS},
        "trimmed": sum(clip.trimmed for clip in clips), "cut": sum(clip.cut for clip in clips),
        "leaks": 0,
    }


def _count(candidates: Sequence[Candidate]) -> dict[str, Any]:
    return count_verdicts([candidate.drop for candidate in candidates], REASONS)


def write_card(folder: Path, figures: Mapping[str, Any], candidates: Sequence[Candidate], *, templates: Mapping[str, Sequence[str]],
               general: Sequence[str]) -> None:
    """Write the dataset card."""
    shown = spread([candidate for candidate in candidates if candidate.drop is None], lambda c: c.key, 8)
    write_media_card(
        folder, title="Curated sounds", extension="flac", tasks=("audio-classification", "audio-text-to-text"),
        fields=("label", "duration", "rate", "original"), figures=figures,
        licences={candidate.source.name: candidate.source.licence for candidate in candidates}, reasons=REASONS,
        examples=[(candidate.key, captions_of(candidate, templates, general)[0]) for candidate in shown],
        splitting="A group (a drum kit, a folder, a file of several captions) is in one split only.",
        limits="Labels come from the names that the sources give, and captions of labelled sounds from templates. Sounds are mono, cut to a greatest "
               "length, with silence before the onset taken away where the profile says so; loudness is the source's.",
    )


def write_report(path: Path, figures: Mapping[str, Any], candidates: Sequence[Candidate], *, templates: Mapping[str, Sequence[str]],
                 general: Sequence[str], rate: int, examples: int) -> None:
    """Write the report: one HTML page that needs no other file, with up to `examples` kept sounds per label and dropped ones per rule."""
    kept = [candidate for candidate in candidates if candidate.drop is None]
    shown = []
    for label in sorted({candidate.label or "" for candidate in kept}):
        for candidate in spread([c for c in kept if (c.label or "") == label], lambda c: c.key, examples):
            assert candidate.clip is not None
            samples = open_audio(candidate.clip.flac, candidate.key, rate=rate)
            shown.append({"image": data_uri(spectrogram(samples, rate)), "caption": captions_of(candidate, templates, general)[0],
                          "note": f"{candidate.split} · {candidate.group} · {candidate.clip.duration:.2f} s"})
    dropped = []
    for reason, meaning in REASONS.items():
        members = [c for c in candidates if c.drop is not None and c.drop.reason == reason]
        if members:
            notes = [{"name": f"{c.source.name}/{c.recording.name}", "detail": c.drop.detail if c.drop else ""}
                     for c in spread(members, lambda c: c.key, 5 * examples)]
            dropped.append({"reason": reason, "meaning": meaning, "count": len(members), "examples": sorted(notes, key=lambda note: note["name"])})
    path.write_text(page("sounds.html", figures=figures, kept=shown, dropped=dropped, reasons=REASONS, splits=SPLITS,
                         labels=sorted({label for counts in figures["labels"].values() for label in counts})), encoding="utf-8")
