"""Curation of clips: those composed from cut-outs and those of sources, judged, brought to one form, split without leaks, and counted.

Two passes. The first reads names and captions of the sources and plans the composed clips; the second, in the order of the shards, draws or
converts a few clips at a time in threads and writes each as it is done, so that memory does not grow with the number of clips.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from anymal.curation import captions as text_rules
from anymal.curation.captions import CaptionLimits
from anymal.curation.clips import CLOSED, ClipPlan, described, render
from anymal.curation.drops import Drop, all_dropped, count_verdicts
from anymal.curation.duplicates import SPLITS, assign_split
from anymal.curation.keys import make_key, spread
from anymal.curation.media_card import write_media_card
from anymal.curation.pages import data_uri, page
from anymal.data.shards import Sample, ShardWriter
from anymal.errors import DataError
from anymal.media.video import Clip, UnusableVideo, contact_sheet, open_video, to_clip, write_mp4
from anymal.progress import track

REASONS: dict[str, str] = {
    "unreadable": "the archive or its member cannot be read, or leaves its folder",
    "duplicate_key": "another clip of the same name was taken before it",
    "no_caption": "nothing is said of the clip",
    "no_group": "its JSON does not name the video that it was cut from",
    "caption_too_long": "the caption is longer than allowed",
    "caption_too_short": "the cleaned caption is shorter than allowed",
    "not_english": "the caption is in another language, or its words are not known",
    "empty_file": "the file holds no byte",
    "file_too_large": "the file holds more bytes than allowed",
    "not_a_video": "the content is no video that can be decoded, whatever its name says",
    "codec_unknown": "there is no decoder for its codec",
    "too_many_pixels": "a frame has more pixels than allowed; it was not decoded",
    "too_small": "a side is shorter than allowed",
    "too_long": "it lasts longer than allowed; it was not decoded",
    "too_short": "it gives fewer than two frames",
    "one_frame": "it holds one frame only: a picture",
    "cut_short": "the file is damaged or ends before the clip does",
    "exact_duplicate": "the same frames were kept under another key",
}
"""In the order in which they are found."""
SUFFIXES = frozenset({".mp4", ".webm", ".mkv"})
COMPOSED = "clips"
"""The source of composed clips in metadata and statistics."""
SHEET_FRAMES, SHEET_SIDE = 8, 96
MAX_TEXT_BYTES = 2**20

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ClipSource:
    """One source of captioned clips: WebDataset shards below `root`; `group_field` is the field of KEY.json that names the whole video."""

    name: str
    root: Path
    licence: str
    group_field: str | None


@dataclass(frozen=True)
class VideoLimits:
    """What a clip may be (bytes, seconds, the shorter side in pixels), and how it is stored (longer side in pixels, frames a second)."""

    max_bytes: int
    max_seconds: float
    min_side: int
    side: int
    rate: int


@dataclass
class Found:
    """One clip of a source: where its bytes are in the archive, what is said of it, and the verdict."""

    source: ClipSource
    name: str
    shard: Path
    offset: int = 0
    size: int = 0
    text: str = ""
    group: str = ""
    split: str = ""
    drop: Drop | None = None

    @property
    def key(self) -> str:
        """Its key in the shards."""
        return make_key(self.source.name, self.name)


@dataclass
class Curated:
    """What was seen and what became of it; `shown` are kept clips for the report."""

    found: list[Found]
    plans: list[ClipPlan]
    licences: Mapping[str, str]
    dropped_plans: dict[str, Drop] = field(default_factory=dict)
    shown: list[dict[str, Any]] = field(default_factory=list)
    examples: list[tuple[str, str]] = field(default_factory=list)


def find_clips(source: ClipSource) -> Iterator[Found]:
    """Every clip of tar shards as WebVid's and HowTo100M's tools write them, good or bad: `KEY.mp4` (webm, mkv) with `KEY.json` (`caption` or
    `text`) or `KEY.txt`. Nothing is unpacked; a damaged shard costs the clips after the damage, and is one dropped clip itself.

    Raises:
        DataError: if there is no shard.
    """
    shards = sorted(source.root.rglob("*.tar")) if source.root.is_dir() else []
    if not shards:
        raise DataError(f"curate_video.sources.{source.name}: {source.root} holds no .tar shard; run ingest, or correct the asset's name")
    seen: set[str] = set()
    for shard in shards:
        clips: list[tuple[str, Found]] = []
        texts: dict[str, str] = {}
        groups: dict[str, str] = {}
        damage: str | None = None
        try:
            with tarfile.open(shard, "r:") as tar:
                for member in tar:
                    _take(member, tar, source=source, shard=shard, clips=clips, texts=texts, groups=groups)
        except (tarfile.TarError, EOFError, OSError) as error:
            damage = str(error)
        for key, clip in sorted(clips, key=lambda pair: pair[1].name):
            clip.text = texts.get(key, "")
            clip.group = f"{source.name}/{groups.get(key, '') if source.group_field else key}"
            if clip.drop is None and key in seen:
                clip.drop = Drop("duplicate_key", key)
            elif clip.drop is None and source.group_field and key not in groups:
                clip.drop = Drop("no_group", source.group_field)
            seen.add(key)
            yield clip
        if damage is not None:
            yield Found(source, shard.relative_to(source.root).as_posix(), shard, drop=Drop("unreadable", f"damaged shard: {damage}"))


def _take(member: tarfile.TarInfo, tar: tarfile.TarFile, *, source: ClipSource, shard: Path, clips: list[tuple[str, Found]],
          texts: dict[str, str], groups: dict[str, str]) -> None:
    folder, _, name = member.name.rpartition("/")
    base, _, extension = name.partition(".")
    key = f"{folder}/{base}".lstrip("/")
    if f".{extension.lower()}" in SUFFIXES:
        clip = Found(source, f"{key}.{extension.lower()}", shard, member.offset_data, member.size)
        if not member.isfile():
            clip.drop = Drop("unreadable", "not a plain file")
        elif member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
            clip.drop = Drop("unreadable", "its name leaves the archive")
        elif member.offset_data + member.size > shard.stat().st_size:
            clip.drop = Drop("unreadable", "the shard ends before it")
        clips.append((key, clip))
    elif member.isfile() and extension in ("txt", "json"):
        stream = tar.extractfile(member)
        text = stream.read(MAX_TEXT_BYTES).decode("utf-8", errors="replace") if stream else ""
        if extension == "json":
            try:
                record = json.loads(text)
            except ValueError:
                return
            record = record if isinstance(record, dict) else {}
            group = record.get(source.group_field) if source.group_field else None
            if isinstance(group, str | int) and str(group):
                groups[key] = str(group)
            said = record.get("caption") or record.get("text")
            text = said if isinstance(said, str) else ""
        if text.strip():
            texts[key] = text


def collect(sources: Sequence[ClipSource], *, limits: VideoLimits, captions: CaptionLimits, seed: int, val_fraction: float,
            test_fraction: float) -> list[Found]:
    """Find the clips of all sources, judge size and caption, and split by video; no clip is opened."""
    found = []
    for source in sources:
        for clip in track(find_clips(source), label=f"find {source.name}", unit="clips"):
            clip.drop = clip.drop or _judge(clip, limits, captions)
            if clip.drop is not None:
                clip.text = ""
            clip.split = assign_split(clip.group, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction)
            found.append(clip)
    return found


def _judge(clip: Found, limits: VideoLimits, captions: CaptionLimits) -> Drop | None:
    if clip.size > limits.max_bytes:
        return Drop("file_too_large", f"{clip.size} bytes")
    if not clip.text:
        return Drop("no_caption")
    if len(clip.text) > captions.max_characters:
        return Drop("caption_too_long", f"{len(clip.text)} characters")
    clip.text = text_rules.tidy(clip.text)
    return text_rules.check_length(clip.text, captions) or text_rules.check_language(clip.text, captions.min_english)


def write_clips(curated: Curated, folder: Path, *, limits: VideoLimits, samples_per_shard: int, workers: int, report_examples: int) -> dict[str, int]:
    """Draw or convert all clips that are still in, and write them, in an order that a hash of the key decides.

    Returns:
        Samples per split.

    Raises:
        DataError: if nothing is left, or two splits share something.
    """
    first: dict[str, str] = {}
    counts = {}
    audit = _Audit()
    total = len(curated.plans) + sum(clip.drop is None for clip in curated.found)
    with ThreadPoolExecutor(workers) as pool, track(total=total, label="curate clips", unit="clips") as bar:
        for split in SPLITS:
            jobs: list[tuple[str, ClipPlan | Found]] = [(plan.key, plan) for plan in curated.plans if plan.split == split]
            jobs += [(clip.key, clip) for clip in curated.found if clip.split == split and clip.drop is None]
            mixed = [job for _, job in spread(jobs, lambda pair: pair[0], len(jobs))]
            shown = 0
            with ShardWriter(folder, split, samples_per_shard) as writer:
                for job, made in _ahead(pool, lambda job: _make(job, limits), mixed, workers):
                    bar.update()
                    verdict = made
                    if isinstance(made, Clip):
                        digest = hashlib.sha256(made.data).hexdigest()
                        other = first.setdefault(digest, job.key)
                        verdict = made if other == job.key else Drop("exact_duplicate", other)
                    if isinstance(verdict, Drop):
                        _drop(curated, job, verdict)
                        continue
                    sample = _sample(job, verdict, curated.licences)
                    audit.take(sample)
                    writer.write(sample)
                    if shown < report_examples:
                        shown += 1
                        curated.shown.append(_shown(sample))
                        curated.examples.append((sample.key, sample.meta["captions"][0]))
                counts[split] = writer.count
    if not sum(counts.values()):
        _refuse_empty(curated)
    audit.finish()
    return counts


def _refuse_empty(curated: Curated) -> None:
    if not curated.found:
        raise DataError("curate_video.sources: hold no clip at all; check the assets' names and the folders that ingest made")
    raise all_dropped("curate_video", "clips", [(clip.drop, f"{clip.source.name}/{clip.name}") for clip in curated.found if clip.drop], REASONS)


def _ahead(pool: ThreadPoolExecutor, function: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Iterator[tuple[Job, Result]]:
    """Results in the jobs' order, a few computed ahead."""
    waiting: deque[tuple[Job, Future[Result]]] = deque()
    for job in jobs:
        waiting.append((job, pool.submit(function, job)))
        if len(waiting) > 2 * workers:
            done, future = waiting.popleft()
            yield done, future.result()
    while waiting:
        done, future = waiting.popleft()
        yield done, future.result()


