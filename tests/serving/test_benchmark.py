"""How the benchmark of serving judges answers: what is as offline, what a near tie explains, and what is wrong."""

from __future__ import annotations

import httpx
import pytest

from benchmarks.serving_clients import Tally
from benchmarks.serving_offline import Expected, Said
from benchmarks.serving_requests import Asked

ASKED = Asked("text 0", "text", ({"type": "text", "text": "What is it?"},))
EXPECTED = Expected(Said("It is a caf\N{LATIN SMALL LETTER E WITH ACUTE} now.", "stop"),
                    ("It", "It is", "It is a", "It is a caf\N{REPLACEMENT CHARACTER}", "It is a caf\N{LATIN SMALL LETTER E WITH ACUTE}",
                     "It is a caf\N{LATIN SMALL LETTER E WITH ACUTE} now.", "It is a caf\N{LATIN SMALL LETTER E WITH ACUTE} now."),
                    (5.0, 4.0, 0.01, 2.0, 3.0, 0.02, 6.0))


def taken(text: str | None, finish: str, reasons: str | None = None) -> Tally:
    tally = Tally(1, tie=0.1, seconds=1.0)
    body = {"usage": {"completion_tokens": 7}, "choices": [{"message": {"content": text}, "finish_reason": finish}]}
    tally.take(ASKED, EXPECTED, httpx.Response(200, json=body, headers={"x-anymal-reasons": reasons} if reasons else {}), 1.0)
    return tally


def test_what_is_as_offline_is_right():
    found = taken(EXPECTED.said.text, "stop").document()
    assert (found["right"], found["wrong"], found["near_ties"], found["answers"]) == (1, 0, 0, 1)


@pytest.mark.parametrize(("text", "gap"), [
    ("It was a fort.", 4.0), ("It is the fort.", 0.01), ("It is a cafe.", 3.0), ("It is a caf\N{LATIN SMALL LETTER E WITH ACUTE}.", 0.02),
    ("It is", 0.01), (f"{EXPECTED.said.text} And more.", 6.0),
])
def test_the_gap_is_that_of_the_first_token_that_differs(text, gap):
    tally = taken(text, "stop")
    assert [(entry["gap"], entry["near_tie"]) for entry in tally.different] == [(gap, gap < 0.1)] and not tally.right


def test_refusals_and_other_endings_are_no_ties():
    refused = taken(None, "content_filter", "answer:hate, unavailable")
    assert refused.refusals == {"answer:hate": 1, "unavailable": 1} and refused.document()["wrong"] == 1
    assert taken("It is", "content_filter", "answer:hate").document()["wrong"] == 1


def test_errors_are_counted_by_kind():
    tally = Tally(1, tie=0.1, seconds=1.0)
    for status, code in ((429, "busy"), (429, "busy"), (500, None)):
        tally.take(ASKED, EXPECTED, httpx.Response(status, json={"error": {"code": code}}), 1.0)
    assert tally.errors == {"429 busy": 2, "500": 1} and tally.answers == 0
