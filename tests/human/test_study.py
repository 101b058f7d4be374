"""The export of a study: who stands where, what annotators can see, what the key says, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import io
import stat
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anymal.data.label_studio import media_path
from anymal.errors import ConfigError, DataError
from anymal.evaluation.benchmarks.folder import write_benchmark, write_protocol
from anymal.evaluation.human.form import CRITERIA, NO_ANSWER, PREFERENCES, SIDES, control, labelling_config
from anymal.evaluation.human.media import MAX_EMBEDDED_BYTES, data_uri, extract_media
from anymal.evaluation.human.samples import Item, Medium, Sample, draw
from anymal.evaluation.human.study import read_key, write_study
from anymal.evaluation.predictions import write_predictions
from tests.human.material import COLOURS, content, key, make_shards, predictions, tasks

TEMPLATES = Path(__file__).parents[2] / "manifests" / "label-studio"
MODALITIES = ("image", "audio", "video", "imu")


def study(tmp_path: Path, *, count: int = 8, seed: int = 1, available: int = 12, modalities: tuple[str, ...] = ("image",), embed: bool = True,
          name: str = "study") -> tuple[Path, Path]:
    """Two systems on a medium of each modality, exported."""
    made = tmp_path / "made"
    if not made.exists():
        for modality in modalities:
            make_shards(made / "shards" / modality, modality, available)
            predictions(made / "tuned" / modality, modality, lambda index: f"It is {COLOURS[index % 3]}.", available)
            predictions(made / "aligned" / modality, modality, lambda index: f"Number {index}", available)
    systems = {system: [made / system / modality for modality in modalities] for system in ("tuned", "aligned")}
    shards = {modality: [made / "shards" / modality] for modality in modalities}
    out, secret = tmp_path / name, tmp_path / f"{name}-key.json"
    write_study(systems, shards, {}, out, secret, count=count, seed=seed, split="test", embed=embed)
    return out, secret


def test_sides_are_balanced_and_the_key_says_who_is_where(tmp_path: Path):
    out, secret = study(tmp_path)
    found = read_key(secret)
    assert found.systems == ("tuned", "aligned")
    exported = tasks(out, "image")
    assert [task["data"]["sample"] for task in exported] == sorted(found.samples) and len(exported) == 8
    for task in exported:
        entry = found.samples[task["data"]["sample"]]
        index = int(entry["id"].split("-")[2])
        said = {"tuned": f"It is {COLOURS[index % 3]}.", "aligned": f"Number {index}"}
        right = "aligned" if entry["left"] == "tuned" else "tuned"
        assert (task["data"]["left"], task["data"]["right"]) == (said[entry["left"]], said[right])
        picture = base64.b64decode(task["data"]["image"].removeprefix("data:image/png;base64,"))
        assert picture == content("image", index)
    assert Counter(entry["left"] for entry in found.samples.values()) == {"tuned": 4, "aligned": 4}
    assert Counter(entry["kind"] for entry in found.samples.values()) == {"colour": 4, "count": 4}


def test_annotators_see_neither_names_nor_keys_nor_who_can_tell(tmp_path: Path):
    out, secret = study(tmp_path, embed=False)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {path.relative_to(out).as_posix() for path in files if path.parent.name != "media"} == {"image/tasks.json", "image/labelling.xml"}
    visible = " ".join(path.read_text() for path in files if path.parent.name != "media") + " ".join(path.name for path in files)
    for hidden in ("tuned", "aligned", "image-red", "image.qa", "colour-", "count"):
        assert hidden not in visible, hidden
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert set(tasks(out, "image")[0]["data"]) == {"image", "left", "question", "right", "sample", "study"}


def test_files_are_named_by_content_and_found_where_the_server_looks(tmp_path: Path):
    out, secret = study(tmp_path, embed=False)
    for task in tasks(out, "image"):
        file = tmp_path / media_path(task["data"]["image"])
        assert file.stem == hashlib.sha256(file.read_bytes()).hexdigest()
        index = int(read_key(secret).samples[task["data"]["sample"]]["id"].split("-")[2])
        assert file.read_bytes() == content("image", index)


def test_the_same_seed_gives_the_same_bytes_and_another_one_other_samples(tmp_path: Path):
    made = [study(tmp_path, name=name, seed=seed) for name, seed in (("one", 1), ("two", 1), ("three", 2))]
    first, second, third = [((out / "image/tasks.json").read_bytes(), secret.read_bytes()) for out, secret in made]
    assert first == second
    assert first[0] != third[0]


def test_each_modality_is_a_project_with_media_that_browsers_show(tmp_path: Path):
    out, secret = study(tmp_path, count=16, modalities=MODALITIES, embed=False)
    assert sorted(path.name for path in out.iterdir()) == sorted([*MODALITIES, "media"])
    for modality, kind in (("image", ".png"), ("audio", ".wav"), ("video", ".mp4"), ("imu", ".png")):
        exported = tasks(out, modality)
        assert len(exported) == 4
        assert all(task["data"][modality].endswith(kind) for task in exported)
    assert Image.open(tmp_path / media_path(tasks(out, "imu")[0]["data"]["imu"])).width > 300
    assert Counter(entry["left"] for entry in read_key(secret).samples.values()) == {"tuned": 8, "aligned": 8}


def test_clips_and_motions_fit_into_tasks_and_sounds_do_not(tmp_path: Path):
    out, _ = study(tmp_path, modalities=("video", "imu"))
    assert tasks(out, "video")[0]["data"]["video"].startswith("data:video/mp4;base64,")
    drawing = Image.open(io.BytesIO(base64.b64decode(tasks(out, "imu")[0]["data"]["imu"].removeprefix("data:image/png;base64,"))))
    assert drawing.width > 300
    (tmp_path / "made").rename(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"--media embed: there are sounds to be heard, .*use --media files"):
        study(tmp_path, modalities=("audio",), name="sounds")
    assert not (tmp_path / "sounds").exists() and not (tmp_path / "sounds-key.json").exists()


def test_a_system_stands_against_what_people_wrote(tmp_path: Path):
    make_shards(tmp_path / "shards", "image", 6)
    folder = predictions(tmp_path / "said", "image", lambda _: "  ", 6, task="caption")
    done = write_study({"tuned": [folder]}, {"image": [tmp_path / "shards"]}, {}, tmp_path / "out", tmp_path / "key.json", count=6, seed=0,
                       split="test", embed=True)
    assert done == {"samples": {"image": 6}, "dropped": {}}
    found = read_key(tmp_path / "key.json")
    assert found.systems == ("tuned", "reference")
    for task in tasks(tmp_path / "out", "image"):
        human = task["data"]["right" if found.samples[task["data"]["sample"]]["left"] == "tuned" else "left"]
        assert human in COLOURS
        assert {task["data"]["left"], task["data"]["right"]} == {human, NO_ANSWER}
        assert task["data"]["question"] == "Describe the picture."


def test_questions_about_several_media_are_a_project_of_their_own_and_have_no_reference(tmp_path: Path):
    for modality in ("image", "imu"):
        make_shards(tmp_path / modality, modality, 4)
    records = [{"keys": {"imu": key("imu", index), "image": key("image", index)}, "question_id": f"mixed-{index}", "question": "What and where?",
                "references": {"image": "red", "imu": "rows"}} for index in range(4)]
    for system in ("a", "b"):
        protocol = {"seed": 0, "tasks": {"qa": {"prompt": "", "protocol": "", "vocabulary": None}}}
        write_predictions(tmp_path / system, "mixed", {"qa": [{**record, "prediction": {"right": f"{system} says"}} for record in records]}, protocol)
    shards = {modality: [tmp_path / modality] for modality in ("image", "imu")}
    settings = {"count": 4, "seed": 0, "split": "test", "embed": True}
    write_study({"a": [tmp_path / "a"], "b": [tmp_path / "b"]}, shards, {}, tmp_path / "out", tmp_path / "key.json", **settings)
    data = tasks(tmp_path / "out", "image-imu")[0]["data"]
    assert data["image"].startswith("data:image/png") and data["imu"].startswith("data:image/png")
    with pytest.raises(DataError, match="share only 0 samples"):
        write_study({"a": [tmp_path / "a"]}, shards, {}, tmp_path / "other", tmp_path / "other.json", **settings)


def test_a_benchmark_is_judged_on_the_files_of_its_asset(tmp_path: Path):
    """MM-IT's protocol: a system against the answers that people wrote."""
    asset = tmp_path / "asset"
    records: list[dict[str, Any]] = []
    for modality, name in (("image", "cats/1.png"), ("imu", "runs/1.npy"), ("audio", "a.wav"), ("video", "long.mp4#t=3,5")):
        (asset / name).parent.mkdir(parents=True, exist_ok=True)
        (asset / name.partition("#")[0]).write_bytes(content(modality, 3))
        records.append({"id": f"{modality}-1", "group": name, "medium": name, "modality": modality, "kind": "instruction", "answer": None,
                        "question": None if modality == "audio" else "What next?", "options": ["sit", "run"] if modality == "imu" else None,
                        "references": ["It sits."], "prompt": [], "prediction": {"right": "It runs."}})
    said = tmp_path / "said"
    said.mkdir()
    write_benchmark(said, "mm_it", records, how="text")
    write_protocol(said, {"seed": 0, "part": {"index": 0, "of": 1}}, {"mm_it": {"unusable": []}, "vqav2": {"skipped": "no asset"}}, [])
    with pytest.raises(ConfigError, match="--asset: names no asset of mm_it, whose media are to be shown; add mm_it=FOLDER"):
        write_study({"x": [said]}, {}, {}, tmp_path / "out", tmp_path / "key.json", count=2, seed=0, split="test", embed=False)
    done = write_study({"x": [said]}, {}, {"mm_it": asset}, tmp_path / "out", tmp_path / "key.json", count=2, seed=0, split="test", embed=False)
    assert done["dropped"] == {"part_of_a_file": 1}
    entries = read_key(tmp_path / "key.json").samples.values()
    assert {entry["branch"] for entry in entries} == {"benchmarks.mm_it"}
    questions = {project: tasks(tmp_path / "out", project)[0]["data"]["question"] for project in done["samples"]}
    assert questions.items() <= {"image": "What next?", "imu": "What next?\n(A) sit\n(B) run", "audio": "Describe the sound."}.items()


