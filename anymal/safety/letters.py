"""Characters as the plain letters that a reader sees in them: styles, lookalikes, marks, and characters that show nothing."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

EXTRA = {
    "а": "a", "в": "b", "г": "r", "е": "e", "з": "e", "и": "n", "к": "k", "м": "m", "н": "h", "о": "o", "п": "n", "р": "p", "с": "c", "т": "t",
    "у": "y", "х": "x", "ь": "b", "я": "r", "ё": "e", "і": "i", "ӏ": "l", "α": "a", "β": "b", "γ": "y", "ε": "e", "η": "n", "ι": "i", "κ": "k",
    "μ": "u", "ν": "v", "ο": "o", "π": "n", "ρ": "p", "ς": "s", "σ": "o", "τ": "t", "υ": "u", "χ": "x", "ω": "w", "ѵ": "v", "ո": "n", "ս": "u",
    "ց": "g", "Σ": "E", "Λ": "A", "И": "N", "Я": "R", "З": "E", "ᴦ": "r", "ғ": "f",
}
"""What passes for a Latin letter in practice, though Unicode's table of lookalikes leaves it out."""
NAMED = re.compile(
    r"LATIN (?:(SMALL|CAPITAL) LETTER|LETTER SMALL CAPITAL) "
    r"(?:(?:TURNED|REVERSED|SIDEWAYS|OPEN|DOTLESS|SCRIPT|LONG|INSULAR) )*([A-Z])(?: WITH .*)?"
)
LATIN_BLOCKS = (
    range(0xC0, 0x2B0), range(0x1D00, 0x1DC0), range(0x1E00, 0x1F00), range(0x2C60, 0x2C80), range(0xA720, 0xA800), range(0xAB30, 0xAB70),
)
ALPHABETS = (0x1F1E6, 0x1F130, 0x1F150, 0x1F170, 0x249C)
"""Where 26 code points stand for A to Z without a decomposition, or with one in brackets: flags, squared, negative circled and squared, bracketed."""
LUNATE = {0x3F2: "c", 0x3F9: "C"}
"""Looks like c, and is folded to another letter."""
NO_TEXT = frozenset({"Cf", "Cc", "Cs", "Co", "Cn"})
"""Categories of Unicode that show nothing."""
UPSIDE = dict(zip("ɐqɔpǝɟƃɥᴉɾʞʅɯuodbɹsʇnʌʍxʎz¿¡˙ʻ", "abcdefghijklmnopqrstuvwxyz?!.,", strict=True))
TURNED = frozenset("ɐɔǝɟƃɥᴉɾʞʅɯɹʇʌʍʎ")
SHOWS_NOTHING = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
BLANKS = str.maketrans(dict.fromkeys("\u2800\u1680", " ") | {"\u2028": "\n", "\u2029": "\n", "\r": "\n", "\x0b": "\n", "\x0c": "\n", "\x85": "\n"})
HIDDEN = re.compile("[\U000e0020-\U000e007e]+")
OVERRIDDEN = re.compile("\u202e([^\u202c\n]*)\u202c?")
WORD = re.compile(r"[^\W\d_]+")
SEVERAL_MARKS = 2
"""Combining marks that a letter outside Latin, Greek and Cyrillic may keep."""


def plain(text: str) -> str:
    """The text in plain characters: compatible forms folded (NFKC), nothing invisible, text between overrides as it is shown, text in invisible
    tags made visible, Latin letters without marks, and letters of other alphabets as Latin ones where they pass for them."""
    text = text.replace("\r\n", "\n").translate(BLANKS)
    if text.isascii():
        return "".join(letter for letter in text if letter in "\n\t" or letter.isprintable())
    text = HIDDEN.sub(lambda found: f"\n\n{_shown(found[0])}\n\n", text)
    text = OVERRIDDEN.sub(lambda found: found[1][::-1], text)
    text = unicodedata.normalize("NFKC", text.translate(_alphabets()))
    text = "".join(letter for letter in SHOWS_NOTHING.sub("", text) if letter in "\n\t" or unicodedata.category(letter) not in NO_TEXT)
    return unicodedata.normalize("NFC", _as_latin(_without_marks(text)))


def _shown(tags: str) -> str:
    """Invisible tags as the characters they stand for."""
    return "".join(chr(ord(letter) - 0xE0000) for letter in tags)


def upright(text: str) -> str | None:
    """A text of turned letters as it is read when the page is turned; None for a text that has none."""
    if sum(letter in TURNED for letter in text) * 5 < sum(letter.isalpha() for letter in text) or not any(letter in TURNED for letter in text):
        return None
    return "".join(UPSIDE.get(letter, letter) for letter in reversed(text))


@lru_cache(maxsize=1)
def _alphabets() -> dict[int, str]:
    table = {start + place: chr(ord("a") + place) for start in ALPHABETS for place in range(26)}
    return table | LUNATE | {0x24EA: "0", 0x1F10B: "0", 0x1F10C: "0"} | {0x2776 + place: str(place + 1) for place in range(9)}


@lru_cache(maxsize=1)
def _lookalikes() -> dict[str, str]:
    """Letters outside ASCII -> the ASCII letter each passes for: own table, then names of Latin letters, then Unicode's table (TR39)."""
    from confusable_homoglyphs.confusables import confusables_data

    table: dict[str, str] = {}
    for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ":
        for entry in confusables_data.get(letter, []):
            other = entry["c"].strip("\u200e")
            if len(other) == 1 and not other.isascii() and other.isalpha():
                table.setdefault(other, "I" if letter == "l" and other.isupper() else letter)
    for block in LATIN_BLOCKS:
        for code in block:
            named = NAMED.fullmatch(unicodedata.name(chr(code), ""))
            if named:
                table[chr(code)] = named[2] if named[1] == "CAPITAL" else named[2].lower()
    for other, letter in EXTRA.items():
        table[other] = letter
        if len(other.upper()) == 1 and other.upper() not in table:
            table[other.upper()] = letter.upper()
    return {other: letter for other, letter in table.items() if len(other) == 1}


def _without_marks(text: str) -> str:
    """Letters of Latin, Greek and Cyrillic without combining marks; others with two at most; digits of all scripts as 0 to 9."""
    kept: list[str] = []
    foreign, marks = False, 0
    for letter in unicodedata.normalize("NFD", text):
        if unicodedata.category(letter) in {"Mn", "Me"}:
            marks += 1
            if not foreign or marks > SEVERAL_MARKS:
                continue
        else:
            foreign, marks = letter.isalpha() and not _is_european(letter), 0
            if letter.isdigit() and not letter.isascii():
                letter = str(unicodedata.digit(letter))  # noqa: PLW2901
        kept.append(letter)
    return "".join(kept)


def _is_european(letter: str) -> bool:
    return letter.isascii() or unicodedata.name(letter, "").startswith(("LATIN", "GREEK", "CYRILLIC"))


def _as_latin(text: str) -> str:
    """Lookalikes as Latin letters: in words that have a Latin letter too, and everywhere if nearly all foreign letters of the text are lookalikes."""
    table = _lookalikes()
    foreign = [letter for letter in text if not letter.isascii() and letter.isalpha()]
    if not foreign:
        return text
    everywhere = sum(letter in table for letter in foreign) >= 0.95 * len(foreign)

    def read(found: re.Match[str]) -> str:
        word = found[0]
        mixed = any(letter.isascii() or unicodedata.name(letter, "").startswith("LATIN") for letter in word)
        return "".join(table.get(letter, letter) for letter in word) if everywhere or mixed else word

    return WORD.sub(read, text)
