"""Curation from sources to samples: the rules in their order, duplicates, the split, the scenes, and a count of everything.

Cheap rules come first (names, headers, captions), pixels second and in parallel, comparisons between pictures last. What a picture leaves in
memory is its caption, hashes and a 768-byte miniature; its pixels are spooled to a scratch folder.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anymal.curation import captions as text_rules
from anymal.curation import cat, duplicates, images, scenes
from anymal.curation.captions import Caption, CaptionLimits
from anymal.curation.drops import Drop, all_dropped
from anymal.curation.duplicates import SPLITS, Member
from anymal.curation.files import matches
from anymal.curation.keys import make_key
from anymal.curation.rules import REASONS
from anymal.curation.scenes import Scene, Stamp
from anymal.curation.screening import Screen, drop_harmful
from anymal.curation.sources import READERS, Item
from anymal.curation.workers import ImageJob, ImageSettings, Picture, SceneJob, draw_scene, parallel, take_picture
from anymal.errors import DataError
from anymal.progress import track

HEADER_BYTES = 65536
TRUNCATED_NAME = 18
"""Length from which an author's name at the end of a file name may have been cut off (upload forms of clip-art sites cut at about 24)."""


@dataclass(frozen=True)
class Source:
    """One source of pictures: where it is, how it is read, and what its captions must be."""

    name: str
    root: Path
    reader: str
    licence: str
    exclude: tuple[str, ...]
    min_complexity: int
    min_actions: int
    scenes: bool


@dataclass(frozen=True)
class DuplicateSettings:
    """Bits of 64 and colour (0 to 255) up to which two pictures are one (`same`), or may stem from one object (`related`)."""

    same_bits: int
    same_colour: float
    related_bits: int
    related_colour: float


@dataclass(frozen=True)
class SceneSettings:
    """Scenes per split, canvas side in pixels, most objects; CAT thresholds of their captions."""

    counts: Mapping[str, int]
    size: int
    max_objects: int
    min_complexity: int
    min_actions: int


@dataclass
class Candidate:
    """One image on its way through the rules."""

    item: Item
    source: Source
    key: str
    drop: Drop | None = None
    caption: Caption | None = None
    picture: Picture | None = None
    group: str = ""
    split: str = ""
    complexity: int = 0
    actions: int = 0


@dataclass
class Composed:
    """One scene, drawn; `drop` if it was taken out again."""

    scene: Scene
    split: str
    picture: Picture
    captions: list[str]
    drop: Drop | None = None


@dataclass
class Curated:
    """All that curation saw, in a fixed order, with the verdict on each."""

    candidates: list[Candidate]
    composed: list[Composed]
    authors: dict[str, list[str]] = field(default_factory=dict)
    screened: bool = False
    """Whether safety classifiers were asked."""

    @property
    def kept(self) -> list[Candidate]:
        """The pictures that passed every rule."""
        return [candidate for candidate in self.candidates if candidate.drop is None]

    @property
    def kept_scenes(self) -> list[Composed]:
        """The scenes that passed every rule."""
        return [composed for composed in self.composed if composed.drop is None]


def collect(sources: Sequence[Source], limits: images.ImageLimits) -> list[Candidate]:
    """Find every image of every source and judge path and header; nothing is decoded."""
    found = []
    for source in sources:
        for item in track(READERS[source.reader](source.root, source.name), label=f"find {source.name}", unit="images"):
            candidate = Candidate(item, source, make_key(source.name, item.name))
            candidate.drop = _judge_file(candidate, limits)
            found.append(candidate)
    return found


def _judge_file(candidate: Candidate, limits: images.ImageLimits) -> Drop | None:
    item = candidate.item
    if matches(item.name, candidate.source.exclude):
        return Drop("excluded_by_profile")
    if item.problem is not None:
        return item.problem
    if item.size == 0:
        return Drop("empty_file")
    if item.size > limits.max_bytes:
        return Drop("file_too_large", f"{item.size} bytes")
    try:
        checked = images.probe(item.read(HEADER_BYTES), item.suffix, limits)
        if isinstance(checked, Drop) and checked.reason == "not_an_image" and item.size > HEADER_BYTES:
            checked = images.probe(item.read(), item.suffix, limits)
    except OSError as error:
        return Drop("unreadable", error.strerror or type(error).__name__)
    return checked if isinstance(checked, Drop) else None


