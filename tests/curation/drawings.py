"""Small pictures and files for the tests of curation, good and bad ones."""

from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

from PIL import Image, ImageDraw

NOUNS = ("cat", "dog", "horse", "apple", "banana", "chair", "table", "lamp", "truck", "boat", "hammer", "spoon", "violin", "flower", "mushroom",
         "castle", "bridge", "candle", "rocket", "whale", "spider", "turtle", "camera", "bottle", "pencil",
         "kettle", "ladder", "helmet", "guitar", "carrot")


def drawing(seed: int, size: tuple[int, int] = (120, 100)) -> Image.Image:
    """A cut-out drawing (RGBA): coloured shapes on nothing; another seed gives another picture."""
    rng = random.Random(seed)
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    draw.ellipse((8, 8, size[0] - 9, size[1] - 9), fill=(*_colour(rng), 255))
    for _ in range(9):
        x, y = rng.randrange(size[0] - 30), rng.randrange(size[1] - 30)
        box = (x, y, x + rng.randrange(12, 45), y + rng.randrange(12, 45))
        (draw.rectangle if rng.random() < 0.5 else draw.ellipse)(box, fill=(*_colour(rng), 255))
    return image


def _colour(rng: random.Random) -> tuple[int, int, int]:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def png(image: Image.Image) -> bytes:
    """An image as PNG."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def bomb(side: int = 25_000) -> bytes:
    """A real, whole PNG of `side`² pixels in a few hundred kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" * (1 + (side + 7) // 8)
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def write_captioned(folder: Path, nouns: tuple[str, ...] = NOUNS) -> None:
    """A folder of cut-out drawings with captions, one of each noun, each in a folder of its own."""
    for index, noun in enumerate(nouns):
        place = folder / f"kind{index % 5}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{noun}.png").write_bytes(png(drawing(index)))
        article = "An" if noun[0] in "aeiou" else "A"
        (place / f"{noun}.txt").write_text(f"{article} {noun}.\nde.utf8=Etwas.\n", encoding="utf-8")
