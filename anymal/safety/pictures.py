"""Harmful and harmless pictures with labels: of our own catalogue of packaged drawings, or of folders per class."""

from __future__ import annotations

import fnmatch
import hashlib
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from anymal.config import read_document
from anymal.curation.duplicates import SPLITS, components, near_pairs, same_key_pairs
from anymal.curation.keys import make_key
from anymal.errors import DataError
from anymal.media.image import open_image
from anymal.media.likeness import miniature, perceptual_hash, pixel_hash
from anymal.progress import track

if TYPE_CHECKING:
    from PIL import Image

CATALOGUE = Path(__file__).with_name("pictures.yaml")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
FILES = "files"
SAME_BITS, SAME_COLOUR = 6, 16.0
"""From where two pictures are kept in one split: as `related` pictures of curate_image."""
MAX_SVG_BYTES = 2_000_000
GLYPHS, FONTS = "glyphmap.json", "*.[ot]tf"
SPRITES = "crossfire.base"
QUALITY = 90
VARIANTS = frozenset({"outline", "bw", "alt", "mirror", "left", "right", "r"})

Kind = Literal["harmful", "hard_negative", "set_aside", "other"]


@dataclass(frozen=True)
class PictureSource:
    """Where pictures come from.

    `catalogue`: an asset that pictures.yaml describes (PNG, SVG, glyphs of a font, an archive of sprites). `folders`: a folder per class, as the
    field's sets have them; `classes` says the categories of each (none = harmless).
    """

    name: str
    folder: Path
    reader: Literal["catalogue", "folders"]
    licence: str
    classes: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Picture:
    """A picture that was written, as its line in the list says it; `concept` is what it shows, for composing pairs."""

    id: str
    file: str
    labels: tuple[str, ...]
    source: str
    group: str
    kind: Kind
    concept: str

    def row(self) -> dict[str, Any]:
        """Its line in the list."""
        return {"id": self.id, "file": self.file, "labels": list(self.labels), "source": self.source, "group": self.group, "kind": self.kind,
                "concept": self.concept}


@dataclass(frozen=True)
class Pictures:
    """Everything that was written: split -> pictures, those that the list leaves out and pairs may use included; and figures about them."""

    splits: Mapping[str, tuple[Picture, ...]]
    statistics: Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """A picture of a source before it is read: `name` is its path inside the source, or that of a glyph."""

    source: PictureSource
    name: str
    concept: str
    labels: tuple[str, ...]
    kind: Kind

    @property
    def key(self) -> str:
        """Its id."""
        return make_key(self.source.name, self.name)

    @property
    def rank(self) -> bytes:
        """What orders pictures without preferring any folder."""
        return hashlib.sha256(f"{self.source.name}/{self.name}".encode()).digest()


