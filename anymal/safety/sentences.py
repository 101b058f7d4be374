"""Sentences out of a stream: pieces in, sentences out as soon as they are known to be complete, whatever the sizes of the pieces.

Sentences joined are the text, character by character; the space between two belongs to the second. What is unsure stays together: an answer is
checked sentence by sentence, and too long a sentence costs a moment where too short a one hides what it says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

LONGEST = 400
"""Characters after which a sentence is cut, at the end of a word if there is one."""
CODE = 200
"""Characters of a block of code that are held together, in whole lines."""
ABBREVIATIONS = (
    "mr mrs ms mx dr prof st sr jr rev hon gen col capt cmdr lt sgt maj pres gov sen rep fig figs no nos vol vols ch chs sec secs eq eqs vs cf viz "
    "approx dept est ca op p pp ed eds ex art resp incl esp min max tab ref refs jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu "
    "fri sat sun ave blvd rd mt ft e.g i.e eg ie z.b bzw vgl usw nr hr dipl ing m mme mlle sra dra ud"
)
NEVER_LAST = frozenset(ABBREVIATIONS.split())
"""Abbreviations that another word follows."""
CLOSERS = "\"'”’»›)]}」』）】》〉〕*_`"
HARD = "。｡！？．।॥؟۔።፧။។៕།։๚๛"
"""Ends of sentences in scripts that put no space after them, or have no other use for the sign."""
CANDIDATE = re.compile(rf"[{HARD}]+|[.!?…]+|\n|(?<=[\u0e00-\u0e7f])[ ]")
LIST_MARK = re.compile(r"\s*(?:[-*\u2022]\s+)?(?:\(?\d{1,3}|[A-Za-z]|[ivxIVX]{1,5})$")
INITIALS = re.compile(r"(?:^|[\s(\[\"“])(?:[^\W\d_]\.)*[^\W\d_]$")
LAST_WORD = re.compile(r"[^\W\d_][\w.]*$")
BULLET = re.compile(r"[-*+#>|\u2022\u25e6\u2023`]|\(?\d{1,3}[.)]|[A-Za-z][.)]\s")
FENCE = "```"
SHORT = 30
"""Characters of Thai after which a space ends a sentence."""


class SentenceSplitter:
    """Collects pieces of a text and gives its sentences.

    Args:
        longest: characters a sentence may have.
    """

    def __init__(self, longest: int = LONGEST) -> None:
        self._longest = longest
        self._held = ""
        self._fenced = False

    def feed(self, piece: str) -> list[str]:
        """Take a piece of any length and give the sentences that are complete now."""
        self._held += piece
        return list(self._complete(last=False))

    def finish(self) -> list[str]:
        """The sentences that are left when the text is over; the splitter can be used again."""
        rest = list(self._complete(last=True))
        self._fenced = False
        return rest

    def _complete(self, last: bool) -> Iterator[str]:
        while self._held:
            over = len(self._held) > self._longest
            view = self._held[: self._longest + 1]
            end = (_end_of_code if self._fenced else _end_of_sentence)(view, last and not over)
            if end is None and over:
                end = _end_of_word(view, self._longest)
            if end is None:
                return
            sentence, self._held = self._held[:end], self._held[end:]
            self._fenced ^= sentence.count(FENCE) % 2 == 1
            yield sentence


def sentences(text: str, longest: int = LONGEST) -> list[str]:
    """All sentences of a text; joined they are the text."""
    splitter = SentenceSplitter(longest)
    return splitter.feed(text) + splitter.finish()


def split_stream(pieces: Iterable[str], longest: int = LONGEST) -> Iterator[str]:
    """Sentences of a stream of pieces."""
    splitter = SentenceSplitter(longest)
    for piece in pieces:
        yield from splitter.feed(piece)
    yield from splitter.finish()


def _end_of_sentence(view: str, last: bool) -> int | None:
    """Where the first sentence ends; None if it is not known yet. `last`: nothing follows the view."""
    for found in CANDIDATE.finditer(view):
        if not view[: found.start()].strip():
            continue
        if view.count(FENCE, 0, found.start()) % 2:
            return view.index(FENCE) if view[: view.index(FENCE)].strip() else _end_of_code_after(view, last)
        end = found.start() if found[0].isspace() else found.end()
        while not found[0].isspace() and end < len(view) and view[end] in CLOSERS:
            end += 1
        following = len(view) - len(view[end:].lstrip())
        if following == len(view):
            return len(view) if last else None
        if _ends(view, found, end, following):
            return end
    return len(view) if last else None


def _ends(view: str, found: re.Match[str], end: int, following: int) -> bool:
    """Whether a sign ends a sentence, given what comes after it."""
    mark, ahead = found[0], view[following]
    blank = view.count("\n", end, following) > 1
    if mark[0] in HARD or blank:
        return True
    if mark == " ":
        return found.start() >= SHORT and "\u0e00" <= ahead <= "\u0e7f"
    if mark == "\n":
        return not ahead.islower() or BULLET.match(view, following) is not None
    return following > end and not ahead.islower() and (mark != "." or not _is_abbreviated(view[: found.start()]))


def _is_abbreviated(before: str) -> bool:
    """Whether a full stop after this belongs to an abbreviation, an initial or the number of a list."""
    word = LAST_WORD.search(before)
    return bool(LIST_MARK.fullmatch(before) or INITIALS.search(before) or (word and word[0].lower() in NEVER_LAST))


def _end_of_code_after(view: str, last: bool) -> int | None:
    """The end of a sentence that starts with a fence: that of the block's first part."""
    start = view.index(FENCE) + len(FENCE)
    end = _end_of_code(view[start:], last)
    return None if end is None else start + end


def _end_of_code(view: str, last: bool) -> int | None:
    """Where a part of a block of code ends: with the block, or with a line when it is long enough."""
    close = view.find(FENCE)
    if close >= 0:
        return close + len(FENCE)
    line = view.find("\n", CODE)
    if 0 <= line < len(view) - len(FENCE):
        return line + 1
    return len(view) if last else None


def _end_of_word(view: str, longest: int) -> int:
    """The last place in the second half of a view where a word ends; the longest allowed if there is none."""
    ends = [place for place in range(longest // 2, longest + 1) if view[place].isspace()]
    return ends[-1] if ends else longest
