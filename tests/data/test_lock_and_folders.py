"""What reads assets knows nothing of what fetches them, and each kind of source nothing of the others."""

from __future__ import annotations

import json

import pytest

from anymal.data.asset_folders import ASSET, install, read_asset
from tests.graph import ROOT, closure

SOURCES = {path.relative_to(ROOT).as_posix() for path in (ROOT / "anymal/data/sources").glob("*.py") if path.stem != "__init__"}
FETCHING = SOURCES | {f"anymal/data/{name}.py" for name in ("assets", "fetch", "archives", "convert")}


@pytest.mark.parametrize("start", ["anymal/data/lock.py", "anymal/data/asset_folders.py", "anymal/stages/pretrain_encoder.py"])
def test_a_change_of_the_downloaders_touches_no_reader_of_assets(start):
    assert len(SOURCES) == 9
    assert not closure([start]) & FETCHING


@pytest.mark.parametrize(("kind", "others"), [("pip", {"apt", "hub"}), ("apt", {"pip", "hub", "web", "s3"}), ("hub", {"pip", "apt", "web", "s3"}),
                                              ("s3", {"pip", "apt", "hub", "web"}), ("transfer", {"pip", "apt", "hub", "web", "s3", "local"})])
def test_a_source_knows_no_other_kind(kind, others):
    found = closure([f"anymal/data/sources/{kind}.py"])
    assert not found & {f"anymal/data/sources/{name}.py" for name in others}


@pytest.mark.parametrize("content", [None, "[1]", "{not json"])
def test_a_folder_without_a_record_is_no_asset(tmp_path, content):
    if content is not None:
        (tmp_path / ASSET).write_text(content)
    assert read_asset(tmp_path) is None


def test_a_copied_asset_keeps_its_record(tmp_path):
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / ASSET).write_text(json.dumps({"name": "x"}))
    install(tmp_path / "from", tmp_path / "to")
    assert read_asset(tmp_path / "to") == {"name": "x"}