def caption_all(candidates: Sequence[Candidate], *, limits: CaptionLimits, parser: Any, author_min_images: int) -> dict[str, list[str]]:
    """Give each candidate that is still in a clean caption, or the reason why it has none; then CAT.

    Returns:
        Per source whose captions are file names: the author names found in them.
    """
    authors: dict[str, list[str]] = {}
    by_source: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        by_source[candidate.source.name].append(candidate)
    for name, members in by_source.items():
        if members[0].source.reader == "named_folder":
            # Authors are inferred from excluded pictures as well: they recur there too.
            found = text_rules.infer_authors([text_rules.name_words(member.item.stem) for member in members], parser, author_min_images)
            authors[name] = sorted(found)
            _caption_names([member for member in members if member.drop is None], found, parser)
        else:
            _caption_texts([member for member in members if member.drop is None], limits, parser)
        for member in members:
            if member.drop is None and member.caption is not None:
                text = member.caption.text
                member.drop = text_rules.check_length(text, limits) or text_rules.check_language(text, limits.min_english)
    left = [candidate for candidate in candidates if candidate.drop is None]
    for candidate, document in zip(left, parser.pipe(candidate.caption.text for candidate in left if candidate.caption), strict=True):
        candidate.complexity, candidate.actions = cat.complexity(document), cat.actions(document)
        candidate.drop = cat.check(document, min_complexity=candidate.source.min_complexity, min_actions=candidate.source.min_actions)
    return authors


def _caption_texts(members: Sequence[Candidate], limits: CaptionLimits, parser: Any) -> None:
    waiting: list[tuple[Candidate, str]] = []
    for member in members:
        raw = member.item.text
        if raw is None or not raw.strip():
            member.drop = Drop("no_caption")
        elif len(raw) > limits.max_characters:
            member.drop = Drop("caption_too_long", f"{len(raw)} characters")
        else:
            sentence = text_rules.first_sentence(text_rules.tidy(raw))
            if sentence.strip(" .!?\"'"):
                waiting.append((member, sentence))
            else:
                member.drop = Drop("caption_too_short", "nothing is left after cleaning")
    for (member, sentence), document in zip(waiting, parser.pipe(sentence for _, sentence in waiting), strict=True):
        described = text_rules.describe(document, sentence)
        if isinstance(described, Drop):
            member.drop = described
        else:
            member.caption = described


def _caption_names(members: Sequence[Candidate], authors: frozenset[str], parser: Any) -> None:
    waiting: list[tuple[Candidate, list[str]]] = []
    for member in members:
        words = text_rules.title_words(member.item.stem, authors, truncated=len(re.sub(r"[_\d]+r?$", "", member.item.stem)) >= TRUNCATED_NAME)
        if words:
            waiting.append((member, words))
        else:
            member.drop = Drop("no_caption", "the file name holds no word")
    names = [words for _, words in waiting]
    people = text_rules.given_names([text_rules.name_words(member.item.stem) for member, _ in waiting], authors, parser)
    for (member, _), described in zip(waiting, text_rules.describe_names(names, people, parser), strict=True):
        if isinstance(described, Drop):
            member.drop = described
        else:
            member.caption = described


def take_pictures(candidates: Sequence[Candidate], *, settings: ImageSettings, scratch: Path, workers: int) -> None:
    """Decode, judge and store the pictures of all candidates that are still in."""
    left = [candidate for candidate in candidates if candidate.drop is None]
    jobs = [
        ImageJob(candidate.item, candidate.caption.text, scratch / f"{index:08d}",
                 candidate.source.scenes and scenes.stamp_name(candidate.caption) is not None)
        for index, candidate in enumerate(left) if candidate.caption is not None
    ]
    results = parallel(take_picture, jobs, settings=settings, workers=workers)
    for candidate, result in zip(left, track(results, total=len(jobs), label="curate images", unit="images"), strict=True):
        if isinstance(result, Drop):
            candidate.drop = result
        else:
            candidate.picture = result


def drop_duplicates(candidates: Sequence[Candidate], settings: DuplicateSettings) -> None:
    """Keep the first of equal and of alike pictures; the verdict on the others names the kept key."""
    first: dict[str, str] = {}
    for candidate in candidates:
        if candidate.drop is None and candidate.picture is not None:
            kept = first.setdefault(candidate.picture.pixels, candidate.key)
            if kept != candidate.key:
                candidate.drop = Drop("exact_duplicate", kept)
    left, pairs = _alike([candidate for candidate in candidates if candidate.drop is None], settings.same_bits, settings.same_colour)
    for index, root in enumerate(duplicates.components(len(left), pairs)):
        if index != root:
            left[index].drop = Drop("near_duplicate", left[root].key)


