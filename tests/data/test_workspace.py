"""Inputs brought to the volume that all pods of a run see, and outputs taken from there."""

from pathlib import Path

import pytest

from anymal.data.manifest import fingerprint, write_manifest
from anymal.data.workspace import bring, copy
from anymal.errors import AssetError, DataError


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "workspace").mkdir()
    return tmp_path / "workspace"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "features"
    (made / "part").mkdir(parents=True)
    (made / "a").write_text("one")
    (made / "part" / "b").write_text("two")
    write_manifest(made)
    return made


def test_an_input_is_brought_once_by_its_content(workspace, folder, tmp_path):
    place = bring(folder, workspace, "job")
    assert place == workspace / "inputs" / fingerprint(folder) / "features"
    assert (place / "part" / "b").read_text() == "two"
    before = place.stat().st_ino
    assert bring(folder, workspace, "another") == place
    assert place.stat().st_ino == before, "it was not copied again"
    (tmp_path / "lock").write_text("x")
    assert bring(tmp_path / "lock", workspace, "job").read_text() == "x"
    assert list(workspace.rglob("*.partial")) == []


def test_what_lies_in_the_workspace_stays_where_it_is(workspace, folder):
    inside = workspace / "mine"
    copy(folder, inside, "job")
    assert bring(inside, workspace, "job") == inside
    assert not (workspace / "inputs").exists()


def test_half_a_copy_is_made_whole(workspace, folder):
    place = bring(folder, workspace, "job")
    (place / "a").unlink()
    bring(folder, workspace, "job")
    assert (place / "a").read_text() == "one"
    stale = place.with_name(".features.job.partial")
    stale.mkdir()
    (stale / "old").write_text("x")
    (place / "a").unlink()
    bring(folder, workspace, "job")
    assert sorted(path.name for path in place.iterdir()) == ["a", "manifest.json", "part"]


def test_an_input_that_is_not_what_its_manifest_says_is_refused(workspace, folder):
    (folder / "a").write_text("xxx")
    with pytest.raises(DataError, match=r"does not match its manifest\.json: changed a"):
        bring(folder, workspace, "job")
    assert [path for path in workspace.rglob("*") if path.is_file()] == []


def test_an_output_takes_the_place_of_an_earlier_one(workspace, folder, tmp_path):
    target = tmp_path / "out" / "checkpoint"
    copy(folder, target, "job")
    (folder / "a").write_text("three")
    write_manifest(folder)
    copy(folder, target, "job")
    assert (target / "a").read_text() == "three"
    copy(folder / "a", tmp_path / "out" / "metrics", "job")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["checkpoint", "metrics"]


def test_a_volume_that_is_too_small_is_told_before(workspace, folder, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10})())
    with pytest.raises(AssetError, match=r"features: needs .* free some space"):
        bring(folder, workspace, "job")
