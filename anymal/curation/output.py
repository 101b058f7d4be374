"""What curation leaves: shards, dataset card, statistics, report, and the cut-outs for composed clips."""

from __future__ import annotations

import io
import shutil
import statistics as stats
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anymal.curation import images
from anymal.curation.drops import Drop, count_reasons, count_verdicts
from anymal.curation.duplicates import SPLITS
from anymal.curation.keys import spread
from anymal.curation.pages import data_uri, page
from anymal.curation.pipeline import Candidate, Composed, Curated
from anymal.curation.rules import REASONS
from anymal.curation.screening import count_harmful
from anymal.curation.stamps import write_stamp_list
from anymal.data.shards import Sample, ShardWriter, shard_paths


def photo_sample(candidate: Candidate, train_nouns: set[str]) -> Sample:
    """One kept picture as a sample; its caption is the source's own, cleaned.

    `seen_noun` says whether the noun it shows also occurs in training (on another picture).
    """
    caption, picture = candidate.caption, candidate.picture
    assert caption is not None and picture is not None
    meta = {
        "kind": "photo", "split": candidate.split, "source": candidate.source.name, "license": candidate.source.licence, "captions": [caption.text],
        "objects": [], "questions": [], "width": picture.width, "height": picture.height, "sha256": picture.sha256, "phash": picture.phash,
        "group": candidate.group, "category": candidate.item.category, "original": candidate.item.name, "noun": caption.head,
        "seen_noun": caption.head in train_nouns, "faces_blurred": picture.faces,
    }
    return Sample(candidate.key, "jpg", picture.jpeg.read_bytes(), meta)


def scene_sample(composed: Composed, licence: str) -> Sample:
    """One scene as a sample; `parts` are the keys of the pictures in it."""
    scene, picture = composed.scene, composed.picture
    meta = {
        "kind": "scene", "split": composed.split, "source": "scenes", "license": licence, "captions": composed.captions,
        "objects": [{"name": placed.stamp.name, "box": list(placed.box)} for placed in scene.objects],
        "questions": [{"question": q.question, "answer": q.answer, "kind": q.kind} for q in scene.questions],
        "width": picture.width, "height": picture.height, "sha256": picture.sha256, "phash": picture.phash, "group": scene.key, "category": "scene",
        "background": scene.colour, "parts": sorted({placed.stamp.key for placed in scene.objects}),
    }
    return Sample(scene.key, "jpg", picture.jpeg.read_bytes(), meta)


def write_shards(curated: Curated, folder: Path, samples_per_shard: int) -> dict[str, int]:
    """Write the kept pictures and scenes, mixed in an order that a hash of the key decides.

    Returns:
        Samples per split.
    """
    nouns = {c.caption.head for c in curated.kept if c.split == "train" and c.caption is not None}
    scene_licence = " AND ".join(sorted({c.source.licence for c in curated.kept if c.picture is not None and c.picture.cutout is not None}))
    counts = {}
    for split in SPLITS:
        photos = {c.key: c for c in curated.kept if c.split == split}
        composed = {s.scene.key: s for s in curated.kept_scenes if s.split == split}
        with ShardWriter(folder, split, samples_per_shard) as writer:
            keys = [*photos, *composed]
            for key in spread(keys, str, len(keys)):
                writer.write(photo_sample(photos[key], nouns) if key in photos else scene_sample(composed[key], scene_licence))
            counts[split] = writer.count
    return counts


