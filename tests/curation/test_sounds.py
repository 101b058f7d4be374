"""Readers, labels, duplicates and splits of sounds, on small real files."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anymal.curation.images import Drop
from anymal.curation.sound_output import captions_of
from anymal.curation.sound_sources import (
    Recording,
    Table,
    captioned_sounds,
    csv_captions,
    hydrogen_drumkits,
    named_sounds,
    read_drumkit,
    tidy_captions,
    webdataset,
)
from anymal.curation.sounds import (
    Candidate,
    SoundSettings,
    Source,
    audit,
    curate_sounds,
    find_label,
    split_all,
    take_sound,
)
from anymal.errors import ConfigError, DataError
from anymal.media.audio import open_audio, write_flac
from anymal.media.likeness import sound_correlation, sound_fingerprint

RATE = 8000
SETTINGS = SoundSettings(RATE, min_seconds=0.05, max_seconds=1.0, silence=0.01, lead=0.01, same_correlation=0.97)


def burst(seed: int, seconds: float = 0.4, gain: float = 0.5) -> np.ndarray:
    """A noise that fades, another one for each seed."""
    length = round(seconds * RATE)
    noise = np.random.default_rng((seed, 1)).uniform(-1, 1, length) * np.exp(-np.arange(length) / (0.1 * RATE))
    smooth = np.convolve(noise, np.ones(1 + seed % 7) / (1 + seed % 7), "same")
    return gain * smooth / np.abs(smooth).max()


def put(path: Path, samples: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(write_flac(samples, RATE))


def kit(folder: Path, instruments: dict[str, list[str]], *, space: str = "", head: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    body = "".join(
        f"<instrument><id>0</id><name>{name}</name>{''.join(f'<layer><filename>{file}</filename></layer>' for file in files)}</instrument>"
        for name, files in instruments.items()
    )
    (folder / "drumkit.xml").write_text(f'{head}<drumkit_info{space}><name>A kit</name><instrumentList>{body}</instrumentList></drumkit_info>')


def source(root: Path, **changes: Any) -> Source:
    known: dict[str, Any] = {
        "name": "src", "root": root, "reader": "named_sounds", "licence": "CC0-1.0", "exclude": (), "max_per_label": None, "held_out": None,
        "labels": {"kick drum": [r"\bkick"], "snare drum": [r"\bsnare"], "hand clap": [r"\bclap"]},
    }
    return Source(**known | changes)


def curate(sources: list[Source], tmp_path: Path, **changes: Any) -> list[Candidate]:
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    knobs: dict[str, Any] = {"settings": SETTINGS, "val_fraction": 0.0, "test_fraction": 0.0, "seed": 0, "scratch": scratch, "workers": 2}
    return curate_sounds(sources, **knobs | changes)


def verdicts(candidates: list[Candidate]) -> dict[str, str]:
    return {c.recording.name: c.drop.reason if c.drop else c.label or "captioned" for c in candidates}


# --- readers --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["", ' xmlns="http://www.hydrogen-music.org/drumkit"'])
def test_drumkit_with_and_without_name_space(tmp_path: Path, space: str) -> None:
    put(tmp_path / "Kit" / "a.flac", burst(1))
    put(tmp_path / "Kit" / "b.flac", burst(2))
    put(tmp_path / "Kit" / "spare.flac", burst(3))
    kit(tmp_path / "Kit", {"Kick": ["a.wav"], "Snare": ["b.flac", "gone.wav"], "Rim": ["b.flac"]}, space=space)
    found = list(hydrogen_drumkits(tmp_path, "kits", ()))
    assert [(r.name, r.words) for r in found[:2]] == [("Kit/a.flac", (("Kick",), ("a",))), ("Kit/b.flac", (("Snare", "Rim"), ("b",)))]
    assert {r.group for r in found} == {"Kit"}
    assert [(r.name, r.problem.reason) for r in found[2:] if r.problem] == [("Kit/spare.flac", "unlabelled"), ("Kit/gone.wav", "missing")]


BAD_XML = {
    "entities": ('<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><drumkit_info/>', "document type"),
    "outside": ('<!DOCTYPE x SYSTEM "file:///etc/passwd"><drumkit_info/>', "document type"),
    "cut": ("<drumkit_info><instrument>", "no XML"),
    "empty": ("", "no XML"),
    "code": ('<?xml version="1.0" encoding="klingon"?><drumkit_info/>', "no XML"),
}


@pytest.mark.parametrize("what", BAD_XML)
def test_bad_drumkit_costs_its_kit(tmp_path: Path, what: str) -> None:
    text, words = BAD_XML[what]
    put(tmp_path / "Kit" / "kick.flac", burst(1))
    (tmp_path / "Kit" / "drumkit.xml").write_text(text)
    with pytest.raises(DataError, match=words):
        read_drumkit(tmp_path / "Kit" / "drumkit.xml")
    found = list(hydrogen_drumkits(tmp_path, "kits", ()))
    assert [(r.name, r.problem.reason) for r in found if r.problem] == [("Kit/drumkit.xml", "unreadable"), ("Kit/kick.flac", "unlabelled")]


def test_drumkit_too_large_or_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "Kit" / "kick.flac", burst(1))
    assert [r.problem.reason for r in hydrogen_drumkits(tmp_path, "kits", ()) if r.problem] == ["unreadable", "unlabelled"]
    kit(tmp_path / "Kit", {"Kick": ["kick.flac"]})
    monkeypatch.setattr("anymal.curation.sound_sources.MAX_XML_BYTES", 10)
    with pytest.raises(DataError, match="more than the 10 bytes"):
        read_drumkit(tmp_path / "Kit" / "drumkit.xml")


def test_markup_inside_text_is_no_document_type(tmp_path: Path) -> None:
    kit(tmp_path, {"Kick &lt;!DOCTYPE x> &amp; more": ["a.wav"]})
    assert read_drumkit(tmp_path / "drumkit.xml") == [("Kick <!DOCTYPE x> & more", "a.wav")]


def test_named_sounds_are_grouped_by_folder(tmp_path: Path) -> None:
    put(tmp_path / "bd_1.flac", burst(1))
    put(tmp_path / "deep" / "sn_1.flac", burst(2))
    (tmp_path / "notes.txt").write_text("no sound")
    assert [(r.name, r.group, r.words) for r in named_sounds(tmp_path, "src", ())] == [
        ("bd_1.flac", "src", (("bd_1",),)), ("deep/sn_1.flac", "deep", (("sn_1",),))]


def test_links_that_leave_the_folder(tmp_path: Path) -> None:
    put(tmp_path / "outside.flac", burst(1))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.flac").symlink_to(tmp_path / "outside.flac")
    (tmp_path / "in" / "b.flac").symlink_to(tmp_path / "nowhere.flac")
    assert [r.problem.reason for r in named_sounds(tmp_path / "in", "src", ()) if r.problem] == ["unreadable"] * 2


def test_captioned_sounds_and_voices(tmp_path: Path) -> None:
    for name in ("frog", "frog_desc", "frog_desc_fr", "cow", "hen"):
        put(tmp_path / "animals" / f"{name}.flac", burst(len(name)))
    (tmp_path / "animals" / "frog.txt").write_text("A  frog.\nfr.utf8=Une grenouille.\n", encoding="utf-8")
    (tmp_path / "animals" / "hen.txt").write_text("\nfr.utf8=Une poule.\n", encoding="utf-8")
    found = {r.name.rpartition("/")[2]: r for r in captioned_sounds(tmp_path, "src", ())}
    assert found["frog.flac"].captions == ("A frog.",)
    assert found["frog_desc.flac"].captions == ()
    assert found["frog_desc.flac"].words == (("frog_desc",),)
    assert {found[name].group for name in ("frog.flac", "frog_desc.flac", "frog_desc_fr.flac")} == {"animals/frog"}
    assert [name for name, r in found.items() if r.problem and r.problem.reason == "no_caption"] == ["cow.flac", "hen.flac"]


def test_csv_of_captions_per_row_and_per_column(tmp_path: Path) -> None:
    for name in ("a_10", "b_20", "extra"):
        put(tmp_path / "audio" / f"{name}.flac", burst(len(name)))
    (tmp_path / "train.csv").write_text('\ufeffid,start,caption\na,10,"A dog, barking"\na,10,A dog barks\nc,30,A cat\n', encoding="utf-8")
    (tmp_path / "test.csv").write_text("file_name,caption_1,caption_2\nb_20.flac,Rain falls,Rain  falls\nshort.flac\n", encoding="utf-8")
    put(tmp_path / "audio" / "short.flac", burst(9))
    tables = [Table("train.csv", "audio", "{id}_{start}.flac", ("caption",), "train"),
              Table("test.csv", "audio", "{file_name}", ("caption_1", "caption_2"), "test")]
    found = {r.name: r for r in csv_captions(tmp_path, "src", tables)}
    assert found["audio/a_10.flac"].captions == ("A dog, barking", "A dog barks")
    assert found["audio/a_10.flac"].split == "train"
    assert found["audio/b_20.flac"].captions == ("Rain falls",)
    assert found["audio/b_20.flac"].split == "test"
    assert {name: r.problem.reason for name, r in found.items() if r.problem} == {
        "audio/extra.flac": "no_caption", "audio/short.flac": "no_caption", "audio/c_30.flac": "missing"}


def test_csv_that_puts_a_sound_into_two_splits(tmp_path: Path) -> None:
    put(tmp_path / "a.flac", burst(1))
    (tmp_path / "one.csv").write_text("f,c\na.flac,A dog\n")
    tables = [Table("one.csv", ".", "{f}", ("c",), split) for split in ("train", "test")]
    assert [r.problem.reason for r in csv_captions(tmp_path, "src", tables) if r.problem] == ["ambiguous_split"]


@pytest.mark.parametrize(("data", "words"), [
    (b"f,other\na.flac,A dog\n", "has no column 'c'; it has 'f', 'other'"), (b"", "has no column 'f'; it has none"),
    ("f,c\na.flac,caf\u00e9\n".encode("latin-1"), "no CSV in UTF-8"), (b"f,c\na.flac," + b"x" * 200_000 + b"\n", "no CSV"), (None, "cannot be read"),
])
def test_bad_tables(tmp_path: Path, data: bytes | None, words: str) -> None:
    put(tmp_path / "a.flac", burst(1))
    if data is not None:
        (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        list(csv_captions(tmp_path, "src", [Table("t.csv", ".", "{f}", ("c",), None)]))
    assert "curate_audio.sources.src.tables: t.csv" in str(caught.value)


def tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def test_webdataset(tmp_path: Path) -> None:
    sound = write_flac(burst(1), RATE)
    tar(tmp_path / "0.tar", {
        "a.flac": sound, "a.json": json.dumps({"text": ["A dog", "A dog barks"]}).encode(), "b.flac": sound, "b.txt": b"Rain\n",
        "c.flac": sound, "d.flac": sound, "d.json": b"{broken",
    })
    tar(tmp_path / "1.tar", {"a.flac": sound, "a.txt": b"Again", "e.flac": sound, "e.json": b'{"caption": "Wind"}'})
    found = list(webdataset(tmp_path, "src", ()))
    assert [(r.group, r.captions) for r in found if r.problem is None] == [("a", ("A dog", "A dog barks")), ("b", ("Rain",)), ("e", ("Wind",))]
    assert [(r.name, r.problem.reason) for r in found if r.problem] == [
        ("0.tar/c.flac", "no_caption"), ("0.tar/d.flac", "no_caption"), ("1.tar/a.flac", "duplicate_key")]
    assert len(open_audio(found[0].open(), "a", rate=RATE)) == len(burst(1))


def test_webdataset_cut_short(tmp_path: Path) -> None:
    sound = write_flac(burst(1), RATE)
    tar(tmp_path / "0.tar", {"a.flac": sound, "a.txt": b"Wind", "b.flac": sound})
    whole = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[: whole.index(b"b.flac") + 600])
    found = list(webdataset(tmp_path, "src", ()))
    assert [r.group for r in found if r.problem is None] == ["a"]
    assert {r.problem.reason for r in found if r.problem} == {"unreadable"}


@pytest.mark.parametrize("reader", [hydrogen_drumkits, named_sounds, captioned_sounds, csv_captions, webdataset])
def test_missing_asset(tmp_path: Path, reader: Any) -> None:
    with pytest.raises(DataError, match=r"curate_audio\.sources\.src: .*run ingest"):
        list(reader(tmp_path / "none", "src", ()))


def test_captions_are_tidied() -> None:
    assert tidy_captions([" A\n dog ", "A dog", None, 3, "", "B"]) == ("A dog", "B")


# --- labels ---------------------------------------------------------------------------------------------------------------------------------


def test_labels() -> None:
    patterns = {"kick drum": [re.compile(r"\bkick")], "snare drum": [re.compile(r"\bsnare"), re.compile(r"\bsn\b")]}
    assert find_label([("Kick_Hard",)], patterns) == ("kick drum", None)
    assert find_label([("17",), ("sn_01",)], patterns) == ("snare drum", None)
    assert find_label([("Snare",), ("kick",)], patterns) == ("snare drum", None)
    assert find_label([("Whistle",), ("w",)], patterns) == (None, Drop("unlabelled", "Whistle / w"))
    assert find_label([("Snare", "Kick")], patterns)[1] == Drop("ambiguous_label", "Snare / Kick: kick drum, snare drum")


def test_captions_name_the_label(tmp_path: Path) -> None:
    candidate = Candidate(Recording("a", tmp_path, "g"), source(tmp_path), "k", label="agogo bell")
    assert captions_of(candidate, {}, ["The sound of {a_label}.", "One {label}."]) == ["The sound of an agogo bell.", "One agogo bell."]
    assert captions_of(candidate, {"agogo bell": ["{label}!"]}, ["x"]) == ["agogo bell!"]
    assert captions_of(Candidate(Recording("a", tmp_path, "g", captions=("Rain",)), source(tmp_path), "k"), {}, ["x"]) == ["Rain"]


# --- sounds ---------------------------------------------------------------------------------------------------------------------------------


def test_trim_and_cut(tmp_path: Path) -> None:
    put(tmp_path / "kick.flac", np.concatenate([np.zeros(RATE), burst(1, 3.0), np.zeros(100)]))
    candidate = Candidate(next(iter(named_sounds(tmp_path, "src", ()))), source(tmp_path), "k")
    clip = take_sound(candidate, tmp_path / "out.flac", SETTINGS)
    assert not isinstance(clip, Drop)
    assert (clip.trimmed, clip.cut, clip.duration) == (True, True, 1.0)
    samples = open_audio(clip.flac, "x", rate=RATE)
    assert 70 <= int(np.argmax(np.abs(samples) >= SETTINGS.silence)) <= 81
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.01)  # loudness is left as it is


def test_rules_each_drop_their_sound(tmp_path: Path) -> None:
    put(tmp_path / "kick_good.flac", burst(1))
    put(tmp_path / "kick_silent.flac", burst(2, gain=0.004))
    put(tmp_path / "kick_short.flac", burst(3, 0.03))
    put(tmp_path / "kick_twin.flac", np.concatenate([np.zeros(400), burst(1)]))
    put(tmp_path / "snare_quiet.flac", burst(1, gain=0.2))
    put(tmp_path / "snare_other.flac", burst(4))
    put(tmp_path / "kick_snare.flac", burst(5))
    put(tmp_path / "whistle.flac", burst(6))
    put(tmp_path / "loops" / "kick.flac", burst(7))
    (tmp_path / "kick_empty.wav").write_bytes(b"")
    (tmp_path / "kick_words.ogg").write_bytes(b"no sound " * 50)
    candidates = curate([source(tmp_path, exclude=("loops/**",))], tmp_path)
    assert verdicts(candidates) == {
        "kick_good.flac": "kick drum", "kick_silent.flac": "silent", "kick_short.flac": "too_short", "kick_twin.flac": "near_duplicate",
        "snare_quiet.flac": "near_duplicate", "snare_other.flac": "snare drum", "kick_snare.flac": "ambiguous_label", "whistle.flac": "unlabelled",
        "loops/kick.flac": "excluded_by_profile", "kick_empty.wav": "empty", "kick_words.ogg": "unreadable",
    }
    quiet = next(c for c in candidates if c.recording.name == "snare_quiet.flac")
    assert quiet.drop is not None and quiet.drop.detail == next(c.key for c in candidates if c.recording.name == "kick_good.flac")


def test_same_samples_in_another_format(tmp_path: Path) -> None:
    put(tmp_path / "kick_a.flac", burst(1))
    put(tmp_path / "b" / "kick_b.flac", burst(1))
    assert verdicts(curate([source(tmp_path)], tmp_path)) == {"b/kick_b.flac": "kick drum", "kick_a.flac": "exact_duplicate"}


def test_fingerprints_and_correlation() -> None:
    one, two = burst(1), burst(2)
    assert sound_fingerprint(one, RATE).shape == (512,)
    assert np.array_equal(sound_fingerprint(one, RATE), sound_fingerprint(one * 0.1, RATE))
    signs = [sound_fingerprint(burst(seed, 1.0), RATE).astype(float) for seed in range(12)]
    alike = np.corrcoef(signs)[np.triu_indices(12, 1)]
    assert alike.max() < 0.4
    assert sound_correlation(one, -0.3 * np.concatenate([np.zeros(50), one])) == pytest.approx(1, abs=1e-6)
    assert sound_correlation(one, two) < 0.5
    assert np.isfinite(sound_fingerprint(np.zeros(10), RATE)).all()


def test_cap_is_per_label_and_repeats(tmp_path: Path) -> None:
    for index in range(8):
        put(tmp_path / "in" / f"kick_{index}.flac", burst(index))
    put(tmp_path / "in" / "snare.flac", burst(9))
    first = verdicts(curate([source(tmp_path / "in", max_per_label=3)], tmp_path))
    assert sorted(first.values()) == ["kick drum"] * 3 + ["over_cap"] * 5 + ["snare drum"]
    assert first == verdicts(curate([source(tmp_path / "in", max_per_label=3)], tmp_path, workers=1))


# --- splits ---------------------------------------------------------------------------------------------------------------------------------


def test_held_out_groups(tmp_path: Path) -> None:
    for index, group in enumerate(("one", "two", "three")):
        put(tmp_path / group / "kick.flac", burst(index))
    candidates = curate([source(tmp_path, held_out={"val": ["two"], "test": ["three"]})], tmp_path)
    assert {c.recording.group: c.split for c in candidates} == {"one": "train", "two": "val", "three": "test"}
    assert {c.group for c in candidates} == {"src/one", "src/two", "src/three"}


def test_unknown_held_out_group(tmp_path: Path) -> None:
    put(tmp_path / "one" / "kick.flac", burst(1))
    with pytest.raises(ConfigError, match=r"sources\.src\.held_out\.test: no group 'too'; the source has one"):
        curate([source(tmp_path, held_out={"val": [], "test": ["too"]})], tmp_path)


def test_split_by_hash_keeps_groups_together(tmp_path: Path) -> None:
    groups = [f"g{index % 40}" for index in range(120)]
    candidates = [Candidate(Recording(f"{g}/{i}", tmp_path, g), source(tmp_path), f"k{i}", label="kick drum") for i, g in enumerate(groups)]
    split_all(candidates, seed=0, val_fraction=0.3, test_fraction=0.3)
    assert len({(c.group, c.split) for c in candidates}) == 40
    assert {c.split for c in candidates} == {"train", "val", "test"}


def test_audit_finds_a_group_in_two_splits(tmp_path: Path) -> None:
    for name in ("kick_a", "kick_b"):
        put(tmp_path / f"{name}.flac", burst(len(name) + ord(name[-1])))
    candidates = curate([source(tmp_path)], tmp_path)
    candidates[1].split = "test"
    with pytest.raises(DataError, match="group 'src/src' is in train and in test"):
        audit(candidates)


def test_nothing_left(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="hold no sound at all"):
        curate([source(tmp_path / "empty")], tmp_path)
    put(tmp_path / "in" / "whistle.flac", burst(1))
    with pytest.raises(DataError, match=r"all 1 sounds were dropped, 1 of them for 'unlabelled'.*src/whistle\.flac"):
        curate([source(tmp_path / "in")], tmp_path)
    put(tmp_path / "in" / "kick.flac", burst(2))
    with pytest.raises(DataError, match="no sound is left for training"):
        curate([source(tmp_path / "in", held_out={"val": [], "test": ["src"]})], tmp_path)