def curate_pictures(
    sources: Sequence[PictureSource], out: Path, *, others: float, look_alikes: float, per_concept: int, size: int, val_fraction: float,
    test_fraction: float, seed: int,
) -> Pictures:
    """Write labelled pictures to `out/files/*.jpg` and lists of them to `out/{train,val,test}.jsonl`; paths in lists begin at the parent of `out`.

    Pictures that look alike, and those whose names differ in a number or a variant only, are of one group and stay in one split. Each source and
    concept is shared out between the splits by itself.

    Args:
        others: harmless pictures of no particular kind drawn for each harmful picture of the same source, so that a style does not give a label away.
        look_alikes: harmless pictures that look alike, drawn likewise.
        per_concept: pictures of each concept that only pairs need, at most.
        size: pixels of the longer side.
        val_fraction, test_fraction: shares of the groups.

    Raises:
        DataError: if a source's folder is missing, or no picture of the catalogue is in it.
    """
    found = [item for source in sources for item in _find(source)]
    drawn = {item.key for kind, ratio in (("other", others), ("hard_negative", look_alikes)) for item in _draw(found, kind, ratio)}
    drawn |= {item.key for item in found if item.kind == "harmful"}
    paired = {item.key for item in _for_pairs(found, per_concept)}
    chosen = [item for item in found if item.key in drawn or item.key in paired]
    folder = out / FILES
    folder.mkdir(parents=True, exist_ok=True)
    kept, hashes, miniatures, dropped = _write(chosen, folder, size)
    groups = _groups(kept, hashes, miniatures)
    splits = _split(kept, groups, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
    written: dict[str, list[Picture]] = {split: [] for split in SPLITS}
    listed: dict[str, list[Picture]] = {split: [] for split in SPLITS}
    for item, group in zip(kept, groups, strict=True):
        file = f"{out.name}/{FILES}/{item.key}.jpg"
        picture = Picture(item.key, file, item.labels, item.source.name, group, item.kind, item.concept or "anything")
        written[splits[group]].append(picture)
        if item.key in drawn:
            listed[splits[group]].append(picture)
    for split, pictures in listed.items():
        write_rows(out / f"{split}.jsonl", (picture.row() for picture in sorted(pictures, key=lambda picture: picture.id)))
    statistics = {"dropped": dict(sorted(dropped.items())), "licences": {source.name: source.licence for source in sources}, "splits": {
        split: {"pictures": len(pictures), "kinds": dict(sorted(Counter(p.kind for p in pictures).items())), "labels": dict(sorted(
            Counter(label for p in pictures for label in p.labels).items())), "sources": dict(sorted(Counter(p.source for p in pictures).items())),
            "groups": len({p.group for p in pictures})} for split, pictures in listed.items()}}
    return Pictures({split: tuple(sorted(pictures, key=lambda picture: picture.id)) for split, pictures in written.items()}, statistics)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A JSON document a line."""
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _find(source: PictureSource) -> list[Found]:
    if not source.folder.is_dir():
        raise DataError(f"curate_safety.sources.{source.name}: {source.folder} is no folder; add the asset to ingest.assets and run ingest")
    found = _catalogued(source) if source.reader == "catalogue" else _classified(source)
    if not found:
        raise DataError(f"curate_safety.sources.{source.name}: no picture found in {source.folder}; it must be "
                        + ("an asset that anymal/safety/pictures.yaml names" if source.reader == "catalogue" else "a folder per class"))
    return sorted(found, key=lambda item: item.name)


def _classified(source: PictureSource) -> list[Found]:
    """The pictures of a folder per class."""
    found = []
    for name, labels in sorted(source.classes.items()):
        if not (source.folder / name).is_dir():
            raise DataError(f"curate_safety.sources.{source.name}.classes.{name}: {source.folder} has no such folder")
        files = sorted(path for path in (source.folder / name).rglob("*") if path.suffix.lower() in PICTURES)
        found += [Found(source, path.relative_to(source.folder).as_posix(), name, labels, "harmful" if labels else "hard_negative") for path in files]
    return found


def _catalogued(source: PictureSource) -> list[Found]:
    """The pictures of an asset with what the catalogue says they show; pictures that it does not name have no concept."""
    document = read_document(CATALOGUE)
    concepts: dict[str, dict[str, Any]] = document["concepts"]
    if not any(source.name in concept for concept in concepts.values()):
        return []
    ignored = document["ignored"].get(source.name, [])
    found = []
    for name in _names(source.folder):
        concept = next((title for title, entry in concepts.items() if _fits(name, entry.get(source.name, []))), None)
        if concept is None and not _fits(name, ignored):
            found.append(Found(source, name, "", (), "other"))
        elif concept is not None and concepts[concept]["kind"] != "set_aside":
            entry = concepts[concept]
            found.append(Found(source, name, concept, tuple(entry.get("labels", [])), entry["kind"]))
    return found


def _names(folder: Path) -> Iterator[str]:
    glyphs = folder / GLYPHS
    if glyphs.is_file():
        # The font's map has every glyph twice, with the prefix of its CSS classes and without.
        names = json.loads(glyphs.read_text(encoding="utf-8"))
        yield from sorted(name for name in names if not any(name.endswith(f"-{other}") and names[name] == names[other] for other in names))
        return
    if (folder / SPRITES).is_file():
        yield from sorted(_sprites(folder / SPRITES))
        return
    seen = set()
    for path in sorted(folder.rglob("*")):
        # A drawing that is there as SVG and as PNG is one picture.
        if path.suffix.lower() in (*PICTURES, ".svg") and path.with_suffix("") not in seen:
            seen.add(path.with_suffix(""))
            yield path.relative_to(folder).as_posix()


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _draw(found: Sequence[Found], kind: str, ratio: float) -> Iterator[Found]:
    """For each source its pictures of a kind, as many as its harmful ones ask for; a class of folders is taken whole."""
    by_source: dict[str, list[Found]] = defaultdict(list)
    for item in found:
        by_source[item.source.name].append(item)
    for items in by_source.values():
        wanted = round(ratio * sum(item.kind == "harmful" for item in items)) if items[0].source.reader == "catalogue" else len(items)
        yield from sorted((item for item in items if item.kind == kind), key=lambda item: item.rank)[:wanted]


def _for_pairs(found: Sequence[Found], per_concept: int) -> Iterator[Found]:
    """The pictures that pairs are composed of: of each concept some, drawn without preferring a source."""
    needed = {name for name, entry in read_document(CATALOGUE)["concepts"].items() if entry.get("composed", False)}
    by_concept: dict[str, list[Found]] = defaultdict(list)
    for item in found:
        if item.concept in needed:
            by_concept[item.concept].append(item)
    for items in by_concept.values():
        yield from sorted(items, key=lambda item: item.rank)[:per_concept]


def _write(chosen: Sequence[Found], folder: Path, size: int) -> tuple[list[Found], list[str], Any, Counter[str]]:
    import numpy as np

    kept: list[Found] = []
    hashes: list[str] = []
    miniatures: list[np.ndarray] = []
    seen: set[str] = set()
    dropped: Counter[str] = Counter()
    for item in track(chosen, label="safety pictures", unit="pictures"):
        try:
            image = draw(item.source.folder, item.name, size)
        except DataError:
            dropped["unreadable"] += 1
            continue
        pixels = pixel_hash(image)
        if pixels in seen:
            dropped["same_pixels"] += 1
            continue
        seen.add(pixels)
        image.save(folder / f"{item.key}.jpg", "JPEG", quality=QUALITY)
        kept.append(item)
        hashes.append(perceptual_hash(image))
        miniatures.append(miniature(image))
    return kept, hashes, np.array(miniatures).reshape(len(kept), -1), dropped


def draw(folder: Path, name: str, size: int) -> Image.Image:
    """A picture of a source as RGB on white, its longer side `size` pixels at most.

    Raises:
        DataError: if it cannot be read, or is larger than allowed.
    """
    from PIL import Image

    path = folder / name
    if path.suffix.lower() == ".svg":
        image = open_image(io.BytesIO(_svg(path, size)), str(path))
    elif (folder / GLYPHS).is_file():
        image = _glyph(folder, name, size)
    elif (folder / SPRITES).is_file():
        image = open_image(io.BytesIO(_sprites(folder / SPRITES)[name]), f"{folder / SPRITES}: {name}")
        times = max(1, size // max(image.size))
        image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    else:
        image = open_image(path, str(path))
    if max(image.size) > size:
        scale = size / max(image.size)
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return image


def _svg(path: Path, size: int) -> bytes:
    import resvg_py

    data = path.read_bytes()
    if len(data) > MAX_SVG_BYTES or b"<!ENTITY" in data:
        raise DataError(f"{path}: is larger than {MAX_SVG_BYTES} bytes or declares entities; leave it out")
    try:
        return bytes(resvg_py.svg_to_bytes(svg_string=data.decode("utf-8-sig"), width=size, skip_system_fonts=True, dpi=96.0))
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be drawn ({str(error)[:80]})") from error


def _glyph(folder: Path, name: str, size: int) -> Image.Image:
    from PIL import Image, ImageDraw, ImageFont

    fonts = sorted(folder.rglob(FONTS))
    if len(fonts) != 1:
        raise DataError(f"{folder}: must hold exactly one font beside its {GLYPHS}, found {len(fonts)}; run ingest")
    image = Image.new("RGB", (size, size), "white")
    code = json.loads((folder / GLYPHS).read_text(encoding="utf-8"))[name]
    ImageDraw.Draw(image).text((size / 2, size * 0.55), chr(int(code, 16)), font=ImageFont.truetype(str(fonts[0]), round(size * 0.75)), fill="black",
                               anchor="mm")
    return image


@lru_cache(maxsize=1)
def _sprites(path: Path) -> dict[str, bytes]:
    """Name -> PNG of the first view of each thing in an archive of sprites: headers `IMAGE … BYTES ./arch/NAME.VIEW`, each before a file.

    Raises:
        DataError: if it is no such archive.
    """
    found: dict[str, bytes] = {}
    data, place = path.read_bytes(), 0
    while place < len(data):
        end = data.find(b"\n", place)
        header = data[place:end].decode("ascii", "replace").split()
        if len(header) < 3 or header[0] != "IMAGE" or not header[-2].isdigit():
            raise DataError(f"{path}: byte {place} begins no picture; run ingest again")
        name, _, _ = header[-1].removeprefix("./").removeprefix("arch/").rpartition(".")
        place = end + 1 + int(header[-2])
        found.setdefault(name, data[end + 1 : place])
    return found


def _groups(kept: Sequence[Found], hashes: Sequence[str], miniatures: Any) -> list[str]:
    """The name of each picture's group: the id of its first member."""
    keys = [f"{item.source.name}/{item.concept}/{_variant(item.name)}" for item in kept]
    pairs = [*near_pairs(hashes, miniatures, max_bits=SAME_BITS, max_colour=SAME_COLOUR), *same_key_pairs(keys)]
    return [kept[first].key for first in components(len(kept), pairs)]


def _variant(name: str) -> str:
    """A name without what tells variants of one drawing apart: numbers, `outline`, `bw`, and the folder."""
    words = [word for word in re.split(r"[^a-z]+", Path(name).stem.lower()) if word and word not in VARIANTS]
    return "-".join(words) or name


def _split(kept: Sequence[Found], groups: Sequence[str], *, val_fraction: float, test_fraction: float, seed: int) -> dict[str, str]:
    """Group -> split: within each source and concept the first by a hash are of the test, the next of the validation."""
    strata: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for item, group in zip(kept, groups, strict=True):
        if item.key == group:
            strata[item.source.name, item.concept][group] = None
    splits = {}
    for _, members in sorted(strata.items()):
        ordered = sorted(members, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
        test, val = round(test_fraction * len(ordered)), round(val_fraction * len(ordered))
        for place, group in enumerate(ordered):
            splits[group] = "test" if place < test else "val" if place < test + val else "train"
    return splits

