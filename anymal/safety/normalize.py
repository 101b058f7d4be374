"""Readings of a text: what it may say once disguises are undone. A classifier is asked about each of them, and the greatest probability counts.

The first reading is the text in plain characters (`anymal.safety.letters`). Others are added only where they differ and are more like English than
what they were made of: letters put together again, digits and signs read as letters, runs of a letter shortened, codes decoded, reversed and shifted
letters turned back.
"""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Callable

from anymal.safety.encodings import decode
from anymal.safety.letters import plain, upright
from anymal.safety.words import COMMON, cost, frequency, is_word, segment, strangeness

MOST_READINGS = 8
MOST_LAYERS = 3
LONGER = 2
"""How many times as long as the text a reading may be."""
LEET = {
    "0": "o", "1": "il", "2": "z", "3": "e", "4": "a", "5": "s", "6": "gb", "7": "t", "8": "b", "9": "g", "@": "a", "$": "s", "!": "il", "|": "li",
    "+": "t", "(": "c", "€": "e", "£": "l", "¢": "c", "¥": "y", "§": "s",
}
DRAWN = (("|-|", "h"), ("|_|", "u"), ("/\\/\\", "m"), ("\\/\\/", "w"), ("|<", "k"), ("/\\", "a"), ("\\/", "v"), ("|)", "d"), ("|3", "b"))
MOST_GUESSES = 64
QUANTITY = re.compile(r"[\d.,]+(?:st|nd|rd|th|am|pm|kg|km|cm|mm|ml|gb|mb|kb|ft|in|lb|oz|[a-z])?[.,;:?!)]*", re.IGNORECASE)
LETTER, MARK = r"(?:[^\W_]|[@$!|+])", r"(?:[^\w\s]|_)"
HELD_APART = re.compile(rf"(?<![^\W_])({LETTER})( ?{MARK}{{1,2}} ?)((?:(?:{LETTER}|['\u2019-])\2)+)({LETTER})(?![^\W_])")
MARKUP = re.compile(r"(?<=\w)(?:</?[A-Za-z!][^<>]{0,40}>|\*\*|__|~~|``?)+(?=\w)|[\"']\s*\+\s*[\"']")
BULLET = re.compile(r"^[ \t]*(?:[-*\u2022\u2023\u25e6]|\d{1,3}[.)])[ \t]+", re.MULTILINE)
BROKEN = re.compile(r"(?<![A-Za-z'])([A-Za-z]{1,14})([^\w\s']{1,8}|_{1,3})([A-Za-z]{1,14})(?![A-Za-z])")
RUN_TOGETHER = re.compile(r"(?<![^\s(\"'])[A-Za-z]{7,120}(?=[.,;:?!)\"']*(?:\s|$))")
RUN = re.compile(r"([A-Za-z])\1{2,}")
CHUNK = re.compile(r"[^.!?:;\n]+")
TOGETHER = 3.0
"""Powers of ten by which a joined word must be more likely than its pieces beside each other."""
LIKELY, BETTER, PLAIN, ENGLISH = 1.0, 1.0, 3.8, 5.0
"""In units of `strangeness`: how far from the best a reading may be; by how much turning letters must pay; what surely is a language; what may be."""
ATBASH = str.maketrans(string.ascii_letters, string.ascii_lowercase[::-1] + string.ascii_uppercase[::-1])


def canonical(text: str) -> str:
    """The text in plain characters, in small letters where capitals are everywhere or nowhere in their place."""
    return _cased(plain(text))


def _cased(text: str) -> str:
    words = re.findall(r"[A-Za-z]{3,}", text)
    odd = sum(any(a.islower() and b.isupper() for a, b in itertools.pairwise(word)) for word in words)
    return text.lower() if words and (odd >= 0.4 * len(words) or sum(word.isupper() for word in words) >= 0.7 * len(words)) else text


def readings(text: str) -> tuple[str, ...]:
    """What a text may say, `MOST_READINGS` at most: its canonical form first, then further readings where they differ.

    What is much less like a language than another reading is left out, as it is the disguise: each reading holds all of the text, undone or not.
    """
    layers = [plain(text)]
    turned = upright(text)
    if turned is not None:
        layers.append(plain(turned))
    for _ in range(MOST_LAYERS):
        inner = decode(layers[-1])
        if inner is None:
            break
        layers.append(plain(inner))
    first = _cased(layers[0])
    found = {_key(first): first}
    for layer in map(_cased, layers):
        folded = fold(layer)
        for reading in (layer, folded, *unscramble(layer), *unscramble(folded)):
            if len(reading) <= LONGER * len(first) + 100:
                found.setdefault(_key(reading), reading)
    strange = {reading: strangeness(reading) for reading in found.values()}
    kept = [reading for reading, value in strange.items() if value <= min(strange.values()) + LIKELY]
    return (kept[0], *kept[1:][-(MOST_READINGS - 1):])


