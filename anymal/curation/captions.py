"""Captions: from what a source says of a picture (a sentence, or a file name) to one clean English description, or a reason to drop it."""

from __future__ import annotations

import functools
import html
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from anymal.curation.drops import Drop

OTHER_LANGUAGES = ("de", "es", "fr", "it", "nl", "pl", "pt")
"""Languages a word may belong to rather than to English; the ones met in the sample sources."""
VARIANTS = {"bw": "black and white", "b&w": "black and white", "tux": "penguin"}
"""Abbreviations of file names that stand for words."""
INITIALISMS = re.compile(r"\b(tv|lcd|gps|usb|cpu|dvd|cd|ip|pc|us|vhs)\b", re.IGNORECASE)
NOISE = frozenset({"alt", "md", "v", "ver", "version", "copy", "svg", "png", "jpg", "new", "img", "icon", "image", "picture", "clipart", "clip",
                   "art", "remix", "final", "symbol", "symbolic", "contour", "stylized", "body", "part", "clothing", "example", "drawn", "sketch",
                   "test", "rev", "another", "openclipart", "sup", "on", "at", "the", "a", "an", "simple", "semplice", "r"})
"""Words of file names that say nothing of the picture."""
MASS_NOUNS = frozenset([
    "bread", "milk", "honey", "cheese", "corn", "rice", "soup", "water", "juice", "lemonade", "beer", "wine", "tea", "coffee", "butter",
    "sugar", "salt", "flour", "chocolate", "pasta", "spaghetti", "lasagna", "broccoli", "lettuce", "garlic", "ginger", "celery", "spinach",
    "bacon", "ham", "meat", "beef", "pork", "fish", "food", "fruit", "ice", "fire", "snow", "rain", "lightning", "hail", "fog", "smoke",
    "grass", "bamboo", "wood", "paper", "money", "music", "hair", "confetti", "furniture", "luggage", "clothing", "jewelry", "equipment",
    "toast", "popcorn", "cereal", "yogurt", "fondue", "sushi", "lavender", "thyme", "parsley", "basil", "wheat", "barley", "cotton", "silk",
    "gold", "silver", "bubblegum", "gum", "cannabis", "ivy", "moss", "holly", "sand", "mud", "dust", "knitting", "lace", "ammunition", "makeup",
    "traffic", "mail", "ink", "glue", "paint", "candy", "tape", "thread", "rope", "pantyhose", "horseradish", "asparagus", "cabbage",
    "pumpkin-pie", "pepperoni", "salami", "sausage-meat", "ketchup", "mustard", "mayonnaise",
])
"""Nouns that take no "a": no library at hand knows them."""
GIVEN_NAMES = frozenset([
    "adam", "alan", "alejandro", "alex", "alexander", "andrea", "andreas", "andrew", "andy", "anna", "anthony", "anton", "antonio", "astrid",
    "barbara", "ben", "benjamin", "brian", "carl", "carlos", "charles", "chris", "christian", "christoph", "dan", "daniel", "dave", "david",
    "dennis", "diana", "donna", "elena", "emma", "eric", "erik", "felipe", "fernando", "francesco", "frank", "gabriel", "gabrielle", "george",
    "gerald", "giuseppe", "glenn", "gordon", "greg", "hans", "helen", "henry", "jack", "jaime", "jakob", "james", "jan", "jane", "janet",
    "jason", "jean", "jeff", "jennifer", "jim", "joan", "joe", "joel", "john", "jonathan", "jose", "joseph", "juan", "julia", "juliane", "karl",
    "kate", "kevin", "kurt", "laura", "leif", "leo", "linda", "lisa", "loic", "louis", "luis", "luther", "maria", "marco", "martin", "mary",
    "matt", "matthew", "michael", "michel", "miguel", "mike", "mikhail", "nathan", "nicolas", "nina", "oliver", "olivier", "patricia",
    "patrick", "paul", "pedro", "peter", "petr", "petri", "philip", "philippe", "pierre", "richard", "robert", "roberto", "roger", "ron",
    "rory", "ryan", "sam", "samuel", "sandra", "santiago", "sara", "sarah", "scott", "sebastian", "sergio", "simon", "stefan", "stephen",
    "steve", "susan", "terry", "thomas", "tim", "timothy", "tobias", "tom", "tomek", "tony", "victor", "vincent", "vladimir", "walter",
    "werner", "william", "wolfram", "yves",
])
"""First names that the parser takes for things too often ("andrews", "daniels" look like plurals)."""
_SECOND_PERSON = frozenset({"you", "your", "yours", "we", "us", "our", "my", "me", "i", "let", "please"})
_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "…": ".", "—": " - ", "–": " - ", "\u00a0": " "})


