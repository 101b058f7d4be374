import pytest

from anymal.data.manifest import MANIFEST, sha256_of, verify_manifest, write_manifest
from anymal.errors import BundleError, DataError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "sub" / "b.txt").write_text("b")
    write_manifest(tmp_path)
    return tmp_path


def test_an_unchanged_folder_passes_and_its_hashes_come_back(folder):
    assert verify_manifest(folder) == {"a.txt": sha256_of(folder / "a.txt"), "sub/b.txt": sha256_of(folder / "sub" / "b.txt")}


def test_the_manifest_is_the_same_when_written_again(folder):
    before = (folder / MANIFEST).read_bytes()
    write_manifest(folder)
    assert (folder / MANIFEST).read_bytes() == before


def test_missing_extra_and_changed_files_are_all_named(folder):
    (folder / "a.txt").write_text("x")
    (folder / "sub" / "b.txt").unlink()
    (folder / "c.txt").write_text("c")
    with pytest.raises(BundleError) as caught:
        verify_manifest(folder, error=BundleError)
    for part in ("changed a.txt", "missing sub/b.txt", "extra c.txt"):
        assert part in str(caught.value)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_a_folder_without_a_usable_manifest_is_refused(folder, content):
    (folder / MANIFEST).unlink()
    if content is not None:
        (folder / MANIFEST).write_text(content)
    with pytest.raises(DataError, match="manifest"):
        verify_manifest(folder)
