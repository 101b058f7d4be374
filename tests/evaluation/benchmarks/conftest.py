"""Every benchmark's official layout, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.benchmarks.small import make_sample_layouts


@pytest.fixture(scope="session")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the official layout of every benchmark."""
    return make_sample_layouts(tmp_path_factory.mktemp("benchmarks"))
