"""A running Label Studio for the tests of this folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.human.label_studio import LabelStudio, environment


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStudio]:
    """The server, which serves files below its folder `served`. Its environment takes minutes to make the first time."""
    prepared, folder = environment(), tmp_path_factory.mktemp("label-studio")
    shutil.copytree(prepared / "data", folder / "data")
    (folder / "served").mkdir()
    server = LabelStudio(folder / "data", venv=prepared / "venv", served=folder / "served")
    server.start()
    yield server
    server.stop()