def _alike(candidates: list[Candidate], max_bits: int, max_colour: float) -> tuple[list[Candidate], list[tuple[int, int]]]:
    pictures = [candidate.picture for candidate in candidates if candidate.picture is not None]
    return candidates, duplicates.near_pairs([picture.phash for picture in pictures], stack(pictures), max_bits=max_bits, max_colour=max_colour)


def stack(pictures: Sequence[Picture]) -> Any:
    """Miniatures of the pictures, shape (pictures, 768) uint8."""
    import numpy as np

    return np.stack([picture.fingerprint for picture in pictures]) if pictures else np.zeros((0, 768), dtype=np.uint8)


def assign_groups(candidates: Sequence[Candidate], settings: DuplicateSettings, *, seed: int, val_fraction: float, test_fraction: float) -> None:
    """Group pictures that may show one source object, and split by group.

    One group: pictures that look related, and pictures of one folder that share their noun or their file name but for numbers (`apple`, `apple2`,
    `apple_red_01`).
    """
    left, pairs = _alike([candidate for candidate in candidates if candidate.drop is None], settings.related_bits, settings.related_colour)
    nouns = [(c.source.name, c.item.category, c.caption.head) if c.caption else None for c in left]
    stems = [(c.source.name, c.item.category, (text_rules.name_words(c.item.stem) or [c.key])[0]) for c in left]
    roots = duplicates.components(len(left), [*pairs, *duplicates.same_key_pairs(nouns), *duplicates.same_key_pairs(stems)])
    for candidate, root in zip(left, roots, strict=True):
        candidate.group = left[root].key
        candidate.split = duplicates.assign_split(candidate.group, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction)


def compose(candidates: Sequence[Candidate], *, settings: SceneSettings, images_as: ImageSettings, parser: Any, scratch: Path, workers: int,
            seed: int) -> list[Composed]:
    """Plan, check and draw the scenes of all splits, each from its own split's pictures."""
    plans: list[tuple[str, Scene]] = []
    for split in SPLITS:
        stamps = [_stamp(c) for c in candidates if c.drop is None and c.split == split and c.picture is not None and c.picture.cutout is not None]
        plans += [(split, scene) for scene in scenes.plan_scenes(stamps, split=split, count=settings.counts[split], size=settings.size,
                                                                 max_objects=settings.max_objects, seed=seed)]
    documents = parser.pipe(caption for _, scene in plans for caption in scene.captions)
    accepted = [
        [caption for caption in scene.captions
         if cat.check(next(documents), min_complexity=settings.min_complexity, min_actions=settings.min_actions) is None]
        for _, scene in plans
    ]
    jobs = [SceneJob(scene, scratch / scene.key) for _, scene in plans]
    drawn = track(parallel(draw_scene, jobs, settings=images_as, workers=workers), total=len(jobs), label="compose scenes", unit="scenes")
    composed = [Composed(scene, split, picture, texts) for (split, scene), picture, texts in zip(plans, drawn, accepted, strict=True)]
    for scene_ in composed:
        if not scene_.captions:
            scene_.drop = Drop("too_few_actions", "no caption passed CAT")
    return composed


def _stamp(candidate: Candidate) -> Stamp:
    picture, caption = candidate.picture, candidate.caption
    assert picture is not None and caption is not None
    assert picture.cutout is not None and picture.cutout_size is not None and picture.colour is not None
    return Stamp(candidate.key, caption.phrase, caption.head, picture.cutout, picture.cutout_size, picture.colour)


