"""The pipeline `benchmarks`: the work of one section, shared out to tasks that run side by side."""

from __future__ import annotations

import json

import pytest

from anymal.config import read_document
from anymal.errors import ConfigError
from pipelines.arguments import read_arguments, uris_of
from pipelines.benchmarks import ORDINALS, PLAN, SHARES
from tests.graph import ROOT

PROFILES = ("params.yaml", "params.production.yaml")


def arguments(document):
    return read_arguments("benchmarks", document, "mine.yaml", {uri: f"s3://bucket/{uri}" for uri in uris_of("benchmarks")})


@pytest.mark.parametrize("profile", PROFILES)
def test_every_task_is_given_its_share_of_the_section(profile):
    document = read_document(ROOT / profile)
    given = arguments(document)
    sections = [json.loads(given[f"benchmark_{ordinal}"]) for ordinal in ORDINALS]
    assert [section.pop("part") for section in sections] == [{"index": index, "of": 4} for index in range(4)]
    whole = json.loads(json.dumps(document["benchmark"]))
    assert {name for section in sections for name in section["benchmarks"]} == set(whole["benchmarks"])
    assert all(section == sections[0] for section in sections)
    assert set(PLAN.sections) == {*SHARES, "score"}


def test_a_wrong_knob_of_the_section_is_named_before_anything_starts():
    document = read_document(ROOT / "params.yaml")
    document["benchmark"] = {**document["benchmark"], "pool": 1}
    with pytest.raises(ConfigError, match=r"benchmark\.pool = 1"):
        arguments(document)
