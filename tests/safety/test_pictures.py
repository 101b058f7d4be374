"""Labelled pictures and pairs: labels from the catalogue and from folders, splits that share nothing, pairs whose halves say nothing."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from anymal.config import read_document
from anymal.errors import DataError
from anymal.safety.pairs import PairSource, curate_pairs
from anymal.safety.pictures import CATALOGUE, PictureSource, curate_pictures
from anymal.safety.taxonomy import CODES

FOLDERS = {"weapon": "tools/weapons", "person": "people", "poison": "signs_and_symbols/hazard", "food": "food/fruit", "beast": "animals/mammals",
           "vice": "food/beverages/alcohol", "sweet": "food/desserts", "tool": "tools", "": "recreation"}
NAMES = {"person": "man", "poison": "poison", "tool": "hammer"}


def scribble(path: Path, seed: int) -> None:
    """A drawing that no other seed gives."""
    rng = random.Random(seed)
    image = Image.new("RGB", (64, 48), tuple(rng.randrange(256) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = rng.randrange(64), rng.randrange(48)
        draw.rectangle((x, y, x + rng.randrange(5, 40), y + rng.randrange(5, 30)), fill=tuple(rng.randrange(256) for _ in range(3)))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture(scope="module")
def clipart(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("assets") / "openclipart"
    for place, (concept, below) in enumerate(FOLDERS.items()):
        for number in range(12):
            word = chr(97 + number) * 3
            scribble(folder / below / f"{NAMES.get(concept, 'thing')}_{word}.png", 100 * place + number)
    scribble(folder / "tools/weapons/bullet_hole_a.png", 5000)
    (folder / "people/man_broken.png").write_bytes(b"no picture")
    scribble(folder / "tools/weapons/sabre_01.png", 6000)
    scribble(folder / "tools/weapons/sabre_02.png", 6001)
    (folder / "tools/weapons/svg_thing.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><path d="M2 2h9v20z"/></svg>')
    return folder


def curated(clipart: Path, out: Path):
    source = PictureSource("openclipart", clipart, "catalogue", "CC-PDDC", {})
    return curate_pictures([source], out / "images", others=1, look_alikes=0.5, per_concept=12, size=40, val_fraction=0.2, test_fraction=0.3, seed=0)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_pictures_get_the_catalogues_labels(clipart, tmp_path):
    pictures = curated(clipart, tmp_path)
    rows = {split: lines(tmp_path / f"images/{split}.jsonl") for split in ("train", "val", "test")}
    every = [row for split in rows.values() for row in split]
    assert Counter(row["kind"] for row in every) == {"harmful": 15, "other": 15, "hard_negative": 8}
    assert all(row["labels"] == (["weapons"] if row["kind"] == "harmful" else []) for row in every)
    assert all(row["kind"] == "harmful" for row in every if row["concept"] == "weapon")
    assert not any("bullet" in row["id"] for row in every)
    assert pictures.statistics["dropped"] == {"unreadable": 1}
    for row in every:
        with Image.open(tmp_path / row["file"]) as image:
            assert max(image.size) <= 40
            assert image.mode == "RGB"


def test_variants_of_a_drawing_stay_together(clipart, tmp_path):
    curated(clipart, tmp_path)
    found = [(split, row["group"]) for split in ("train", "val", "test") for row in lines(tmp_path / f"images/{split}.jsonl") if "sabre" in row["id"]]
    assert len(found) == 2
    assert len(set(found)) == 1


def test_the_same_input_gives_the_same_bytes(clipart, tmp_path):
    for run in ("one", "two"):
        curated(clipart, tmp_path / run)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) > 40
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)


def test_neither_half_of_a_composed_pair_decides(clipart, tmp_path):
    pictures = curated(clipart, tmp_path)
    curate_pairs([PairSource("composed", None, "composed", "Apache-2.0", ())], pictures, tmp_path / "pairs", per_text=3, size=40, val_fraction=0.2,
                 test_fraction=0.3, seed=0)
    seen: dict[str, set[str]] = defaultdict(set)
    for split in ("train", "val", "test"):
        rows = [row for row in lines(tmp_path / f"pairs/{split}.jsonl") if row["kind"] == "composed"]
        assert rows
        for half in ("text", "image"):
            balance: dict[str, list[int]] = defaultdict(list)
            for row in rows:
                balance[row[half]].append(1 if row["labels"] else -1)
            assert all(sum(signs) == 0 for signs in balance.values()), half
        for row in lines(tmp_path / f"pairs/{split}.jsonl"):
            seen[row["text"]].add(split)
            seen[row["image"]].add(split)
            seen[row["group"]].add(split)
            assert (tmp_path / row["image"]).is_file()
        assert any(row["kind"] == "neutral" for row in lines(tmp_path / f"pairs/{split}.jsonl"))
    assert all(len(splits) == 1 for splits in seen.values())


def test_folders_per_class_are_read_as_published(tmp_path):
    for name, count in (("drawings", 6), ("hentai", 5)):
        for number in range(count):
            scribble(tmp_path / f"nsfw/{name}/{chr(97 + number) * 4}.png", number + 300 * len(name))
    source = PictureSource("nsfw", tmp_path / "nsfw", "folders", "unknown", {"drawings": (), "hentai": ("sexual",)})
    settings = {"others": 1, "look_alikes": 0, "per_concept": 1, "size": 40, "val_fraction": 0.2, "test_fraction": 0.2, "seed": 1}
    pictures = curate_pictures([source], tmp_path / "images", **settings)
    every = [picture for split in pictures.splits.values() for picture in split]
    assert Counter(picture.labels for picture in every) == {("sexual",): 5, (): 6}
    with pytest.raises(DataError, match="no such folder"):
        curate_pictures([PictureSource("nsfw", tmp_path / "nsfw", "folders", "unknown", {"missing": ()})], tmp_path / "again", **settings)


def test_hateful_memes_are_read_as_published(clipart, tmp_path):
    for number, name in enumerate(("train", "dev_seen", "test_seen")):
        scribble(tmp_path / f"memes/img/0{number}.png", 900 + number)
        meme = {"id": number, "img": f"img/0{number}.png", "label": number % 2, "text": f"text {number}"}
        (tmp_path / f"memes/{name}.jsonl").write_text(json.dumps(meme) + "\n")
    pictures = curated(clipart, tmp_path)
    source = PairSource("memes", tmp_path / "memes", "hateful_memes", "see the set", ("hate",))
    statistics = curate_pairs([source], pictures, tmp_path / "pairs", per_text=1, size=40, val_fraction=0.2, test_fraction=0.2, seed=0)
    assert [statistics["splits"][split]["harmful"] for split in ("train", "val", "test")] == [0, 1, 0]
    assert lines(tmp_path / "pairs/val.jsonl")[0]["labels"] == ["hate"]
    (tmp_path / "memes/train.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="line 1 is no meme"):
        curate_pairs([source], pictures, tmp_path / "pairs", per_text=1, size=40, val_fraction=0.2, test_fraction=0.2, seed=0)


def test_the_catalogue_uses_the_taxonomys_categories():
    concepts = read_document(CATALOGUE)["concepts"]
    assert {label for entry in concepts.values() for label in entry.get("labels", [])} <= set(CODES)
    assert {entry["kind"] for entry in concepts.values()} == {"harmful", "hard_negative", "set_aside", "other"}
    assert all((entry["kind"] == "harmful") == bool(entry.get("labels")) for entry in concepts.values())


def test_a_source_without_pictures_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "missing", tmp_path / "empty"):
        with pytest.raises(DataError, match=r"curate_safety\.sources\.openclipart"):
            curated(folder, tmp_path / "out")