@dataclass(frozen=True)
class CaptionLimits:
    """Length in characters before cleaning, in words after it; share of English words, 0 to 1."""

    max_characters: int
    min_words: int
    max_words: int
    min_english: float


@dataclass(frozen=True)
class Caption:
    """A clean caption, and the thing it names: `phrase` without article ("red apple") and its `head` ("apple")."""

    text: str
    phrase: str
    head: str


def tidy(text: str) -> str:
    """Repair a raw caption's form: HTML entities and tags, broken encodings, curly quotes, brackets, addresses, blanks."""
    import ftfy

    text = html.unescape(ftfy.fix_text(text)).translate(_QUOTES)
    text = re.sub(r"<[^>]{0,200}>|https?://\S+|\S+@\S+\.\S+", " ", text)
    text = re.sub(r"\([^()]*\)|\[[^\[\]]*\]", " ", text)
    return re.sub(r"\s+", " ", text).replace(" ,", ",").replace(" .", ".").strip(" -_,;")


def first_sentence(text: str) -> str:
    """The first sentence: what follows is comment ("A camera.  Say Cheese!")."""
    return re.split(r"(?<=[.!?])\s+", text, maxsplit=1)[0]


# --- file names ---------------------------------------------------------------------------------------------------------------------------------


def name_words(stem: str) -> list[str]:
    """Words of a file name in lower case, numbers left out: `redApple_02` gives ["red", "apple"]."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", stem)
    pieces = re.split(r"[\s_\-.+,;:!()\[\]]+", re.sub(r"_39_", "'", spaced).replace("_amp_", "&"))
    words = [re.sub(r"^\d+|\d+[a-z]?$", "", piece).lower() for piece in pieces]
    return [word for word in words if word and not word.isdigit()]


@functools.lru_cache(maxsize=100_000)
def zipf(word: str, language: str) -> float:
    """How common a word is in a language: log10 of its occurrences in a billion words, 0 if unknown (wordfreq)."""
    from wordfreq import zipf_frequency

    return float(zipf_frequency(word, language))


@functools.lru_cache(maxsize=100_000)
def is_english(word: str) -> bool:
    """Whether a word is known in English and not much more at home in another language ("gatto" is not, "pizza" is)."""
    if not word.isascii() or not re.search(r"[a-z]", word):
        return False
    parts = [part for part in re.split(r"['\-&]", word.lower()) if part]
    for part in parts:
        english = zipf(part, "en")
        if english >= 3.4 and len(part) > 2 and zipf(part + "s", "en") >= 2.7:
            continue  # "hat", "hen" and "piano" are at home in English, however common they are elsewhere
        if english < 1.6 or english < max(zipf(part, language) for language in OTHER_LANGUAGES) - 1.0:
            return False
    return True


def infer_authors(names: Iterable[Sequence[str]], parser: Any, min_images: int) -> frozenset[str]:
    """Author names that trail file names: endings that recur over different pictures and are no English words, or that the parser calls a person.

    Args:
        names: words of each file name.
        parser: a spaCy pipeline with `ner`.
        min_images: how many different beginnings an ending must follow.

    Returns:
        Names as blank-separated lower-case words.
    """
    heads: dict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)
    for words in {tuple(name) for name in names}:
        for length in range(1, min(4, len(words)) + 1):
            heads[words[-length:]].add(words[:-length])
    recurring = sorted(ending for ending, before in heads.items() if len(before - {()}) >= min_images)
    single = {ending[0] for ending in recurring if len(ending) == 1 and zipf(ending[0], "en") < 3.0 and not _dictionary_noun(ending[0])}
    several = [ending for ending in recurring if len(ending) > 1]
    titles = [" ".join(ending).title() for ending in several]
    people = {
        ending
        for ending, document in zip(several, parser.pipe(f"The artist is {title}." for title in titles), strict=True)
        if any(entity.label_ == "PERSON" and len(entity.text) >= len(" ".join(ending)) - 1 for entity in document.ents)
        and not all(zipf(word, "en") >= 3.0 and _dictionary_noun(word) for word in ending)
    }
    unknown = {ending for ending in several if sum(zipf(word, "en") < 2.9 and not _dictionary_noun(word) for word in ending) >= len(ending) / 2}
    return frozenset({*single, *(" ".join(ending) for ending in people | unknown)})


@functools.lru_cache(maxsize=100_000)
def _dictionary_noun(word: str) -> bool:
    """Whether English uses a word in the plural too: names have no common plural ("kims", "gansons"), things do."""
    import inflect

    return word in MASS_NOUNS or zipf(str(inflect.engine().plural(word)), "en") >= max(1.3, zipf(word, "en") - 2.3)


def strip_author(words: Sequence[str], authors: frozenset[str], truncated: bool) -> list[str]:
    """Words of a file name without the author's name at its end; `truncated`: the name may have been cut anywhere ("architetto_fr")."""
    for start in range(1, len(words)):
        ending = " ".join(words[start:])
        if ending in authors or (truncated and any(author.startswith(ending) or ending.startswith(f"{author} ") for author in authors)):
            return list(words[:start])
    return list(words)