def drop_alike_scenes(curated: Curated, settings: DuplicateSettings) -> None:
    """Take out scenes that look like a picture or scene of an earlier split, by chance: few objects on plain ground can be much the same."""
    members: list[tuple[str, Picture, Composed | None]] = [(c.split, c.picture, None) for c in curated.kept if c.picture is not None]
    members += [(s.split, s.picture, s) for s in curated.kept_scenes]
    pictures = [picture for _, picture, _ in members]
    hashes = [picture.phash for picture in pictures]
    pairs = duplicates.near_pairs(hashes, stack(pictures), max_bits=settings.same_bits, max_colour=settings.same_colour)
    for i, j in pairs:
        (split_i, _, scene_i), (split_j, _, scene_j) = members[i], members[j]
        if split_i == split_j or (scene_i is not None and scene_i.drop) or (scene_j is not None and scene_j.drop):
            continue
        taken = scene_j if scene_j is not None else scene_i
        assert taken is not None, "pictures of two splits are never alike: they would be one group"
        other = scene_i.scene.key if scene_i is not None and taken is not scene_i else f"a picture of {split_i}"
        taken.drop = Drop("near_duplicate", other)


def audit(curated: Curated, settings: DuplicateSettings) -> int:
    """Check that no key, group, part or look-alike is in two splits.

    Returns:
        Number of samples checked.

    Raises:
        DataError: naming the leaks.
    """
    members = [Member(c.key, c.split, c.group, c.picture.phash) for c in curated.kept if c.picture is not None]
    pictures = [c.picture for c in curated.kept if c.picture is not None]
    for composed in curated.kept_scenes:
        parts = tuple(placed.stamp.key for placed in composed.scene.objects)
        members.append(Member(composed.scene.key, composed.split, composed.scene.key, composed.picture.phash, parts))
        pictures.append(composed.picture)
    leaks = duplicates.audit_leakage(members, stack(pictures), max_bits=settings.same_bits, max_colour=settings.same_colour)
    if leaks:
        raise DataError(f"curate_image: {len(leaks)} leaks between splits, the first: {leaks[0]}; nothing was written")
    return len(members)


def check_conservation(candidates: Sequence[Candidate]) -> None:
    """Nothing vanishes: every image seen is either kept, with a picture and a caption, or dropped for a known reason."""
    for candidate in candidates:
        if candidate.drop is None:
            assert candidate.picture is not None and candidate.caption is not None and candidate.split in SPLITS, candidate.key
        else:
            assert candidate.drop.reason in REASONS, candidate.drop.reason
    keys = Counter(candidate.key for candidate in candidates if candidate.drop is None)
    assert all(count == 1 for count in keys.values()), keys.most_common(1)


def refuse_empty(candidates: Sequence[Candidate]) -> None:
    """Stop when no picture is left.

    Raises:
        DataError: naming the reason that took most.
    """
    if any(candidate.drop is None for candidate in candidates):
        return
    if not candidates:
        raise DataError("curate_image.sources: hold no image at all; check the assets' names and the folders that ingest made")
    drops = [(candidate.drop, f"{candidate.source.name}/{candidate.item.name}") for candidate in candidates if candidate.drop is not None]
    raise all_dropped("curate_image", "images", drops, REASONS)


def curate_images(sources: Sequence[Source], *, captions: CaptionLimits, author_min_images: int, image_settings: ImageSettings,
                  duplicate_settings: DuplicateSettings, scene_settings: SceneSettings, val_fraction: float, test_fraction: float, seed: int,
                  parser: Any, scratch: Path, workers: int, screen: Screen | None = None, say: Callable[[str], None] = lambda _: None) -> Curated:
    """Run all rules over all sources.

    Args:
        screen: safety classifiers to ask about what is left before it is split; None for none.

    Returns:
        Every image seen with its verdict, and the scenes; pictures lie in `scratch`.

    Raises:
        DataError: if a source is missing, nothing is left, or the splits leak.
    """
    candidates = collect(sources, image_settings.limits)
    authors = caption_all(candidates, limits=captions, parser=parser, author_min_images=author_min_images)
    refuse_empty(candidates)
    take_pictures(candidates, settings=image_settings, scratch=scratch, workers=workers)
    drop_duplicates(candidates, duplicate_settings)
    drop_harmful(candidates, screen)
    refuse_empty(candidates)
    assign_groups(candidates, duplicate_settings, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction)
    check_conservation(candidates)
    composed = compose(candidates, settings=scene_settings, images_as=image_settings, parser=parser, scratch=scratch, workers=workers, seed=seed)
    curated = Curated(candidates, composed, authors, screened=screen is not None)
    drop_alike_scenes(curated, duplicate_settings)
    checked = audit(curated, duplicate_settings)
    say(f"{len(curated.kept)} pictures of {len(candidates)} and {len(curated.kept_scenes)} scenes kept; "
        f"{checked} samples share nothing between splits")
    return curated
