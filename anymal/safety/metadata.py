"""Text in a picture file that no one sees: EXIF, PNG text, XMP, colour profiles, comments, and what follows the picture's end."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Iterator
from typing import Any

from PIL import ExifTags, Image

from anymal.errors import DataError
from anymal.safety.encodings import decode

LONGEST = 50_000
"""Characters of metadata that a file may have; cameras and editors leave a few hundred to a few thousand that are words."""
XP_TAGS = range(0x9C9B, 0x9CA0)
"""EXIF's fields of Windows, in UTF-16."""
DIRECTORIES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop, ExifTags.IFD.IFD1)
MARKUP_TEXT = re.compile(r">([^<>]+)<|=\s*\"([^\"<>]+)\"|=\s*'([^'<>]+)'")
WORDS = re.compile(r"(?<!\S)[^\W\d_]{2,}")
FOREIGN = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]{4,}")
"""Scripts that put no spaces between words."""
RUN = re.compile(r"[^\x00-\x08\x0e-\x1f\x7f-\x9f\ufffd]{6,}")
WIDE_RUN = re.compile(rb"(?:[\x20-\x7e]\x00){6,}")
WIDE_RUN_BIG = re.compile(rb"(?:\x00[\x20-\x7e]){6,}")
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b"\x00;"}
SOS, COM = 0xDA, 0xFE


def metadata_text(content: bytes, longest: int = LONGEST) -> str:
    """What a picture file says besides its picture, one field a line: fields of two words or more, and those that are a code for
    some; nothing in it is executed or resolved.

    Args:
        content: the file, its picture already known to be within limits.

    Raises:
        DataError: if it cannot be read, or says more than `longest` characters. The message holds nothing of it.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            found = [*_of_info(image.info), *_of_exif(image), *_of_file(content, image.format or "")]
    except (OSError, SyntaxError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise DataError(f"a picture's metadata cannot be read ({type(error).__name__}); save the picture again without them") from None
    kept: dict[str, None] = {}
    for text in found:
        tidy = " ".join(text.split())
        if len(WORDS.findall(tidy)) >= 2 or FOREIGN.search(tidy) or decode(tidy) is not None:
            kept[tidy] = None
    if sum(map(len, kept)) > longest:
        raise DataError(f"a picture's metadata hold more than {longest} characters of text; save the picture again without them")
    return "\n".join(kept)


def _of_info(info: dict[Any, Any]) -> Iterator[str]:
    """PNG's text (plain, compressed, international), comments, XMP and colour profiles, as Pillow found them."""
    for key, value in info.items():
        if key in {"exif", "transparency", "photoshop", "MPF", "mp"}:
            if key == "photoshop":
                yield from _values(value)
        elif str(key).lower() in {"xmp", "xml:com.adobe.xmp"}:
            yield from _of_markup(value if isinstance(value, str) else bytes(value).decode("utf-8", "replace"))
        else:
            yield from _values(value)


def _of_exif(image: Image.Image) -> Iterator[str]:
    exif = image.getexif()
    for fields in (exif, *(exif.get_ifd(directory) for directory in DIRECTORIES)):
        for tag, value in fields.items():
            if tag in XP_TAGS and isinstance(value, bytes):
                yield value.decode("utf-16-le", "replace").rstrip("\0")
            elif tag == ExifTags.Base.XMLPacket and isinstance(value, bytes):
                yield from _of_markup(value.decode("utf-8", "replace"))
            elif tag == ExifTags.Base.UserComment and isinstance(value, bytes):
                yield from _values(value[8:])
            else:
                yield from _values(value)


def _of_file(content: bytes, kind: str) -> Iterator[str]:
    """All comments of a JPEG (Pillow keeps one), and words after the picture's end."""
    if kind == "JPEG":
        yield from _of_segments(content)
    mark = ENDS.get(kind)
    end = content.rfind(mark) if mark else -1
    if mark and kind == "PNG":
        end = content.find(mark)
    if mark and end >= 0 and end + len(mark) < len(content):
        yield from _runs(content[end + len(mark) :])


def _of_segments(content: bytes) -> Iterator[str]:
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != SOS:
        length = int.from_bytes(content[at + 2 : at + 4], "big")
        if content[at + 1] == COM or 0xE2 <= content[at + 1] <= 0xEF:
            yield from _runs(content[at + 4 : at + 2 + length])
        at += 2 + max(length, 2)


def _values(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, bytes):
        yield from _runs(value)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _values(inner)
    elif isinstance(value, Iterable):
        yield from (inner for inner in value if isinstance(inner, str))


def _runs(content: bytes) -> Iterator[str]:
    """Strings in bytes, in UTF-8 and UTF-16."""
    for run in RUN.findall(content.decode("utf-8", "replace")):
        yield from _of_markup(run) if run.lstrip().startswith("<") else (run,)
    for found in WIDE_RUN.findall(content):
        yield found.decode("utf-16-le")
    for found in WIDE_RUN_BIG.findall(content):
        yield found.decode("utf-16-be")


def _of_markup(text: str) -> Iterator[str]:
    """Contents of elements and attributes; nothing is resolved, so that no entity can grow."""
    for groups in MARKUP_TEXT.findall(text):
        yield html.unescape("".join(groups))