# --- descriptions -------------------------------------------------------------------------------------------------------------------------------


def english_share(words: Sequence[str]) -> float:
    """Share of words that English knows, 0 to 1; 0 for no words."""
    known = [is_english(word.lower().strip("'\"")) for word in words]
    return sum(known) / len(known) if known else 0.0


def check_language(text: str, min_english: float) -> Drop | None:
    """Drop a caption that is not English: by its words always, and by a language identifier too where it is long enough to trust one.

    An identifier is wrong on about every third caption of under five words ("A quetzal."), so short ones are judged by vocabulary alone.
    """
    words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text)
    share = english_share(words)
    if share < min_english:
        return Drop("not_english", f"{share:.0%} English words")
    if len(words) >= 8:
        from py3langid.langid import classify

        language, _ = classify(text)
        if language != "en" and share < 0.95:
            return Drop("not_english", f"identified as {language}")
    return None


def check_length(text: str, limits: CaptionLimits) -> Drop | None:
    """Drop captions that are too short or too long, in words."""
    words = len(text.split())
    if words < limits.min_words:
        return Drop("caption_too_short", f"{words} words")
    return Drop("caption_too_long", f"{words} words") if words > limits.max_words else None


def describe(document: Any, text: str) -> Drop | Caption:  # noqa: PLR0911 (one return per rule)
    """Make a description of a parsed sentence, or say why it is none: orders, addresses to the reader, interjections, bare quotations.

    Args:
        document: the spaCy parse of `text`.
        text: a tidy sentence.
    """
    words = [token.lower_ for token in document if not token.is_punct]
    if re.fullmatch(r'"[^"]*"[.!?]?', text.strip()) or "?" in text:
        return Drop("not_a_description", "a quotation or question")
    if _SECOND_PERSON & set(words):
        return Drop("not_a_description", "speaks to the reader")
    root = next(token for token in document if token.dep_ == "ROOT")
    nouns = [token for token in document if token.pos_ in ("NOUN", "PROPN")]
    if not nouns and words[0] in ("a", "an") and len(words) <= 4:
        nouns = [[token for token in document if not token.is_punct][-1]]  # the tagger takes "hedgehog" and "fedora" for other things
    if not nouns or len(set(words)) < len(words) / 2:
        return Drop("not_a_description", "names no thing")
    has_subject = any(child.dep_ in ("nsubj", "nsubjpass", "expl") for child in root.children)
    if root.pos_ in ("VERB", "AUX") and not has_subject and document[0].pos_ == "VERB":
        return Drop("not_a_description", "an order")
    if (root.pos_ in ("INTJ", "X") and root not in nouns) or "!!" in text or words[0] in ("no", "because", "another"):
        return Drop("not_a_description", "an interjection or remark")
    if document[0].pos_ in ("ADP", "SCONJ", "ADV", "PART", "PUNCT") or (document[0].tag_ == "VB"):
        return Drop("not_a_description", f"begins with '{document[0].text}'")
    head = next((token for token in nouns if token.dep_ in ("ROOT", "nsubj", "nsubjpass", "attr")), nouns[0])
    phrase_tokens = [token for token in document[head.left_edge.i : head.i + 1] if token.pos_ not in ("DET", "PUNCT", "SPACE")]
    phrase = " ".join(token.text.lower() for token in phrase_tokens).replace(" - ", "-").replace(" '", "'")
    clean = re.sub(r'"', "", text).rstrip(" .!?;:-") + "."
    return Caption(with_right_article(clean[0].upper() + clean[1:]), phrase, head.lemma_.lower())


def with_right_article(text: str) -> str:
    """Mend a leading "a"/"an" ("An hippopotamus." to "A hippopotamus.")."""
    import inflect

    match = re.match(r"(An?) (\w+)", text)
    if not match:
        return text
    right = str(inflect.engine().a(match[2])).split()[0].capitalize()
    return f"{right}{text[len(match[1]):]}"


def title_words(stem: str, authors: frozenset[str], truncated: bool) -> list[str]:
    """Words of a file name that speak of the picture: author, numbers and filler words left out, abbreviations written out."""
    words = [VARIANTS.get(word, word) for word in strip_author(name_words(stem), authors, truncated)]
    words = [word for word in words if word not in NOISE and len(word) > 1]
    return sorted(words, key=lambda word: word != VARIANTS["bw"])