def _make(job: ClipPlan | Found, limits: VideoLimits) -> Clip | Drop:
    if isinstance(job, ClipPlan):
        return Clip(write_mp4(render(job), job.rate), job.size, job.size, len(job.colours), len(job.colours) / job.rate)
    try:
        with job.shard.open("rb") as stream:
            stream.seek(job.offset)
            data = stream.read(job.size)
        return to_clip(io.BytesIO(data), job.name, side=limits.side, rate=limits.rate, min_side=limits.min_side, max_seconds=limits.max_seconds)
    except UnusableVideo as error:
        return Drop(error.reason, str(error).removeprefix(f"{job.name}: "))
    except OSError as error:
        return Drop("unreadable", error.strerror or type(error).__name__)


def _drop(curated: Curated, job: ClipPlan | Found, drop: Drop) -> None:
    assert drop.reason in REASONS, drop.reason
    if isinstance(job, ClipPlan):
        curated.dropped_plans[job.key] = drop
    else:
        job.drop = drop


def _sample(job: ClipPlan | Found, clip: Clip, licences: Mapping[str, str]) -> Sample:
    meta: dict[str, Any]
    if isinstance(job, ClipPlan):
        parts = sorted({moved.stamp.key for moved in job.objects})
        meta = {"kind": "clip", "source": COMPOSED, "license": " AND ".join(sorted({licences[part] for part in parts})), "group": job.key,
                "captions": list(job.captions), "objects": described(job), "parts": parts, "layout": job.kind,
                "questions": [{"question": asked.question, "answer": asked.answer, "kind": asked.kind} for asked in job.questions]}
    else:
        meta = {"kind": "video", "source": job.source.name, "license": job.source.licence, "group": job.group, "captions": [job.text],
                "objects": [], "parts": [], "questions": [], "original": job.name}
    meta |= {"split": job.split, "sha256": hashlib.sha256(clip.data).hexdigest(), "duration": clip.seconds, "frames": clip.frames,
             "rate": round(clip.frames / clip.seconds), "width": clip.width, "height": clip.height}
    return Sample(job.key, "mp4", clip.data, meta)


