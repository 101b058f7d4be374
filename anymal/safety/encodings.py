"""Texts hidden in codes: base64, base32, hexadecimal, binary and decimal bytes, Morse, percent signs, escapes, entities."""

from __future__ import annotations

import base64
import binascii
import html
import re
from collections.abc import Callable, Sequence
from urllib.parse import unquote

BASE64 = re.compile(r"(?<![\w+/=-])(?:[A-Za-z0-9+/_-]{40,}\n)*[A-Za-z0-9+/_-]{11,}={0,2}(?![\w+/=])")
BASE32 = re.compile(r"(?<![\w=])[A-Z2-7]{16,}={0,6}(?![\w=])")
HEX = re.compile(r"(?<!\w)(?:(?:0x|\\x)?[0-9a-fA-F]{2}[\s,:;]{0,2}){6,}(?!\w)")
BINARY = re.compile(r"(?<!\d)(?:[01]{8}[\s,]{0,2}){4,}(?!\d)")
DECIMAL = re.compile(r"(?<!\d)(?:\d{2,3}[\s,;]{1,2}){5,}\d{2,3}(?!\d)")
MORSE = re.compile(r"(?<![\w.-])(?:[.\u2022\u00b7_\u2013-]{1,6}(?:\s*[/|]\s*|\s+)){5,}[.\u2022\u00b7_\u2013-]{1,6}(?![\w.-])")
ESCAPE = re.compile(r"\\u\{?([0-9a-fA-F]{2,6})\}?|\\x([0-9a-fA-F]{2})|[uU]\+([0-9a-fA-F]{4,6})\s?")
PERCENT = re.compile(r"(?:%[0-9a-fA-F]{2}){3}|%[0-9a-fA-F]{2}\w+%[0-9a-fA-F]{2}")
SIGNALS = {
    ".-": "a", "-...": "b", "-.-.": "c", "-..": "d", ".": "e", "..-.": "f", "--.": "g", "....": "h", "..": "i", ".---": "j", "-.-": "k", ".-..": "l",
    "--": "m", "-.": "n", "---": "o", ".--.": "p", "--.-": "q", ".-.": "r", "...": "s", "-": "t", "..-": "u", "...-": "v", ".--": "w", "-..-": "x",
    "-.--": "y", "--..": "z", "-----": "0", ".----": "1", "..---": "2", "...--": "3", "....-": "4", ".....": "5", "-....": "6", "--...": "7",
    "---..": "8", "----.": "9",
}
LEAST_LETTERS = 4
READABLE = 0.9
"""Share of a decoded text's characters that must be printable for it to be taken for a text."""


def decode(text: str) -> str | None:
    """The text with every piece in a code replaced by what it says, one layer of it; None if there is no such piece."""
    read = text
    for decoder in (_entities, _percent, _escapes, *_PIECES):
        read = decoder(read)
        if read != text:
            return read
    return None


def _readable(content: bytes) -> str | None:
    """Bytes as text, if they are one."""
    for encoding in ("utf-8", "utf-16-le") if b"\0" in content else ("utf-8",):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        shown = sum(letter.isprintable() or letter in "\n\t" for letter in text)
        if sum(letter.isalnum() for letter in text) >= LEAST_LETTERS and shown >= READABLE * len(text):
            return text
    return None


def _replaced(pattern: re.Pattern[str], read: Callable[[str], str | None]) -> Callable[[str], str]:
    """A decoder of all pieces that match; a piece that says nothing stays."""
    def replace(found: re.Match[str]) -> str:
        said = read(found[0])
        return found[0] if said is None else f" {said} "

    return lambda text: pattern.sub(replace, text)


def _base64(piece: str) -> str | None:
    letters = re.sub(r"[\s=]", "", piece).translate(str.maketrans("-_", "+/"))
    try:
        return _readable(base64.b64decode(letters[: len(letters) - (len(letters) % 4 == 1)] + "=" * (-len(letters) % 4), validate=True))
    except (binascii.Error, ValueError):
        return None


def _base32(piece: str) -> str | None:
    letters = piece.rstrip("=")
    try:
        return _readable(base64.b32decode(letters + "=" * (-len(letters) % 8)))
    except (binascii.Error, ValueError):
        return None


def _hex(piece: str) -> str | None:
    return _readable(bytes.fromhex(re.sub(r"0x|\\x|[\s,:;]", "", piece)))


def _binary(piece: str) -> str | None:
    return _bytes([int(byte, 2) for byte in re.findall("[01]{8}", piece)])


def _decimal(piece: str) -> str | None:
    return _bytes([int(byte) for byte in re.findall(r"\d+", piece)])


def _bytes(values: Sequence[int]) -> str | None:
    return _readable(bytes(values)) if all(value < 256 for value in values) else None


def _morse(piece: str) -> str | None:
    signals = re.sub("[\u2022\u00b7]", ".", re.sub("[_\u2013]", "-", piece))
    words = [[SIGNALS.get(signal) for signal in word.split()] for word in re.split(r"\s*[/|]\s*|\s{3,}", signals)]
    if any(letter is None for word in words for letter in word):
        return None
    return " ".join("".join(letter or "" for letter in word) for word in words)


def _entities(text: str) -> str:
    return html.unescape(text) if "&" in text and ";" in text else text


def _percent(text: str) -> str:
    return unquote(text, errors="ignore") if PERCENT.search(text) else text


def _escapes(text: str) -> str:
    def letter(found: re.Match[str]) -> str:
        code = int(found[1] or found[2] or found[3], 16)
        return chr(code) if code < 0x110000 and not 0xD800 <= code < 0xE000 else found[0]

    return ESCAPE.sub(letter, text) if len(ESCAPE.findall(text)) > 2 else text


_PIECES = tuple(_replaced(pattern, read) for pattern, read in (
    (BINARY, _binary), (HEX, _hex), (DECIMAL, _decimal), (MORSE, _morse), (BASE32, _base32), (BASE64, _base64)))