def given_names(names: Sequence[Sequence[str]], authors: frozenset[str], parser: Any) -> frozenset[str]:
    """First names of people: words that begin an inferred author's name, or with which the parser sees a person begin inside a file name.

    They mark authors whose own name occurs only once.
    """
    things = {words[0] for words in names if words}
    seen: set[str] = set()
    for document in parser.pipe(" ".join(words).title() for words in names):
        for entity in document.ents:
            if entity.label_ == "PERSON" and len(entity) > 1:
                first = next((token.lower_ for token in entity if token.lower_ not in things and not _common_noun(token.lower_)), None)
                if first is not None:
                    seen.add(first)
    seen |= {author.split()[0] for author in authors if " " in author}
    # What begins a file name is a thing, not the person who drew it.
    return GIVEN_NAMES | frozenset(word for word in seen if len(word) > 2 and word not in things and not _common_noun(word))


def _common_noun(word: str) -> bool:
    """Whether a word is a thing of everyday English rather than a name: its plural is nearly as common as itself ("fedora", not "gerald")."""
    import inflect

    return word in MASS_NOUNS or zipf(str(inflect.engine().plural(word)), "en") >= max(1.5, zipf(word, "en") - 1.5)


def describe_names(names: Sequence[Sequence[str]], people: frozenset[str], parser: Any) -> list[Drop | Caption]:
    """Make a description of each file name's words (up to the first name of a person, if one comes), or say why it gives none."""
    cut = [list(words[: next((index for index, word in enumerate(words) if index and word in people), len(words))]) for words in names]
    results: list[Drop | Caption] = []
    for words, document in zip(cut, parser.pipe(f"a {' '.join(words)}." for words in cut), strict=True):
        if not is_english(words[0].split()[0]):
            results.append(Drop("not_english", words[0]))
            continue
        phrase = name_phrase(document)
        results.append(phrase if isinstance(phrase, Drop) else name_caption(*phrase))
    return results


def name_phrase(document: Any) -> Drop | tuple[str, str, bool]:
    """The leading noun phrase of a parsed file name.

    Args:
        document: the spaCy parse of `a WORDS.`, WORDS being the file name's words.

    Returns:
        (phrase, head, plural), or the reason why the name is no noun phrase.
    """
    tokens = [token for token in document if not token.is_punct][1:]

    def names_thing(token: Any) -> bool:
        # The tagger knows no rare nouns ("fedora", "hedgehog"): at the end of a name, a word with a plural is one.
        return token.pos_ in ("NOUN", "PROPN") or (token is tokens[-1] and _dictionary_noun(token.lower_))

    kept: list[Any] = []
    for token in tokens:
        if not is_english(token.lower_) or token.pos_ in ("INTJ", "PRON", "SYM", "AUX"):
            break
        rare = zipf(token.lower_, "en")
        if kept and names_thing(token) and rare < 3.5 and (rare < 2.2 or not _dictionary_noun(token.lower_)):
            break
        kept.append(token)
    while kept and not names_thing(kept[-1]):
        kept.pop()
    if not kept or not _dictionary_noun(kept[-1].lower_):
        return Drop("not_a_description", "the file name names no thing")
    end = next((index for index, token in enumerate(kept) if token.pos_ == "ADP" or token.lower_ == "with"), len(kept))
    head = next((token for token in reversed(kept[:end]) if names_thing(token)), None)
    if head is None or len(kept) > 5:
        return Drop("not_a_description", "the file name is no noun phrase")
    return " ".join(token.text for token in kept), head.lemma_.lower(), _is_plural(head)


def _is_plural(token: Any) -> bool:
    import inflect

    if token.lower_ in MASS_NOUNS or token.lower_.endswith(("ss", "us", "is")):
        return False
    # The tagger takes rare plurals ("pancakes") for singulars; the spelling tells, where the singular is an English word.
    singular = inflect.engine().singular_noun(token.lower_) if token.lower_.endswith("s") else False
    return token.tag_ in ("NNS", "NNPS") or token.lower_ in ("people", "pants", "jeans") or (bool(singular) and zipf(str(singular), "en") >= 1.6)


def name_caption(phrase: str, head: str, plural: bool) -> Caption:
    """A caption from a noun phrase: "cat" gives "A cat.", "grapes" gives "Some grapes.", "bread" gives "Some bread."."""
    import inflect

    shown = INITIALISMS.sub(lambda match: match[0].upper(), phrase)
    if plural:
        return Caption(f"Some {shown}.", phrase, head)
    text = f"some {shown}" if head in MASS_NOUNS else str(inflect.engine().a(shown))
    return Caption(f"{text[0].upper()}{text[1:]}.", phrase, head)
