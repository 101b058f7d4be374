"""Krippendorff's alpha against its author's own example, and where it is undefined."""

from __future__ import annotations

import pytest

from anymal.evaluation.human.agreement import agreement

# Krippendorff (2011), Computing Krippendorff's Alpha-Reliability, part C: four observers, twelve units, values missing.
C = {"A": "1 2 3 3 2 1 4 1 2 . . .", "B": "1 2 3 3 2 2 4 1 2 5 . 3", "C": ". 3 3 3 2 3 4 2 2 5 1 .", "D": "1 2 3 3 2 4 4 1 2 5 1 ."}
EXAMPLE = [{name: int(row.split()[place]) for name, row in C.items() if row.split()[place] != "."} for place in range(12)]


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815)])
def test_the_published_example(level, alpha):
    found = agreement(EXAMPLE, level=level)
    assert found["alpha"] == pytest.approx(alpha, abs=0.0005)
    assert found["units"] == 11


def test_annotators_who_always_agree_and_who_never_do():
    assert agreement([{"a": 1, "b": 1}, {"a": 2, "b": 2}], level="nominal") == {"alpha": 1.0, "same": 1.0, "units": 2}
    found = agreement([{"a": 1, "b": 2}, {"a": 2, "b": 1}], level="nominal")
    assert found["alpha"] is not None and found["alpha"] < 0
    assert found["same"] == 0.0


def test_without_a_second_annotator_or_without_variety_there_is_no_alpha():
    assert agreement([{"a": 1}, {"a": 2}], level="nominal") == {"alpha": None, "same": None, "units": 0}
    assert agreement([{"a": 2, "b": 2}, {"a": 2, "c": 2}, {"a": 1}], level="ordinal") == {"alpha": None, "same": 1.0, "units": 2}