def _key(text: str) -> str:
    return " ".join(text.lower().split())


def fold(text: str) -> str:
    """The text without what was put between and instead of letters: spaces, signs, markup, digits, repeated letters, breaks within words."""
    text = RUN_TOGETHER.sub(lambda found: _split(found[0]), _join_spaced(MARKUP.sub("", text)))
    text = HELD_APART.sub(lambda found: _joined(found[0], found[2]), text)
    text = _unleet(text)
    text = RUN.sub(r"\1\1\1", text)
    text = re.sub(r"[A-Za-z]+", lambda found: _shortened(found[0]), text)
    text = BROKEN.sub(_mended, text)
    return _join_broken(BULLET.sub("", text) if _is_column(text) else text)


def _joined(piece: str, mark: str) -> str:
    """Letters without the mark between them; digits stay apart, as in dates and versions."""
    return piece.replace(mark, "") if any(letter.isalpha() for letter in piece) else piece


def _join_spaced(text: str) -> str:
    """Runs of three or more lone letters as words; wider gaps are spaces, and where all gaps are alike words are found by their frequencies."""
    tokens = re.split(r"(\s+)", text)
    out: list[str] = []
    place = 0
    while place < len(tokens):  # words are at even places
        end = place
        while end < len(tokens) and len(tokens[end]) == 1:
            end += 2
        if (end - place) // 2 >= 3 and any(token.isalpha() for token in tokens[place:end:2]):
            out += [_words_of_letters(tokens[place : end - 1]), *tokens[end - 1 : end]]
        else:
            end = max(end, place + 2)
            out += tokens[place:end]
        place = end
    return "".join(out)


def _words_of_letters(tokens: list[str]) -> str:
    gaps = tokens[1::2]
    narrow = min(len(gap) for gap in gaps)
    words = [tokens[0]]
    for gap, letter in zip(gaps, tokens[2::2], strict=True):
        if len(gap) > narrow:
            words.append(letter)
        else:
            words[-1] += letter
    return " ".join(re.sub(r"[A-Za-z]{4,}", lambda found: found[0] if is_word(found[0]) else segment(found[0]), word) for word in words)


def _split(letters: str) -> str:
    """Letters that are no word as the words they are made of, if they are made of nothing else."""
    if is_word(letters) or is_word(letters.removesuffix("s")):
        return letters
    words = segment(letters).split()
    return " ".join(words) if all(is_word(word) and frequency(word) >= COMMON for word in words) and len(letters) >= 2.3 * len(words) else letters


def _unleet(text: str) -> str:
    """Words written with digits and signs, where letters for them make a word."""
    tokens = re.split(r"(\s+)", text)
    suspects = [token for token in tokens[::2] if _is_mixed(token)]
    heavy = len(suspects) >= 3 or (len(suspects) == 2 and len(tokens) <= 16)
    return "".join(_read_leet(token, heavy) if place % 2 == 0 and _may_be_leet(token, heavy) else token for place, token in enumerate(tokens))


def _is_mixed(token: str) -> bool:
    if token.isalpha():
        return False
    core = token.strip(".,;:?!\"'()[]")
    return any(letter.isalpha() for letter in core) and any(letter in LEET for letter in core) and not QUANTITY.fullmatch(core)


def _may_be_leet(token: str, heavy: bool) -> bool:
    if token.isalpha() or len(token) > 40:
        return False
    return _is_mixed(token) or (heavy and any(letter in LEET for letter in token)) or any(drawn in token for drawn, _ in DRAWN)