def test_a_study_may_be_about_some_branches_only(tmp_path: Path):
    shards = {modality: [make_shards(tmp_path / "shards" / modality, modality, 4)] for modality in ("image", "imu")}
    systems = {name: [predictions(tmp_path / name / modality, modality, lambda index, name=name: f"{name} {index}", 4) for modality in shards]
               for name in ("a", "b")}
    done = write_study(systems, shards, {}, tmp_path / "out", tmp_path / "key.json", count=4, seed=0, split="test", embed=True, branches=["imu.qa"])
    assert done["samples"] == {"imu": 4}
    with pytest.raises(ConfigError, match=r"--branch imu\.vqa: a system has no predictions of it, it has image.qa, imu.qa"):
        write_study(systems, shards, {}, tmp_path / "x", tmp_path / "x.json", count=4, seed=0, split="test", embed=True, branches=["imu.vqa"])


@pytest.mark.parametrize("name", ["../outside.png", "none.png"])
def test_a_benchmark_cannot_show_what_its_asset_does_not_hold(tmp_path: Path, name: str):
    (tmp_path / "asset").mkdir()
    (tmp_path / "outside.png").write_bytes(content("image", 1))
    with pytest.raises(DataError, match=f"--asset mm_it=.*asset: holds no file {name}"):
        extract_media([Medium("image", name, "mm_it")], {}, {"mm_it": tmp_path / "asset"}, tmp_path / "media", split="test")


