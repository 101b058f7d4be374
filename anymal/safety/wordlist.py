"""The baseline of the text classifier: a list of words. A text is as harmful as the worst word in it."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from anymal.errors import DataError
from anymal.evaluation.formats import documents
from anymal.safety.taxonomy import CODES

OURS: dict[str, str] = {
    "violence": "kill killed killing murder murdered stab strangle torture massacre behead terrorist attack shoot beat hurt kidnap hostage",
    "weapons": "bomb bombs explosive explosives weapon weapons gun guns pistol rifle grenade ammunition poison ricin sarin anthrax napalm",
    "hate": "racist racism nazi nazis holocaust slur vermin inferior parasites subhuman",
    "harassment": "bully insult humiliate harass stalk blackmail threaten idiot moron stupid loser ugly",
    "sexual": "sex sexual porn pornographic nude naked erotic rape fetish orgasm",
    "self_harm": "suicide suicidal self-harm anorexia bulimia overdose",
    "illegal": "steal stolen smuggle drug drugs cocaine heroin meth counterfeit forge launder fraud scam shoplift illegal illegally trafficking",
    "cyber": "hack hacking hacker malware ransomware keylogger phishing ddos botnet trojan exploit password",
    "privacy": "address doxx spy surveillance tracker secretly consent ssn",
    "misinformation": "hoax fake conspiracy microchips propaganda disinformation",
    "hateful_symbols": "swastika swastikas hitler",
}
"""Words of our own per category: what comes to mind first."""
SURGE = {
    "sexual anatomy / sexual acts": "sexual", "sexual orientation / gender": "hate", "racial / ethnic slurs": "hate", "religious offense": "hate",
    "political": "harassment", "other / general insult": "harassment", "mental disability": "harassment", "physical disability": "harassment",
    "physical attributes": "harassment", "animal references": "harassment", "bodily fluids / excrement": "harassment",
}
"""Categories of the list of rude words -> ours."""
TOKEN = re.compile(r"[^\W_]+(?:[-'*@$!][^\W_]+)*", re.UNICODE)


class WordList:
    """A text's score in a category is the greatest weight of its words in it; 0 if it has none."""

    def __init__(self, words: Mapping[str, Mapping[str, float]]) -> None:
        """Take category -> word or phrase -> weight from 0 to 1."""
        self._words: dict[tuple[str, ...], list[tuple[int, float]]] = {}
        for column, code in enumerate(CODES):
            for phrase, weight in words.get(code, {}).items():
                tokens = tuple(TOKEN.findall(phrase.casefold()))
                if tokens:
                    self._words.setdefault(tokens, []).append((column, weight))
        self._longest = max((len(tokens) for tokens in self._words), default=0)

    @classmethod
    def read(cls, root: Path) -> WordList:
        """Our own words, and the lists of rude words of `words/` in a folder of the scanner's data.

        Raises:
            DataError: if a list is missing or of another layout.
        """
        words: dict[str, dict[str, float]] = {code: dict.fromkeys(found.split(), 1.0) for code, found in OURS.items()}
        path = root / "words" / "profanity_en.csv"
        rows = csv.DictReader(documents.read_text(path).splitlines())
        if not {"text", "category_1", "severity_rating"} <= set(rows.fieldnames or ()):
            raise DataError(f"{path}: lacks the columns text, category_1 and severity_rating; give the version that assets.lock.yaml names")
        for row in rows:
            code = SURGE.get(row["category_1"].strip())
            if code is not None:
                words[code].setdefault(row["text"], min(1.0, float(row["severity_rating"]) / 3))
        for line in documents.read_text(root / "words" / "ldnoobw-en.txt").splitlines():
            words["sexual"].setdefault(line.strip(), 0.7)
        return cls(words)

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Scores, (texts, categories), from 0 to 1; no probabilities in earnest."""
        found = np.zeros((len(texts), len(CODES)))
        for row, text in enumerate(texts):
            for column, weight in self._hits(TOKEN.findall(text.casefold())):
                found[row, column] = max(found[row, column], weight)
        return found

    def _hits(self, tokens: Sequence[str]) -> Iterable[tuple[int, float]]:
        for start in range(len(tokens)):
            for length in range(1, self._longest + 1):
                yield from self._words.get(tuple(tokens[start : start + length]), ())
