"""The pickled SPAR data set becomes plain files; a pickle that names anything else is refused, and nothing of it runs."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anymal.data.assets import AnyEntry, parse_entry, provide, read_lock
from anymal.data.convert import CONVERSIONS
from anymal.data.manifest import fingerprint
from anymal.data.pickled import PickledError, read_pickled
from anymal.errors import AssetError

convert = CONVERSIONS["spar_to_npy"]


def dataset(count: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "X": [np.asfortranarray(rng.normal(size=(20 + index, 6))) for index in range(count)], "y": np.arange(count) % 2,
        "side": (np.arange(count) % 2).astype(float), "subject": np.arange(1, count + 1), "X_labels": ["ax", "ay", "az", "wx", "wy", "wz"],
        "y_labels": ["PEN", "ROW"],
    }


def save(folder: Path, data: Any, protocol: int = 2, name: str = "watch.npy") -> Path:
    """A .npy file with a pickle in it, of the protocol that numpy used when the set was made."""
    folder.mkdir(parents=True, exist_ok=True)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": ()})
    array = np.empty((), dtype=object)
    array[()] = data
    (folder / name).write_bytes(header.getvalue() + pickle.dumps(array, protocol=protocol))
    return folder


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_each_series_becomes_a_plain_array(tmp_path: Path, protocol: int):
    data = dataset()
    folder = save(tmp_path / "a", data, protocol)
    convert("watch", folder)
    assert sorted(file.name for file in folder.iterdir()) == ["000.npy", "001.npy", "002.npy", "series.json"]
    for index, series in enumerate(data["X"]):
        read = np.load(folder / f"{index:03d}.npy", allow_pickle=False)
        assert read.dtype == np.float32 and read.flags.c_contiguous and np.array_equal(read, series.astype(np.float32))
    document = json.loads((folder / "series.json").read_text())
    assert document["rate"] == 50 and document["channels"] == data["X_labels"]
    assert document["series"][1] == {"file": "001.npy", "subject": 2, "side": "right", "exercise": "ROW"}
    again = save(tmp_path / "b", data, protocol)
    convert("watch", again)
    assert fingerprint(folder) == fingerprint(again)


class Evil:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(("function", "arguments", "name"), [
    (os.mkdir, ("evil",), r"posix\.mkdir"),
    (os.system, ("mkdir evil",), r"posix\.system"),
    (eval, ("__import__('os').mkdir('evil')",), r"__builtin__\.eval"),
    (getattr, ("", "join"), r"__builtin__\.getattr"),
    (np.load, ("x.npy",), r"numpy\S*\.load"),
    (np.fromfile, ("/etc/hostname",), r"numpy\S*\.fromfile"),
])
@pytest.mark.parametrize("place", ["outside", "in a series"])
def test_malicious_pickle_is_refused_and_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, function: Any, arguments: Any, name: str,
                                                      place: str):
    monkeypatch.chdir(tmp_path)
    data: Any = dataset()
    if place == "outside":
        data = Evil(function, *arguments)
    else:
        data["X"][1] = Evil(function, *arguments)
    stream = save(tmp_path / "a", data) / "watch.npy"
    with stream.open("rb") as opened, pytest.raises(PickledError, match=f"names {name}, which no array needs"):
        read_pickled(opened)
    assert not (tmp_path / "evil").exists()


def entry_of(folder: Path) -> AnyEntry:
    document = {"kind": "file", "path": str(folder), "sha256": fingerprint(folder), "licence": {"id": "MIT"}, "convert": "spar_to_npy"}
    return parse_entry("watch", document, "test")


def test_malicious_asset_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANYMAL_CACHE", str(tmp_path / "cache"))
    own = save(tmp_path / "own", Evil(os.mkdir, "evil"))
    with pytest.raises(AssetError, match=r"asset watch: watch.npy names posix.mkdir, which no array needs; it is refused") as caught:
        provide("watch", entry_of(own))
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
    assert not (tmp_path / "evil").exists() and not list((tmp_path / "cache" / "assets").iterdir())


def test_finished_asset_holds_no_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ANYMAL_CACHE", str(tmp_path / "cache"))
    own = save(tmp_path / "own", dataset())
    folder = provide("watch", entry_of(own))
    assert sorted(file.name for file in folder.iterdir()) == ["000.npy", "001.npy", "002.npy", "asset.json", "manifest.json", "series.json"]
    for file in folder.glob("*.npy"):
        np.load(file, allow_pickle=False)


@pytest.mark.slow
def test_the_package_that_the_lock_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ANYMAL_CACHE", str(tmp_path / "cache"))
    lock = Path(__file__).parents[2] / "assets.lock.yaml"
    folder = provide("seglearn-watch", read_lock(lock)["seglearn-watch"])
    series = json.loads((folder / "series.json").read_text())["series"]
    assert len(series) == 140 == len(list(folder.glob("*.npy")))
    assert {entry["subject"] for entry in series} == set(range(1, 11)) and {entry["side"] for entry in series} == {"left", "right"}
    assert {entry["exercise"] for entry in series} == {"PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW"}
    gravity = np.median([np.linalg.norm(np.load(folder / entry["file"])[:, :3], axis=1).mean() for entry in series])
    assert 0.9 < gravity < 1.3, "accelerations are in g"


def wrong(change: str) -> Any:
    data = dataset()
    match change:
        case "list":
            return [1, 2]
        case "no side":
            del data["side"]
        case "channels":
            data["X_labels"] = ["a"] * 6
        case "lengths":
            data["y"] = data["y"][:2]
        case "16 columns":
            data["X"][1] = np.zeros((20, 16))
        case "side 7":
            data["side"] = data["side"] + 7
        case "kind":
            data["subject"] = 5
    return data


@pytest.mark.parametrize(("change", "message"), [
    ("list", "holds a list where a dictionary should be"), ("no side", "has no field side"), ("channels", "has the channels"),
    ("lengths", "different lengths"), ("16 columns", r"number 1\) that is no array of floats with 6 columns"), ("side 7", "of side 7"),
    ("kind", "fields of another kind"),
])
def test_other_data_sets_are_refused(tmp_path: Path, change: str, message: str):
    with pytest.raises(AssetError, match=f"asset watch: watch.npy .*{message}"):
        convert("watch", save(tmp_path, wrong(change)))


def test_files_that_are_no_pickled_array_are_refused(tmp_path: Path):
    with pytest.raises(AssetError, match=r"exactly one \.npy file, `take` gave 0"):
        convert("watch", tmp_path)
    np.save(tmp_path / "plain.npy", np.zeros(3))
    with pytest.raises(AssetError, match=r"plain\.npy holds a plain array: it needs no conversion"):
        convert("watch", tmp_path)
    save(tmp_path / "b", dataset())
    whole = (tmp_path / "b" / "watch.npy").read_bytes()
    for content in (whole[:300], b"", b"noise" * 100):
        (tmp_path / "b" / "watch.npy").write_bytes(content)
        with pytest.raises(AssetError, match="is damaged"):
            convert("watch", tmp_path / "b")
        (tmp_path / "b" / ".pickled").unlink()
    save(tmp_path / "b", dataset(), name="other.npy")
    (tmp_path / "b" / "watch.npy").write_bytes(whole)
    with pytest.raises(AssetError, match="gave 2"):
        convert("watch", tmp_path / "b")


def test_arrays_that_ask_for_memory_are_refused(tmp_path: Path):
    reconstruct, _, _ = np.zeros(3).__reduce__()
    stream = save(tmp_path, Evil(reconstruct, np.ndarray, (10**12,), b"b")) / "watch.npy"
    with stream.open("rb") as opened, pytest.raises(PickledError, match="as numpy never does"):
        read_pickled(opened)
