"""Pairs of a picture and a text: composed so that neither half alone says whether they are harmful, or read from Hateful Memes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from anymal.config import read_document
from anymal.curation.duplicates import SPLITS
from anymal.curation.keys import make_key
from anymal.errors import DataError
from anymal.safety.pictures import FILES, QUALITY, Picture, Pictures, draw, write_rows

TEXTS = Path(__file__).with_name("pairs.yaml")
MEMES = {"train": "train.jsonl", "val": "dev_seen.jsonl", "test": "test_seen.jsonl"}
"""Files of the splits of Hateful Memes (Kiela et al., 2020) that have labels."""


@dataclass(frozen=True)
class PairSource:
    """Where pairs come from.

    `composed`: pictures of the catalogue with the texts of pairs.yaml (no folder). `hateful_memes`: the set's folder with img/ and its lists; hateful
    memes get `categories`.
    """

    name: str
    folder: Path | None
    reader: Literal["composed", "hateful_memes"]
    licence: str
    categories: tuple[str, ...]


def curate_pairs(
    sources: Sequence[PairSource], pictures: Pictures, out: Path, *, per_text: int, size: int, val_fraction: float, test_fraction: float, seed: int
) -> dict[str, Any]:
    """Write pairs to `out/{train,val,test}.jsonl`; paths of pictures begin at the parent of `out`.

    Args:
        pictures: what `curate_pictures` wrote, for composed pairs; a picture is used in its own split only.
        per_text: pictures of either kind that each text of a composed pair is put to.
        size: pixels of the longer side of pictures that are written here (memes).
        val_fraction, test_fraction: shares of the groups of texts of each kind.

    Returns:
        Figures: pairs per split, label and family.

    Raises:
        DataError: if a set cannot be read, or a split lacks a kind of pictures.
    """
    (out / FILES).mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for source in sources:
        if source.reader == "composed":
            found = _compose(pictures, per_text=per_text, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
        else:
            found = _memes(source, out, size)
        for split, row in found:
            rows[split].append({**row, "source": source.name})
    for split, members in rows.items():
        write_rows(out / f"{split}.jsonl", sorted(members, key=lambda row: str(row["id"])))
    return {"licences": {source.name: source.licence for source in sources}, "splits": {split: {
        "pairs": len(members), "harmful": sum(bool(row["labels"]) for row in members), "pictures": len({row["image"] for row in members}),
        "texts": len({row["text"] for row in members}), "labels": dict(sorted(Counter(label for row in members for label in row["labels"]).items())),
        "kinds": dict(sorted(Counter(row["kind"] for row in members).items()))} for split, members in rows.items()}}


def _order(items: Sequence[Any], seed: int, name: str) -> list[Any]:
    return sorted(items, key=lambda item: hashlib.sha256(f"{seed}:{name}:{item}".encode()).digest())


def _share(groups: Sequence[Sequence[str]], name: str, *, val_fraction: float, test_fraction: float, seed: int) -> dict[str, list[tuple[str, str]]]:
    """Split -> (text, its group), of groups of paraphrases."""
    ordered = _order(range(len(groups)), seed, name)
    test, val = round(test_fraction * len(groups)), round(val_fraction * len(groups))
    places = {"test": ordered[:test], "val": ordered[test : test + val], "train": ordered[test + val :]}
    return {split: [(text, f"{name}-{index:02d}") for index in sorted(chosen) for text in groups[index]] for split, chosen in places.items()}


def _compose(
    pictures: Pictures, *, per_text: int, val_fraction: float, test_fraction: float, seed: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    document = read_document(TEXTS)
    families: dict[str, dict[str, Any]] = document["families"]

    def shared(groups: Sequence[Sequence[str]], name: str) -> dict[str, list[tuple[str, str]]]:
        return _share(groups, name, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)

    neutral = shared(document["neutral"], "neutral")
    for split, members in pictures.splits.items():
        by_concept: dict[str, list[Picture]] = {}
        for picture in members:
            by_concept.setdefault(picture.concept, []).append(picture)
        used: dict[str, Picture] = {}
        for name, family in families.items():
            shown = {side: _pictures(by_concept, family[side], split, seed) for side in ("one", "other")}
            used |= {picture.id: picture for side in shown.values() for picture in side}
            for which, harmful in (("first", "one"), ("second", "other")):
                texts = shared(family[which]["texts"], f"{name}-{which}")[split]
                for place, (text, group) in enumerate(texts):
                    for side, candidates in shown.items():
                        labels = family[which]["labels"] if side == harmful else []
                        for step in range(per_text):
                            # The texts of both kinds that stand at one place take the same pictures, so that each picture has as many of both.
                            picture = candidates[(place * per_text + step) % len(candidates)]
                            yield split, _row(picture, text, labels, group, kind="composed", family=name)
        ordered = _order(sorted(used), seed, "neutral")
        for place, (text, group) in enumerate(neutral[split]):
            for step in range(per_text):
                yield split, _row(used[ordered[(place * per_text + step) % len(ordered)]], text, [], group, kind="neutral", family="neutral")


def _pictures(by_concept: Mapping[str, list[Picture]], concept: str, split: str, seed: int) -> list[Picture]:
    found = {picture.id: picture for picture in by_concept.get(concept, [])}
    if not found:
        raise DataError(f"curate_safety: no picture of '{concept}' in the split {split}, which composed pairs need; add the assets that "
                        "anymal/safety/pictures.yaml names to the sources, or leave the composed pairs out")
    return [found[name] for name in _order(sorted(found), seed, concept)]


def _row(picture: Picture, text: str, labels: Sequence[str], group: str, *, kind: str, family: str) -> dict[str, Any]:
    key = hashlib.sha256(f"{picture.id}\0{text}".encode()).hexdigest()[:16]
    return {"id": key, "image": picture.file, "text": text, "labels": list(labels), "group": group, "kind": kind, "family": family}


def _memes(source: PairSource, out: Path, size: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of Hateful Memes: a JSON line with id, img, label (0 or 1) and text each; memes with one picture are of one group."""
    if source.folder is None or not (source.folder / MEMES["train"]).is_file():
        raise DataError(f"curate_safety.sources.{source.name}: {source.folder} has no {MEMES['train']}; give the folder of Hateful Memes")
    for split, name in MEMES.items():
        path = source.folder / name
        if not path.is_file():
            raise DataError(f"curate_safety.sources.{source.name}: {path} is missing; give the folder of Hateful Memes")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                entry = json.loads(line)
                file, label, text = str(entry["img"]), int(entry["label"]), str(entry["text"])
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{path}: line {number} is no meme (id, img, label, text); give the file as it was published") from error
            key = make_key(source.name, file)
            if not (out / FILES / f"{key}.jpg").is_file():
                draw(source.folder, file, size).save(out / FILES / f"{key}.jpg", "JPEG", quality=QUALITY)
            picture = Picture(key, f"{out.name}/{FILES}/{key}.jpg", (), source.name, key, "other", "meme")
            yield split, _row(picture, text, source.categories if label else (), key, kind="meme", family="memes")
