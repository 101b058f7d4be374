from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from anymal.curation import sources
from anymal.curation.files import matches
from anymal.errors import DataError
from tests.curation.drawings import drawing, png

GOOD = png(drawing(0))


def add(tar: tarfile.TarFile, name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    tar.addfile(info, io.BytesIO(data))


def test_captioned_folder_reads_the_first_line_and_names_the_problems(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside.png"
    (root / "animals").mkdir(parents=True)
    outside.write_bytes(GOOD)
    (root / "animals" / "cat.png").write_bytes(GOOD)
    (root / "animals" / "cat.txt").write_text("A cat.\nde.utf8=Eine Katze.\n", encoding="utf-8")
    (root / "animals" / "cat.svg").write_text("<svg/>")
    (root / "bare.png").write_bytes(b"")
    (root / "link.png").symlink_to(outside)
    (root / "sound.ogg").write_bytes(b"x")
    items = {item.name: item for item in sources.captioned_folder(root, "s")}
    assert list(items) == ["animals/cat.png", "animals/cat.svg", "bare.png", "link.png"]
    assert (items["animals/cat.png"].text, items["animals/cat.png"].category) == ("A cat.", "animals")
    assert items["animals/cat.svg"].problem.reason == "duplicate_key"  # type: ignore[union-attr]
    assert (items["bare.png"].text, items["bare.png"].size) == (None, 0)
    assert items["link.png"].problem.reason == "unreadable"  # type: ignore[union-attr]


def test_a_missing_folder_is_one_clear_error(tmp_path: Path) -> None:
    for reader in sources.READERS.values():
        with pytest.raises(DataError, match=r"curate_image\.sources\.s: .*nowhere.*run ingest"):
            list(reader(tmp_path / "nowhere", "s"))


def test_webdataset_shards_are_read_in_place_and_bad_members_cost_only_themselves(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        add(tar, "001.jpg", GOOD)
        add(tar, "001.json", json.dumps({"caption": "A cat on a mat.", "url": "u"}).encode())
        add(tar, "002.jpg", GOOD)
        add(tar, "002.txt", b"A dog.")
        add(tar, "002.jpg", GOOD)
        add(tar, "../../x.jpg", GOOD)
        add(tar, "003.jpg", b"", tarfile.SYMTYPE)
        add(tar, "004.png", GOOD)
        add(tar, "004.json", b"{not json")
    with tarfile.open(tmp_path / "00001.tar", "w") as tar:
        add(tar, "001.jpg", GOOD)
        add(tar, "005.jpg", GOOD * 30)
    whole = (tmp_path / "00001.tar").read_bytes()
    (tmp_path / "00001.tar").write_bytes(whole[: len(GOOD) + 2500])
    (tmp_path / "00002.tar").write_bytes(b"no tar at all" * 100)
    items = list(sources.webdataset(tmp_path, "s"))
    verdicts = [(item.name, item.text, item.problem.reason if item.problem else None) for item in items]
    assert ("001.jpg", "A cat on a mat.", None) in verdicts
    assert ("002.jpg", "A dog.", None) in verdicts
    assert ("002.jpg", None, "duplicate_key") in verdicts
    assert ("../../x.jpg", None, "unreadable") in verdicts
    assert ("003.jpg", None, "unreadable") in verdicts
    assert ("004.png", None, None) in verdicts
    assert ("001.jpg", None, "duplicate_key") in verdicts, "keys are unique over all shards"
    assert ("005.jpg", None, "truncated_image") in verdicts
    assert ("00002.tar", None, "unreadable") in verdicts
    assert next(item for item in items if item.text == "A dog.").read() == GOOD


@pytest.mark.parametrize(("name", "pattern", "expected"), [
    ("symbols/a/b.png", "symbols/**", True), ("animals/symbols/b.png", "symbols/**", False), ("computer/a.png", "computer/*", True),
    ("computer/icons/a.png", "computer/*", False), ("x/y/yoga1.png", "**/yoga*", True), ("yoga1.png", "**/yoga*", True), ("a.png", "?.png", True),
])
def test_globs(name: str, pattern: str, expected: bool) -> None:
    assert matches(name, [pattern]) is expected