def write_stamps(curated: Curated, folder: Path) -> int:
    """Write the cut-outs that scenes are composed of, for clips that move them (see `anymal.curation.stamps`).

    Returns:
        How many there are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for candidate in sorted(curated.kept, key=lambda c: c.key):
        picture, caption = candidate.picture, candidate.caption
        if picture is None or caption is None or picture.cutout is None:
            continue
        shutil.copyfile(picture.cutout, folder / f"{candidate.key}.png")
        entries.append({"key": candidate.key, "name": caption.phrase, "head": caption.head, "size": picture.cutout_size, "colour": picture.colour,
                        "split": candidate.split, "source": candidate.source.name, "license": candidate.source.licence})
    write_stamp_list(folder, entries)
    return len(entries)


def statistics(curated: Curated) -> dict[str, Any]:
    """Counts of all that was seen, kept and dropped; the same inputs give the same numbers."""
    by_source: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in curated.candidates:
        by_source[candidate.source.name].append(candidate)
    kept, kept_scenes = curated.kept, curated.kept_scenes
    words = [len(c.caption.text.split()) for c in kept if c.caption is not None]
    faces = [c.picture.faces for c in kept if c.picture is not None]
    train_nouns = {c.caption.head for c in kept if c.split == "train" and c.caption is not None}
    questions = Counter(q.kind for s in kept_scenes for q in s.scene.questions)
    return {
        **_count(curated.candidates),
        "sources": {name: _count(members) for name, members in by_source.items()},
        "splits": {
            split: {
                "photos": sum(c.split == split for c in kept), "scenes": sum(s.split == split for s in kept_scenes),
                "groups": len({c.group for c in kept if c.split == split}),
                "photos_with_seen_noun": sum(c.split == split and c.caption is not None and c.caption.head in train_nouns for c in kept),
            } for split in SPLITS
        },
        "scenes": {"seen": len(curated.composed), "kept": len(kept_scenes), "dropped": count_reasons([s.drop for s in curated.composed], REASONS),
                   "captions": sum(len(s.captions) for s in kept_scenes),
                   "captions_dropped_by_cat": sum(len(s.scene.captions) - len(s.captions) for s in curated.composed),
                   "questions": dict(sorted(questions.items()))},
        **({"harmful": count_harmful(c.drop for c in curated.candidates)} if curated.screened else {}),
        "faces": {"pictures": sum(count > 0 for count in faces), "blurred": sum(faces)},
        "caption_words": {"mean": round(stats.fmean(words), 3), "median": stats.median(words), "most": max(words)},
        "cat": {"with_relation": sum(c.complexity >= 1 for c in kept), "with_action": sum(c.actions >= 1 for c in kept),
                "mean_complexity": round(stats.fmean(c.complexity for c in kept), 3)},
        "nouns": len({c.caption.head for c in kept if c.caption is not None}),
        "authors_found": {name: len(found) for name, found in curated.authors.items()},
        "leaks": 0,
    }


def _count(candidates: Sequence[Candidate]) -> dict[str, Any]:
    return count_verdicts([candidate.drop for candidate in candidates], REASONS)


def write_card(folder: Path, *, figures: dict[str, Any], curated: Curated, counts: dict[str, int]) -> None:
    """Write the dataset card (README.md in the Hugging Face format) of shards that were written."""
    shards = {split: [path.name for path in shard_paths(folder, split)] for split, count in counts.items() if count}
    licences = {c.source.name: c.source.licence for c in curated.candidates}
    examples = _spread(curated.kept, 8)
    text = page("card.md", figures=figures, licences=licences, counts=counts, shards=shards, examples=examples, reasons=REASONS)
    (folder / "README.md").write_text(text, encoding="utf-8")


def write_report(path: Path, *, figures: dict[str, Any], curated: Curated, limits: images.ImageLimits, background: tuple[int, int, int],
                 thumbnails: int) -> None:
    """Write the report: one HTML page that needs no other file, up to `thumbnails` pictures per rule, three times as many of what was kept."""
    kept = [{"image": _thumbnail_of(c.picture.jpeg.read_bytes()), "caption": c.caption.text, "note": f"{c.split} · {c.source.name}"}
            for c in _spread(curated.kept, 3 * thumbnails) if c.picture is not None and c.caption is not None]
    blurred = [{"image": _thumbnail_of(c.picture.jpeg.read_bytes()), "caption": c.caption.text, "note": f"{c.picture.faces} blurred"}
               for c in _spread([c for c in curated.kept if c.picture is not None and c.picture.faces], thumbnails) if c.picture and c.caption]
    shown = [{"image": _thumbnail_of(s.picture.jpeg.read_bytes(), 160), "captions": s.captions, "questions": s.scene.questions, "split": s.split,
              "objects": [f"{p.stamp.name} {list(p.box)}" for p in s.scene.objects]}
             for s in spread(curated.kept_scenes, lambda composed: composed.scene.key, thumbnails)]
    dropped = []
    for reason, meaning in REASONS.items():
        members = [c for c in curated.candidates if c.drop is not None and c.drop.reason == reason]
        if members:
            examples = [_dropped(c, limits, background) for c in _spread(members, thumbnails)]
            dropped.append({"reason": reason, "meaning": meaning, "count": len(members), "examples": examples})
    text = page("report.html", figures=figures, kept=kept, blurred=blurred, scenes=shown, dropped=dropped, reasons=REASONS, splits=SPLITS)
    path.write_text(text, encoding="utf-8")


def _spread(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    return spread(candidates, lambda candidate: candidate.key, count)


def _dropped(candidate: Candidate, limits: images.ImageLimits, background: tuple[int, int, int]) -> dict[str, str | None]:
    drop = candidate.drop
    assert drop is not None
    said = candidate.caption.text if candidate.caption else candidate.item.text or ""
    shown: str | None = None
    if candidate.item.problem is None and 0 < candidate.item.size <= limits.max_bytes:
        decoded = images.decode(candidate.item.read(), candidate.item.suffix, limits, 160)
        if not isinstance(decoded, Drop):
            shown = _data_uri(images.composite(decoded, background), 72)
    return {"image": shown, "caption": said[:80], "note": f"{candidate.source.name}/{candidate.item.name}"[-70:], "detail": drop.detail[:80]}


def _thumbnail_of(data: bytes, side: int = 72) -> str:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return _data_uri(image.convert("RGB"), side)


def _data_uri(image: Any, side: int) -> str:
    small = image.copy()
    small.thumbnail((side, side))
    return data_uri(images.jpeg(small, 70), "jpeg")