def _read_leet(token: str, heavy: bool) -> str:
    for drawn, letter in DRAWN:
        token = token.replace(drawn, letter)
    start, stop = len(token) - len(token.lstrip(".,;:?\"'[]")), len(token.rstrip(".,;:?\"'[])"))
    core = token[start:stop]
    guesses = {core[:cut] + "": core[cut:] for cut in {len(core), len(core.rstrip("!"))}}
    best, share = core, 0.0
    for guess, rest in guesses.items():
        options = [LEET.get(letter, letter) for letter in guess.lower()]
        for letters in itertools.islice(itertools.product(*options), MOST_GUESSES):
            word = "".join(letters)
            value = max((frequency(made) for made in {word, *_runs(word)}), default=0.0) if word.isalpha() else 0.0
            if value > share and (is_word(word) or len(word) > 3 or (heavy and len(word) > 1)):
                best, share = word + rest, value
    if share == 0.0 and heavy and sum(letter in LEET for letter in core) > 1 and any(letter.isalpha() for letter in core):
        best = "".join(LEET.get(letter, letter)[0] for letter in core.lower())
    return token[:start] + best + token[stop:]


def _runs(word: str) -> set[str]:
    """The word with its runs of three or more of a letter cut to one and to two."""
    if not RUN.search(word) or len(RUN.findall(word)) > 4:
        return {RUN.sub(r"\1", word)}
    parts = RUN.split(RUN.sub(r"\1\1\1", word))
    options = [(part,) if place % 2 == 0 else (part, part * 2) for place, part in enumerate(parts)]
    return {"".join(chosen) for chosen in itertools.product(*options)}


def _shortened(word: str) -> str:
    """A word with runs of a letter as the most likely word with shorter ones; without a likely one, each run is one letter."""
    if not RUN.search(word) or is_word(word):
        return word
    made = max(sorted(_runs(word)), key=frequency)
    return made if frequency(made) else RUN.sub(r"\1", word)


def _mended(found: re.Match[str]) -> str:
    """Two pieces with signs between them as one word, where that is much more likely than the two."""
    pieces = [found[1], found[3]]
    needed = TOGETHER if set(found[2]) & set("-/") else 1.0
    return "".join(pieces) if is_word("".join(pieces)) and cost(["".join(pieces)]) + needed <= cost(pieces) else found[0]


def _is_column(text: str) -> bool:
    """Whether most lines are a word or two."""
    lines = [line for line in text.splitlines() if line.strip()]
    return len(lines) >= 4 and sum(len(BULLET.sub("", line).split()) <= 2 for line in lines) >= 0.8 * len(lines)


def _join_broken(text: str) -> str:
    """Neighbouring pieces that make up a word together, and hardly stand beside each other otherwise; a column of words becomes a line."""
    if _is_column(text):
        text = " ".join(text.split())
    tokens = re.split(r"(\s+)", text)
    place = 0
    while place + 2 < len(tokens):
        ahead = [tokens[place], tokens[place + 2]]
        core = ahead[1].rstrip(".,;:?!\"')")
        letters = ahead[0] + core
        if letters.isalpha() and 4 <= len(letters) <= 20 and is_word(letters) and cost([letters]) + TOGETHER <= cost([ahead[0], core]):
            tokens[place : place + 3] = ["".join(ahead)]
        else:
            place += 2
    return "".join(tokens)


def unscramble(text: str) -> list[str]:
    """The text with stretches that are no words turned round (as they stand, or word by word) or their letters shifted, where that makes them words;
    and as a whole turned round."""
    read = [CHUNK.sub(lambda found, turn=turn: _unscrambled(found[0], turn), text) for turn in (_turned_words, _turned)]  # type: ignore[misc]
    return [*read, _turned(text)] if strangeness(_turned(text)) <= strangeness(text) - BETTER else read


def _turned(text: str) -> str:
    return text[::-1]


def _turned_words(text: str) -> str:
    return re.sub(r"\S+", lambda word: word[0][::-1], text)


def _unscrambled(chunk: str, turn: Callable[[str], str]) -> str:
    strange = strangeness(chunk)
    if strange < PLAIN or sum(letter.isalpha() for letter in chunk) < 6:
        return chunk
    choices = [turn(chunk)]
    if strange > ENGLISH:
        choices += [chunk.translate(ATBASH), *(_shifted(chunk, by) for by in range(1, 26))]
    best = min(choices, key=strangeness)
    return best if strangeness(best) <= min(ENGLISH, strange - BETTER) else chunk


def _shifted(text: str, by: int) -> str:
    small, large = string.ascii_lowercase, string.ascii_uppercase
    return text.translate(str.maketrans(small + large, small[by:] + small[:by] + large[by:] + large[:by]))
