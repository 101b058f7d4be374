"""Reports of all modalities: one frame, and what comes from data escaped."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import jinja2
import pytest

from anymal.curation.pages import FRAME, HERE, data_uri, page

SPLITS = ("train", "val", "test")
COUNTS = {"seen": 5, "kept": 3, "dropped": {"late": 2}}
ITEM = {"image": data_uri(b"x"), "caption": "<i>bell</i>", "captions": ["<i>bell</i>"], "note": "n", "split": "train", "objects": ["cat [1, 2]"],
        "questions": [{"question": "Is it <b>?", "answer": "yes"}]}
DROPPED = [{"reason": "late", "meaning": "it came late", "count": 2,
            "examples": [{"name": "<u>", "detail": "1 s", "image": None, "caption": "c", "note": "n"}]}]
MORE: dict[str, dict[str, Any]] = {
    "clips.html": {"layouts": {split: {"order": 2} for split in SPLITS}, "questions": {"count": 2}, "answers": {"count": {"one": 1, "two": 1}}},
    "motions.html": {"hours": 0.1, "groups": dict.fromkeys(SPLITS, 1), "labels": {split: {"rows": 1} for split in SPLITS}},
    "sounds.html": {"trimmed": 1, "cut": 1, "labels_never_trained": ["gong"], "groups": dict.fromkeys(SPLITS, 1),
                    "seconds": dict.fromkeys(SPLITS, 1.0), "labels": {split: {"rows": 1} for split in SPLITS}},
    "report.html": {"scenes": {"seen": 2, "kept": 1}, "faces": {"blurred": 1, "pictures": 1},
                    "splits": {split: {"photos": 1, "photos_with_seen_noun": 1, "groups": 1, "scenes": 1} for split in SPLITS}},
}


def render(name: str) -> str:
    figures = {**COUNTS, "leaks": 0, "sources": {"<s>": COUNTS}, "splits": dict.fromkeys(SPLITS, 1), **MORE[name]}
    return page(name, figures=figures, kept=[ITEM], dropped=DROPPED, reasons={"late": "it came late"}, splits=SPLITS, labels=["rows"], seconds=5.0,
                rate=50, blurred=[ITEM], scenes=[ITEM])


class Tags(HTMLParser):
    """Every tag is closed, and none comes from data."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", MORE)
def test_a_report_fills_the_frame(name):
    text = render(name)
    assert render(name) == text, "the same figures give the same bytes"
    tags = Tags()
    tags.feed(text)
    assert tags.open == [] and not {"i", "u", "s", "script", "link"} & set(tags.seen)
    assert text.count("<h1>") == text.count("<h2>Counts per rule</h2>") == text.count("<h2>Splits</h2>") == text.count("<h2>Dropped</h2>") == 1
    for part in ("The audit found 0 leaks", "&lt;s&gt;", "&lt;i&gt;bell&lt;/i&gt;", "<h3>late: 2</h3>", ITEM["image"]):
        assert part in text
    assert (HERE / name).read_text().startswith("{% extends frame %}\n") and "<style" not in (HERE / name).read_text()


def test_what_a_template_lacks_is_an_error():
    with pytest.raises(jinja2.UndefinedError):
        page(FRAME, figures={})