def test_what_no_browser_shows_is_named(tmp_path: Path):
    (tmp_path / "x.tiff").write_bytes(b"II")
    with pytest.raises(DataError, match=r"x\.tiff: cannot be shown in a browser; known are motions"):
        extract_media([Medium("image", "x.tiff", "mm_it")], {}, {"mm_it": tmp_path}, tmp_path / "media", split="test")


def test_a_medium_that_is_too_large_for_a_task_is_refused(tmp_path: Path):
    with (tmp_path / "a.mp4").open("wb") as stream:
        stream.truncate(MAX_EMBEDDED_BYTES + 1)
    with pytest.raises(ConfigError, match=r"--media embed: a medium holds 4194305 bytes, .*use --media files"):
        data_uri(tmp_path / "a.mp4")


def item(branch: str, kind: str, place: int, medium: int) -> Sample:
    return Sample(Item(branch, f"{kind}-{place}", kind, "?", (Medium("image", f"m{medium}"),), "x", ()), ("first", "second"))


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=5), half=st.integers(1, 30), seed=st.integers(0, 99))
def test_any_draw_is_balanced_and_even_over_branches_and_kinds(sizes: list[int], half: int, seed: int):
    samples = [item(f"branch{number % 2}.qa", f"kind{number}", place, place // 3) for number, size in enumerate(sizes) for place in range(size)]
    count = 2 * half
    if count > len(samples):
        with pytest.raises(DataError, match=f"share only {len(samples)} samples"):
            draw(samples, count=count, seed=seed)
        return
    drawn = draw(samples, count=count, seed=seed)
    assert len({sample.item for sample in drawn}) == count
    assert sum(sample.first_is_left for sample in drawn) == half
    strata = {(f"branch{number % 2}.qa", f"kind{number}"): size for number, size in enumerate(sizes)}
    taken = Counter((sample.item.branch, sample.item.kind) for sample in drawn)
    by_branch = Counter(sample.item.branch for sample in drawn)
    for branch, _ in strata:
        available = sum(size for (other, _), size in strata.items() if other == branch)
        assert by_branch[branch] >= min(available, max(by_branch.values()) - 1)
    for number, ((branch, kind), size) in enumerate(strata.items()):
        assert taken[branch, kind] >= min(size, max(count for (other, _), count in taken.items() if other == branch) - 1)
        media = Counter(sample.item.media for sample in drawn if sample.item.kind == f"kind{number}")
        if media and len(media) < -(-size // 3):
            assert set(media.values()) == {1}, "a medium comes twice before all came once"


@pytest.mark.parametrize("count", [0, 7, -2])
def test_odd_counts_are_refused(count: int):
    with pytest.raises(ConfigError, match=rf"--count {count}: must be even"):
        draw([item("a.qa", "k", place, place) for place in range(9)], count=count, seed=0)


def test_nothing_is_overwritten_and_the_key_stays_out_of_the_tasks(tmp_path: Path):
    out, secret = study(tmp_path)
    before = (out / "image/tasks.json").read_bytes(), secret.read_bytes()
    with pytest.raises(ConfigError, match=r"--out .*study: is there already"):
        study(tmp_path)
    with pytest.raises(ConfigError, match=r"--key .*: is there already"):
        write_study({}, {}, {}, tmp_path / "new", secret, count=2, seed=0, split="test", embed=True)
    with pytest.raises(ConfigError, match="lies in --out"):
        write_study({}, {}, {}, tmp_path / "new", tmp_path / "new" / "key.json", count=2, seed=0, split="test", embed=True)
    assert before == ((out / "image/tasks.json").read_bytes(), secret.read_bytes())


@pytest.mark.parametrize(("shards", "split", "said"), [
    ({}, "test", r"--shards: names no shards of image, of which \d media are to be shown; add image=FOLDER"),
    ({"image": "other"}, "test", r"--shards image=.*other: no sample image-\w+-\d+ \(and \d more\) in split test"),
    ({"image": "shards"}, "val", "holds no shard named val-NNNNN.tar"),
])
def test_media_that_are_not_there_leave_nothing_behind(tmp_path: Path, shards: dict[str, str], split: str, said: str):
    make_shards(tmp_path / "shards", "image", 6)
    make_shards(tmp_path / "other", "image", 1)
    folder = predictions(tmp_path / "said", "image", str, 6)
    before = sorted(tmp_path.iterdir())
    with pytest.raises((ConfigError, DataError), match=said):
        write_study({"tuned": [folder]}, {name: [tmp_path / place] for name, place in shards.items()}, {}, tmp_path / "out", tmp_path / "key.json",
                    count=6, seed=0, split=split, embed=True)
    assert sorted(tmp_path.iterdir()) == before


def test_records_that_cannot_be_compared_are_counted(tmp_path: Path):
    make_shards(tmp_path / "shards", "image", 8)
    first = predictions(tmp_path / "one", "image", str, 8)
    second = predictions(tmp_path / "two", "image", str, 6)
    other = predictions(tmp_path / "three", "image", str, 8, question="Another one?")
    shards = {"image": [tmp_path / "shards"]}
    done = write_study({"a": [first], "b": [second]}, shards, {}, tmp_path / "x", tmp_path / "x.json", count=6, seed=0, split="test", embed=True)
    assert done["dropped"] == {"only_one_system": 2}
    with pytest.raises(DataError, match="share only 0"):
        write_study({"a": [first], "c": [other]}, shards, {}, tmp_path / "y", tmp_path / "y.json", count=2, seed=0, split="test", embed=True)
    with pytest.raises(DataError, match=r"answers image.qa image-\w+-\d+-0, as another folder of the same system does"):
        write_study({"a": [first, second]}, shards, {}, tmp_path / "z", tmp_path / "z.json", count=2, seed=0, split="test", embed=True)


@pytest.mark.parametrize(("text", "said"), [("[]", "TypeError"), ("{", "JSONDecodeError"), ('{"kind": "x"}', "its kind is 'x'")])
def test_a_key_that_is_none_is_named(tmp_path: Path, text: str, said: str):
    (tmp_path / "key.json").write_text(text)
    with pytest.raises(DataError, match=rf"--key .*key.json: is no key of a study .*{said}"):
        read_key(tmp_path / "key.json")
    with pytest.raises(DataError, match="no such file"):
        read_key(tmp_path / "none.json")


def test_the_form_asks_for_everything_that_is_scored():
    for modalities in (("image",), ("image", "imu"), ("smell",)):
        root = ElementTree.fromstring(labelling_config(modalities))
        controls = {tag.attrib["name"]: [choice.attrib["alias"] for choice in tag] for tag in root.iter("Choices")}
        assert controls.pop("preference") == list(PREFERENCES)
        assert controls == {control(side, name): [str(points) for points in criterion.points]
                            for side in SIDES for name, criterion in CRITERIA.items()}
        assert all(tag.attrib["required"] == "true" for tag in root.iter("Choices"))
        shown = {tag.attrib["value"] for tag in root.iter() if tag.attrib.get("value", "").startswith("$")}
        assert shown == {"$question", "$left", "$right", *(f"${modality}" for modality in modalities)}
        names = {tag.attrib["name"] for tag in root.iter() if "name" in tag.attrib}
        assert {tag.attrib["toName"] for tag in root.iter("Choices")} <= names


@pytest.mark.parametrize("modality", ["image", "audio", "video"])
def test_media_are_shown_as_where_instructions_are_collected(modality: str):
    collecting = ElementTree.parse(TEMPLATES / f"instructions-{modality}.xml").getroot()[0]
    judging = next(tag for tag in ElementTree.fromstring(labelling_config([modality])).iter() if tag.attrib.get("value") == f"${modality}")
    assert judging.tag == collecting.tag
    assert judging.attrib.items() >= (collecting.attrib | {"name": modality}).items()


def test_the_criteria_are_the_papers():
    assert {name: sorted(criterion.points) for name, criterion in CRITERIA.items()} == {
        "recognition": [0, 1, 2], "response": [0, 2], "integrity": [0, 2]}