class _Audit:
    """Notes in which split each key, group, part and content is."""

    def __init__(self) -> None:
        self._splits: dict[str, set[str]] = defaultdict(set)

    def take(self, sample: Sample) -> None:
        meta = sample.meta
        for name in (f"key {sample.key}", f"group {meta['group']}", f"content {meta['sha256']}", *(f"part {part}" for part in meta["parts"])):
            self._splits[name].add(meta["split"])

    def finish(self) -> None:
        leaks = sorted(name for name, splits in self._splits.items() if len(splits) > 1)
        if leaks:
            raise DataError(f"curate_video: {len(leaks)} leaks between splits, the first: {leaks[0]} is in "
                            f"{' and '.join(sorted(self._splits[leaks[0]]))}; nothing was written")


def _shown(sample: Sample) -> dict[str, Any]:
    """A kept sample for the report: its frames are read as an encoder reads them."""
    sheet = contact_sheet(open_video(io.BytesIO(sample.data), sample.key, frames=SHEET_FRAMES), SHEET_SIDE)
    return {"image": data_uri(sheet), "captions": sample.meta["captions"], "questions": sample.meta["questions"],
            "note": f"{sample.meta['split']} · {sample.meta['source']} · {sample.meta['duration']:g} s"}


def statistics(curated: Curated, counts: Mapping[str, int]) -> dict[str, Any]:
    """Counts of all that was seen, kept and dropped, and of the answers of composed clips; the same inputs give the same numbers."""
    kept = [plan for plan in curated.plans if plan.key not in curated.dropped_plans]
    names = list(dict.fromkeys(clip.source.name for clip in curated.found))
    composed = [curated.dropped_plans.get(plan.key) for plan in curated.plans]
    sources = {name: count_verdicts([clip.drop for clip in curated.found if clip.source.name == name], REASONS) for name in names}
    if curated.plans:
        sources[COMPOSED] = count_verdicts(composed, REASONS)
    asked = [question for plan in kept for question in plan.questions]
    figures = count_verdicts([clip.drop for clip in curated.found] + composed, REASONS)
    assert figures["kept"] == sum(counts.values())
    return {
        **figures, "sources": sources, "splits": dict(counts),
        "layouts": {split: dict(sorted(Counter(plan.kind for plan in kept if plan.split == split).items())) for split in SPLITS},
        "questions": dict(sorted(Counter(question.kind for question in asked).items())),
        "answers": {kind: dict(sorted(Counter(q.answer for q in asked if q.kind == kind).items())) for kind in CLOSED},
        "leaks": 0,
    }


