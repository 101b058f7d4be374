"""Win rates, points and intervals against hand-made figures; coverage of the intervals; the written results; the command line."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from anymal.commands.human import command
from anymal.errors import AnymalError, ConfigError, DataError
from anymal.evaluation.human.judgements import Judgement, LeftOut
from anymal.evaluation.human.output import draw_preferences, markdown, write_scores
from anymal.evaluation.human.scoring import score_study
from anymal.evaluation.human.study import Key
from tests.human.material import COLOURS, judged, make_shards, predictions, tasks, write

FULL = {"recognition": 2, "response": 2, "integrity": 2}
NONE = {"recognition": 0, "response": 0, "integrity": 2}


def key(lefts: Sequence[str], branches: Sequence[str] = ()) -> Key:
    return Key("s", ("tuned", "aligned"), {f"{place:05d}": {
        "left": left, "branch": branches[place] if branches else "image.vqa", "id": str(place), "kind": "", "project": "image", "shown": ""}
        for place, left in enumerate(lefts)})  # fmt: skip


def says(sample: int, preferred: str, annotator: str = "1", left: dict[str, int] = FULL, right: dict[str, int] = FULL) -> Judgement:
    return Judgement(f"{sample:05d}", annotator, preferred, {"left": left, "right": right})


def scored(a_key: Key, judgements: Sequence[Judgement], left_out: Sequence[LeftOut] = ()) -> dict[str, Any]:
    return score_study(a_key, judgements, left_out, resamples=300, seed=0)


def values(figures: dict[str, Any]) -> dict[str, float]:
    return {name: pytest.approx(figure["value"]) for name, figure in figures.items()}


def test_sides_are_turned_into_systems():
    """Tuned is on the left, the right, the left, the right; it wins, loses, ties and wins."""
    a_key = key(["tuned", "aligned", "tuned", "aligned"])
    judgements = [says(0, "left", right=NONE), says(1, "left", right=NONE), says(2, "tie", left=NONE, right=NONE), says(3, "right", left=NONE)]
    found = scored(a_key, judgements)
    assert values(found["preference"]) == {"win": 0.5, "tie": 0.25, "lose": 0.25, "margin": 0.25}
    assert values(found["side"]) == {"left": 0.5, "right": 0.25}
    assert values(found["criteria"]["tuned"]) == {"recognition": 0.5, "response": 0.5, "integrity": 1.0}
    assert values(found["criteria"]["aligned"]) == {"recognition": 0.25, "response": 0.25, "integrity": 1.0}
    assert values(found["criteria"]["difference"]) == {"recognition": 0.25, "response": 0.25, "integrity": 0.0}
    assert (found["samples"], found["judged"], found["judgements"], found["annotators"]) == (4, 4, 4, 1)
    assert all(figure["n"] == 4 and figure["low"] <= figure["value"] <= figure["high"] for figure in found["preference"].values())


def test_recognition_in_part_is_half_the_points():
    part = {"recognition": 1, "response": 0, "integrity": 0}
    found = scored(key(["tuned"] * 2), [says(0, "tie", left=part), says(1, "tie", left=part)])
    assert values(found["criteria"]["tuned"]) == {"recognition": 0.5, "response": 0.0, "integrity": 0.0}


def test_a_sample_counts_once_however_many_judged_it():
    crowd = [says(0, "left", annotator=str(number)) for number in range(9)]
    found = scored(key(["tuned", "tuned"]), [*crowd, says(0, "right", annotator="9"), says(1, "right")])
    assert found["preference"]["win"]["value"] == pytest.approx(0.9 / 2)
    assert found["preference"]["lose"]["value"] == pytest.approx(1.1 / 2)
    assert (found["annotators"], found["judgements"], found["agreement"]["preference"]["units"]) == (10, 11, 1)


def test_branches_are_told_apart():
    found = scored(key(["tuned"] * 3, ["audio.qa", "image.vqa", "image.vqa"]), [says(0, "left"), says(1, "left"), says(2, "right")])
    assert found["by_branch"]["audio.qa"] == {"judged": 1}
    assert values({name: found["by_branch"]["image.vqa"][name] for name in ("win", "tie", "lose")}) == {"win": 0.5, "tie": 0.0, "lose": 0.5}


def test_a_study_that_nearly_nobody_judged_says_why():
    with pytest.raises(DataError, match=r"1 of its 2 samples have a judgement that counts \(skipped: 1\); at least 2 are needed"):
        scored(key(["tuned"] * 2), [says(0, "left")], [LeftOut("00001", "4", "skipped")])


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.7, 0.5])
def test_intervals_cover_a_planted_preference_about_as_often_as_they_say(share: float):
    """300 studies of 100 samples: 95% intervals should hold the true rate in about 285."""
    rng = np.random.default_rng(5)
    covered = 0
    for seed in range(300):
        lefts = ["tuned" if left else "aligned" for left in rng.permutation(100) < 50]
        wins = rng.random(100) < share
        preferred = ["left" if win == (left == "tuned") else "right" for win, left in zip(wins, lefts, strict=True)]
        judgements = [says(place, side) for place, side in enumerate(preferred)]
        figure = score_study(key(lefts), judgements, [], resamples=300, seed=seed)["preference"]["win"]
        covered += figure["low"] <= share <= figure["high"]
    assert 270 <= covered <= 298, covered


def example() -> dict[str, Any]:
    judgements = [says(place, ("left", "tie", "right")[place % 3], annotator=str(who)) for place in range(6) for who in range(2)]
    left_out = [LeftOut(f"{place:05d}", "1", "contradictory", "a | b") for place in range(60)]
    return {"tuned_vs_aligned": scored(key(["tuned", "aligned"] * 3), judgements, left_out)}


def test_results_are_the_same_bytes_and_replace_only_their_own(tmp_path: Path):
    for name in ("one", "two", "one"):
        write_scores(example(), tmp_path / name)
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["human.json", "human.md", "human.png"]
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    (tmp_path / "one" / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"--out .*one: holds other files"):
        write_scores(example(), tmp_path / "one")
    assert (tmp_path / "one" / "mine.txt").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_page_has_figures_agreement_and_what_was_left_out():
    page = markdown(example())
    assert re.search(r"\| tuned against aligned \| 33\.3 \[[\d.]+, [\d.]+\] +\| 33\.3 .* 6 of 6 +\| 2 +\| 1\.00 \(100% the same\)", page)
    assert "60 left out, 12 judgements counted" in page
    assert "- 60 contradictory: the preference contradicts" in page
    assert page.count("| contradictory |") == 50 and "10 more are in human.json" in page
    assert "a \\| b" in page
    assert len({len(line) for line in page.split("\n\n")[2].splitlines()}) == 1, "the columns of a table stand below each other"


def test_the_figure_shows_each_share_as_wide_as_it_is():
    shares = {"win": 0.5, "tie": 0.2, "lose": 0.3}
    found = {"first": "a", "second": "b", "judged": 9, "preference": {name: {"value": value} for name, value in shares.items()}}
    picture = Image.open(io.BytesIO(draw_preferences({"x": found}))).convert("RGB")
    counts = {colour: 0 for colour in ((11, 110, 153), (201, 201, 201), (194, 87, 26))}
    row = max(range(picture.height), key=lambda y: sum(picture.getpixel((x, y)) in counts for x in range(picture.width)))
    for x in range(picture.width):
        if (pixel := picture.getpixel((x, row))) in counts:
            counts[pixel] += 1
    total = sum(counts.values())
    assert [count / total for count in counts.values()] == pytest.approx(list(shares.values()), abs=0.02)


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_export_and_score_from_the_command_line(tmp_path: Path):
    make_shards(tmp_path / "shards", "image", 10)
    for system, answer in (("tuned", lambda index: COLOURS[index % 3]), ("aligned", lambda index: f"no {index}")):
        predictions(tmp_path / system, "image", answer, 10)
    done = invoke("export", "--system", f"tuned={tmp_path / 'tuned'}", "--system", f"aligned={tmp_path / 'aligned'}",
                  "--shards", f"image={tmp_path / 'shards'}", "--count", 10, "--seed", 3, "--out", tmp_path / "study", "--key", tmp_path / "key.json")
    assert done.exception is None and f"{tmp_path / 'study/image'}: 10 tasks" in done.output
    lefts = {number: entry["left"] for number, entry in json.loads((tmp_path / "key.json").read_text())["samples"].items()}
    exported = [judged(task, 1, "left" if lefts[task["data"]["sample"]] == "tuned" else "right") for task in tasks(tmp_path / "study", "image")]
    done = invoke("score", "--key", tmp_path / "key.json", "--export", write(tmp_path / "export.json", exported), "--out", tmp_path / "scored")
    assert done.exception is None
    assert "| tuned against aligned | 100.0 [100.0, 100.0] |" in done.output
    results = json.loads((tmp_path / "scored" / "human.json").read_text())["comparisons"]["tuned_vs_aligned"]
    assert results["preference"]["win"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 10}
    key_again = write(tmp_path / "again.json", json.loads((tmp_path / "key.json").read_text()))
    refused = invoke("score", "--key", key_again, "--export", tmp_path / "export.json", "--out", tmp_path / "x")
    assert isinstance(refused.exception, DataError) and "tasks of no study" in str(refused.exception), "a rewritten key is another key"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    folder = predictions(tmp_path / "said", "image", str, 2)
    make_shards(tmp_path / "shards", "image", 2)
    (tmp_path / "file").touch()
    done = invoke("export", "--system", f"a={folder}", "--references", "--shards", f"image={tmp_path / 'shards'}", "--count", 2, "--seed", 0,
                  "--out", tmp_path / "file" / "out", "--key", tmp_path / "key.json")
    assert isinstance(done.exception, ConfigError)
    assert re.search(r"--out .*: cannot be written \(Not a directory: .*\); name another place", str(done.exception))
    assert not (tmp_path / "key.json").exists()


@pytest.mark.parametrize(("changes", "said"), [
    ({"--system": ["tuned=ok"]}, r"--system: names 1 systems \(tuned\); give two systems, or one with --references"),
    ({"--system": ["tuned=ok", "aligned=ok"], "--references": []}, "give one system with --references"),
    ({"--system": ["tuned"]}, "--system tuned: must be NAME=FOLDER"),
    ({"--system": ["a b=ok"]}, "--system a b=ok: must be NAME=FOLDER"),
    ({"--system": ["tuned=none"]}, "--system tuned=none: no such folder"),
    ({"--system": ["reference=ok", "x=ok"]}, "--system reference: is the name of the answers that people wrote"),
    ({"--system": ["a=ok", "b=ok"], "--asset": ["m=ok", "m=ok"]}, "--asset m: is given 2 times"),
    ({"--system": ["a=ok", "b=ok"]}, "ok: has no manifest.json"),
])  # fmt: skip
def test_wrong_options_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, list[str]], said: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ok").mkdir()
    options = [part for name, values in changes.items() for part in ([name] if not values else [p for value in values for p in (name, value)])]
    done = invoke("export", *options, "--count", 2, "--seed", 0, "--out", "out", "--key", "key.json")
    assert isinstance(done.exception, AnymalError), done.output
    assert re.search(said, str(done.exception))
    assert [path.name for path in tmp_path.iterdir()] == ["ok"]
