"""Windows of series: where they begin, what they hold, which are dropped, how they are split; and what curation leaves."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anymal.curation import motions
from anymal.curation.images import Drop
from anymal.curation.motions import Curated, Found, Kept, Source, WatchSeries, audit, curate_motions, make_key, to_npy
from anymal.data.shards import KEY, read_shard, shard_paths
from anymal.errors import ConfigError, DataError
from anymal.media.motion import open_motion

LABELS = {"PEN": "pendulum", "ROW": "bent over row"}
CAPTIONS = ("A person does the {label}.", "The {side} arm does the {label}.")
QUESTIONS = {"label": "What exercise is it?", "side": "Which arm?"}


def series(seconds: float, seed: int, rate: int = 50) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(round(seconds * rate), 6)).astype(np.float32)


def write_watch(root: Path, *entries: tuple[int, str, str, np.ndarray]) -> Path:
    """The folder that `spar_to_npy` makes: subject, side, exercise, series."""
    root.mkdir(parents=True, exist_ok=True)
    described = []
    for index, (subject, side, exercise, values) in enumerate(entries):
        np.save(root / f"{index:03d}.npy", values)
        described.append({"file": f"{index:03d}.npy", "subject": subject, "side": side, "exercise": exercise})
    (root / "series.json").write_text(json.dumps({"rate": 50, "channels": [], "series": described}))
    return root


def reader(root: Path) -> WatchSeries:
    return WatchSeries(root, labels=LABELS, captions=CAPTIONS, questions=QUESTIONS)


def curate(scratch: Path, *sources: Source, **changes: Any) -> Curated:
    scratch.mkdir(exist_ok=True)
    settings: dict[str, Any] = {"seconds": 5.0, "rate": 50, "stride": 1.0, "test_stride": 5.0, "val_fraction": 0.0, "test_fraction": 0.0, "seed": 0,
                                "examples": 2}
    return curate_motions(sources, scratch=scratch, **settings | changes)


def source(root: Path, **held_out: tuple[str, ...]) -> Source:
    return Source("watch", "CC0-1.0", reader(root), {"val": (), "test": (), **held_out})


def test_windows_of_a_series_step_by_the_stride_of_their_split(tmp_path: Path):
    values = series(11.9, 0)
    root = write_watch(tmp_path / "a", (1, "left", "PEN", values), (2, "right", "ROW", values))
    found = list(reader(root).windows(seconds=5.0, rate=50, step_of={"1": 1.0, "2": 5.0}.__getitem__))
    starts = {group: [one.details["start"] for one in found if one.group == group] for group in ("1", "2")}
    assert starts == {"1": [0, 1, 2, 3, 4, 5, 6], "2": [0, 5]}
    third = found[3]
    assert isinstance(third.motion, np.ndarray) and np.allclose(third.motion, values[150:400].T, atol=1e-6)
    assert third.captions == ("A person does the pendulum.", "The left arm does the pendulum.") and third.label == "pendulum"
    assert third.questions == ({"question": "What exercise is it?", "answer": "pendulum", "kind": "label"},
                               {"question": "Which arm?", "answer": "left", "kind": "side"})
    assert third.name == "s01-left-PEN-3.00s" and len({one.name for one in found}) == 9


def test_each_bad_window_is_dropped_for_its_reason(tmp_path: Path):
    holes, flat = series(10, 3), series(10, 4)
    holes[300:340, 2], flat[:] = np.nan, 1.0
    root = write_watch(tmp_path / "a", (1, "left", "PEN", series(10, 0)), (1, "left", "ROW", series(4, 1)), (1, "right", "SWIM", series(10, 2)),
                       (1, "right", "PEN", holes), (1, "right", "ROW", flat), (2, "left", "PEN", series(10, 0)))
    curated = curate(tmp_path / "scratch", source(root), stride=5.0)
    figures = motions.statistics(curated)
    assert figures["dropped"] == {"no_caption": 1, "too_short": 1, "not_finite": 1, "constant": 2, "exact_duplicate": 2}
    assert figures["seen"] == 10 and figures["kept"] == 3 == sum(figures["splits"].values()) and figures["sources"]["watch"]["seen"] == 10
    examples = curated.dropped["watch"]
    assert examples["no_caption"].examples == ["s01-right-SWIM: exercise SWIM"] and len(examples["exact_duplicate"].examples) == 2
    assert "too short for 5 s" in examples["too_short"].examples[0]
    assert list(figures["dropped"]) == [reason for reason in motions.REASONS if reason in figures["dropped"]]


def test_subjects_held_out_by_name_and_the_others_by_hash(tmp_path: Path):
    root = write_watch(tmp_path / "a", *((subject, "left", "PEN", series(6, subject)) for subject in range(1, 31)))
    curated = curate(tmp_path / "b", source(root, val=("7",), test=("8", "9")), val_fraction=0.2, test_fraction=0.2)
    splits = {kept.group: kept.split for kept in curated.kept}
    assert splits["watch-7"] == "val" and splits["watch-8"] == splits["watch-9"] == "test"
    drawn = [split for group, split in splits.items() if group not in {"watch-7", "watch-8", "watch-9"}]
    assert {"train", "val", "test"} == set(drawn) and drawn.count("train") > 10
    assert motions.statistics(curated)["groups"] == {split: list(splits.values()).count(split) for split in ("train", "val", "test")}
    again = curate(tmp_path / "c", source(root, val=("7",), test=("8", "9")), val_fraction=0.2, test_fraction=0.2)
    assert again.kept == curated.kept and again.spool.read_bytes() == curated.spool.read_bytes()


def test_held_out_subject_that_does_not_exist_is_named(tmp_path: Path):
    root = write_watch(tmp_path / "a", (1, "left", "PEN", series(6, 0)), (10, "left", "PEN", series(6, 1)), (2, "left", "PEN", series(6, 2)))
    with pytest.raises(ConfigError, match=r"curate_imu\.sources\.watch\.held_out\.test = 11: the source has no such group; it has 1, 2, 10$"):
        curate(tmp_path / "b", source(root, test=("11",)))


def test_nothing_left_is_an_error_that_says_why(tmp_path: Path):
    root = write_watch(tmp_path / "a", (1, "left", "PEN", series(3, 0)), (1, "left", "SWIM", series(9, 0)), (2, "left", "PEN", series(3, 0)))
    with pytest.raises(DataError, match="all 3 windows were dropped, 2 of them for 'too_short'"):
        curate(tmp_path / "b", source(root))
    with pytest.raises(DataError, match="hold no recording at all"):
        curate(tmp_path / "b", source(write_watch(tmp_path / "none")))
    root = write_watch(tmp_path / "c", (1, "left", "PEN", series(6, 0)))
    with pytest.raises(DataError, match="no window is left to train on"):
        curate(tmp_path / "b", source(root, test=("1",)))


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda root: (root / "series.json").unlink(), r"series\.json: not found; add the asset to ingest\.assets"),
    (lambda root: (root / "series.json").write_text("{}"), "not what spar_to_npy writes"),
    (lambda root: (root / "series.json").write_text('{"rate": 50, "series": [{"file": 1}]}'), "not what spar_to_npy writes"),
    (lambda root: (root / "000.npy").unlink(), r"000\.npy: cannot be read as a plain array"),
    (lambda root: (root / "000.npy").write_bytes(b""), "cannot be read as a plain array"),
    (lambda root: np.save(root / "000.npy", np.zeros((9, 7))), r"shape \(9, 7\), not \(samples, 6\)"),
    (lambda root: np.save(root / "000.npy", np.array([{}]), allow_pickle=True), "cannot be read as a plain array"),
])
def test_folder_that_was_changed_is_refused(tmp_path: Path, spoil: Callable[[Path], Any], message: str):
    root = write_watch(tmp_path / "a", (1, "left", "PEN", series(6, 0)))
    spoil(root)
    with pytest.raises(DataError, match=message):
        curate(tmp_path / "b", source(root))


def kept(key: str, group: str, split: str, sha256: str) -> Kept:
    return Kept(key, "watch", key, group, split, sha256, 0, ("A.",), None, (), {})


@pytest.mark.parametrize(("other", "leak"), [
    (kept("b", "g", "test", "2"), "group g is in test and train"), (kept("a", "h", "val", "2"), "key a is in train and val"),
    (kept("b", "h", "test", "1"), "window 1 is in test and train"),
])
def test_audit_finds_what_two_splits_share(other: Kept, leak: str):
    first = kept("a", "g", "train", "1")
    assert audit([first, kept("b", "g", "train", "2"), kept("c", "h", "test", "3")]) == 3
    with pytest.raises(DataError, match=leak):
        audit([first, other])


class Many:
    """A reader without labels, as narrations are."""

    def windows(self, *, seconds: float, rate: int, step_of: Callable[[str], float]) -> Iterator[Found]:
        for index in range(40):
            yield Found(f"video {index // 4}/<b>{index}", str(index // 4), series(seconds, index, rate).T, captions=("The camera wearer <waves>.",))
        yield Found("bad", "0", Drop("unsure", "#C C <holds> #unsure"))


def test_shards_card_and_report(tmp_path: Path):
    curated = curate(tmp_path / "scratch", Source("ego", "LicenseRef-X", Many(), {"val": ("1",), "test": ("2",)}))
    figures = motions.statistics(curated)
    folder = tmp_path / "shards"
    motions.write_shards(curated, folder, samples_per_shard=10)
    motions.write_card(folder, curated, figures)
    motions.write_report(tmp_path / "report.html", curated, figures, 3)
    samples = [sample for path in shard_paths(folder) for sample in read_shard(path)]
    assert len(samples) == 40 and [len(shard_paths(folder, split)) for split in ("train", "val", "test")] == [4, 1, 1]
    order = [sample.key for sample in samples if sample.meta["split"] == "train"]
    assert order != sorted(order), "windows of one video must not stand together"
    values = {to_npy(one.motion, 50) for one in Many().windows(seconds=5.0, rate=50, step_of=lambda _: 1.0) if isinstance(one.motion, np.ndarray)}
    for sample in samples:
        assert sample.extension == "npy" and sample.data in values and KEY.fullmatch(sample.key)
        assert "label" not in sample.meta and sample.meta["license"] == "LicenseRef-X" and sample.meta["duration"] == 5.0
        assert open_motion(io.BytesIO(sample.data), sample.key, seconds=5.0, rate=200).shape == (6, 1000)
    text = (tmp_path / "report.html").read_text()
    assert text.count("data:image/png;base64,") == 3 and "<script" not in text and "http" not in text
    assert "&lt;waves&gt;" in text and "<waves>" not in text and "#C C &lt;holds&gt; #unsure" in text and len(text) < 300_000
    card = (folder / "README.md").read_text()
    assert "40 samples of 41 seen" in card and "| ego | LicenseRef-X | 41 | 40 |" in card and "unsure" in card
    assert figures["labels"] == {"train": {}, "val": {}, "test": {}} and figures["leaks"] == 0


def test_stored_window_is_small_plain_and_starts_at_zero():
    values = series(5, 0).T
    table = np.load(io.BytesIO(to_npy(values, 50)), allow_pickle=False)
    assert table.dtype == np.float32 and table.shape == (250, 7) and table.flags.c_contiguous
    assert table[0, 0] == 0 and np.allclose(np.diff(table[:, 0]), 0.02, atol=1e-6) and np.array_equal(table[:, 1:].T, values)


def test_keys_are_readable_and_differ():
    names = ["s01-left-PEN-0.00s", "s01-left-PEN-0,00s", "x" * 300, "x" * 301, "é/../b"]
    keys = [make_key("watch", name) for name in names]
    assert len(set(keys)) == 5 and all(KEY.fullmatch(key) and len(key) < 100 for key in keys)
    assert keys[0].startswith("watch-s01-left-pen-0-00s-")