def write_report(path: Path, curated: Curated, figures: Mapping[str, Any], *, report_examples: int) -> None:
    """Write the report: one HTML page that needs no other file."""
    drops = [(clip.drop, f"{clip.source.name}/{clip.name}") for clip in curated.found if clip.drop]
    drops += [(drop, key) for key, drop in curated.dropped_plans.items()]
    rules = []
    for reason, meaning in REASONS.items():
        members = [(drop, name) for drop, name in drops if drop.reason == reason]
        if members:
            examples = [{"name": name[-90:], "detail": drop.detail[:200]} for drop, name in spread(members, lambda pair: pair[1], report_examples)]
            rules.append({"reason": reason, "meaning": meaning, "count": len(members), "examples": examples})
    path.write_text(page("clips.html", figures=figures, kept=curated.shown, dropped=rules, reasons=REASONS), encoding="utf-8")


def write_card(folder: Path, curated: Curated, figures: Mapping[str, Any]) -> None:
    """Write the dataset card."""
    licences = {clip.source.name: clip.source.licence for clip in curated.found}
    if curated.plans:
        parts = {moved.stamp.key for plan in curated.plans for moved in plan.objects}
        licences[COMPOSED] = " AND ".join(sorted({curated.licences[part] for part in parts}))
    write_media_card(
        folder, title="Curated clips", extension="mp4", tasks=["video-text-to-text", "visual-question-answering"],
        fields=["duration", "frames", "rate", "width", "height", "parts"], figures=figures, licences=licences, reasons=REASONS,
        examples=curated.examples[:8],
        splitting="Clips cut from one video are in one split; composed clips are made of cut-outs of their own split, which is that of the pictures.",
        limits="Composed clips are drawings that move, come and go on plain backgrounds: true about direction, order and number, and nothing else of "
               "the world. They have no sound. Clips of sources keep their faces and are not compared for near-duplicates; their sound is left out.",
    )
